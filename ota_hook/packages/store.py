"""Packages as plain files: `<root>/<firmware id>`, written under `<root>/.incoming` first.

A package exists under its final name only whole: written, fsynced, renamed, its folder fsynced, read back and compared.
All blocking work runs in this store's own threads. It must not know the catalogue; the sweep is told what is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeVar

from ota_hook.errors import DependencyError
from ota_hook.model import Package
from ota_hook.packages.inspect import DigestWriter

BLOCK_BYTES: Final = 1024 * 1024
"""Bytes are written, hashed and read back in blocks of this size: one thread hop each."""
ORPHAN_AGE_S: Final = 24 * 3600
_THREADS: Final = 16
_INCOMING: Final = ".incoming"
_ID: Final = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")

T = TypeVar("T")


class _Run(Protocol):
    """Runs blocking work in a thread of the store."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


class LocalPackageStore:
    """The package store of one folder, which several processes may share. Implements ports.packages.PackageStore."""

    def __init__(self, root: Path) -> None:
        """Makes the folder where it is missing; DependencyError where that fails."""
        self._root = root
        self._incoming = root / _INCOMING
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="packages")
        with _refused("can't be used"):
            self._incoming.mkdir(parents=True, exist_ok=True)
            _fsync_folder(root.parent)
            _fsync_folder(root)

    async def receive(self, firmware_id: str) -> IncomingFile:
        final = self._path(firmware_id)
        incoming = IncomingFile(self._incoming / firmware_id, final, self._run)
        await incoming.begin()
        return incoming

    async def open(self, firmware_id: str) -> FileReader:
        path = self._path(firmware_id)
        with _refused("can't read the package"):
            descriptor = await self._run(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return FileReader(descriptor, self._run)

    async def remove(self, firmware_id: str) -> None:
        path = self._path(firmware_id)
        with _refused("can't remove the package"):
            await self._run(lambda: path.unlink(missing_ok=True))

    async def sweep(self, in_use: Collection[str], *, now_s: float | None = None) -> list[str]:
        """Remove what a kill left behind, if older than a day: uploads that broke off, packages without a firmware.

        `in_use` holds the ids of firmware in the catalogue. Where it is empty no package is removed: an empty catalogue
        is more often a wrong Redis than a fresh start. Returns the names removed.
        """
        with _refused("can't be swept"):
            return await self._run(lambda: self._sweep(in_use, time.time() if now_s is None else now_s))

    def _sweep(self, in_use: Collection[str], now_s: float) -> list[str]:
        removed = []
        candidates = list(self._incoming.iterdir())
        if in_use:
            candidates += [p for p in self._root.iterdir() if _ID.fullmatch(p.name) and p.name not in in_use]
        for path in candidates:
            with contextlib.suppress(FileNotFoundError):  # another process may sweep the same folder
                if now_s - path.stat().st_mtime > ORPHAN_AGE_S:
                    path.unlink()
                    removed.append(str(path.relative_to(self._root)))
        return removed

    def close(self) -> None:
        """Let the threads end; waits for writes under way."""
        self._threads.shutdown(wait=True)

    def _path(self, firmware_id: str) -> Path:
        if not _ID.fullmatch(firmware_id):
            raise ValueError(f"{firmware_id!r} is no ULID")  # a bug of ours: users' names never get here
        return self._root / firmware_id

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


class IncomingFile:
    """One package while it arrives. Implements ports.packages.IncomingPackage; used by one task."""

    def __init__(self, path: Path, final: Path, run: _Run) -> None:
        self._path = path
        self._final = final
        self._run_in_thread = run
        self._descriptor = -1
        self._buffer = bytearray()
        self._digests = DigestWriter()
        self._under_way: asyncio.Future[None] | None = None
        self._kept = False

    @property
    def size_bytes(self) -> int:
        return self._digests.size_bytes + len(self._buffer)

    async def begin(self) -> None:
        await self._run(self._create)

    async def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= BLOCK_BYTES:
            await self._flush()

    async def keep(self, filename: str) -> Package:
        await self._flush()
        package = self._digests.package(filename)
        await self._run(lambda: self._make_durable(package))
        self._kept = True
        return package

    async def discard(self) -> None:
        if self._kept:
            return
        if self._under_way is not None:
            # A thread can't be called off: it must be done with the file before the file is closed under it.
            await asyncio.wait([self._under_way])
        with contextlib.suppress(DependencyError):
            await self._run(self._remove)

    async def _flush(self) -> None:
        block, self._buffer = self._buffer, bytearray()
        if block:
            await self._run(lambda: self._append(block))

    async def _run(self, work: Callable[[], None]) -> None:
        with _refused("can't take the package"):
            self._under_way = asyncio.ensure_future(self._run_in_thread(work))
            await asyncio.shield(self._under_way)

    def _create(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def _append(self, block: bytearray) -> None:
        view = memoryview(block)
        written = 0
        while written < len(view):
            written += os.write(self._descriptor, view[written:])
        self._digests.update(view)

    def _make_durable(self, package: Package) -> None:
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the comparison reads the disk
        os.close(self._descriptor)
        self._descriptor = -1
        self._path.rename(self._final)
        try:
            _fsync_folder(self._final.parent)
            _fsync_folder(self._path.parent)
            _require_equal(_digest_file(self._final, package.filename), package)
        except OSError:
            self._final.unlink(missing_ok=True)
            raise

    def _remove(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._path.unlink(missing_ok=True)
        # A `keep` that was called off may have come as far as the rename.
        self._final.unlink(missing_ok=True)


class FileReader:
    """One open package. Implements ports.packages.PackageReader."""

    def __init__(self, descriptor: int, run: _Run) -> None:
        self._descriptor = descriptor
        self._run = run
        self._under_way: asyncio.Future[bytes] | None = None

    async def read(self, offset: int, size_bytes: int) -> bytes:
        with _refused("can't read the package"):
            self._under_way = asyncio.ensure_future(self._run(lambda: os.pread(self._descriptor, size_bytes, offset)))
            return await asyncio.shield(self._under_way)

    async def close(self) -> None:
        if self._under_way is not None and not self._under_way.done():
            await asyncio.wait([self._under_way])
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _digest_file(path: Path, filename: str) -> Package:
    digests = DigestWriter()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digests.update(block)
    return digests.package(filename)


def _require_equal(read: Package, written: Package) -> None:
    if read != written:
        raise OSError(errno.EIO, "it gave back other bytes than were written")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DependencyError(f"The package store {what}: {exc.strerror or exc}.") from exc
