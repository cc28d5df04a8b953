"""The folder of packages: whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ulid import ULID

from ota_hook.errors import DependencyError
from ota_hook.packages.store import BLOCK_BYTES, ORPHAN_AGE_S, LocalPackageStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalPackageStore]:
    opened = LocalPackageStore(tmp_path / "packages")
    yield opened
    opened.close()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def keep(store: LocalPackageStore, data: bytes) -> str:
    firmware_id = str(ULID())
    incoming = await store.receive(firmware_id)
    await incoming.write(data)
    await incoming.keep("fw.bin")
    return firmware_id


async def test_a_kept_package_reads_back_as_it_was_written(store: LocalPackageStore, tmp_path: Path) -> None:
    data = os.urandom(BLOCK_BYTES * 2 + 77)
    firmware_id = str(ULID())
    incoming = await store.receive(firmware_id)
    for start in range(0, len(data), 65_537):
        await incoming.write(data[start : start + 65_537])
    assert incoming.size_bytes == len(data)
    package = await incoming.keep("fw.bin")
    assert (package.size_bytes, package.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert files_in(tmp_path / "packages") == {firmware_id}
    reader = await store.open(firmware_id)
    assert await reader.read(0, len(data) + 10) == data
    assert await reader.read(len(data) - 5, 100) == data[-5:]
    assert await reader.read(len(data), 1) == b""
    await reader.close()


async def test_a_package_is_not_there_before_it_is_kept(store: LocalPackageStore, tmp_path: Path) -> None:
    firmware_id = str(ULID())
    incoming = await store.receive(firmware_id)
    await incoming.write(b"x" * (BLOCK_BYTES + 1))
    assert files_in(tmp_path / "packages") == {f".incoming/{firmware_id}"}
    with pytest.raises(DependencyError):
        await store.open(firmware_id)
    await incoming.discard()
    assert files_in(tmp_path / "packages") == set()


async def test_discarding_after_keeping_changes_nothing(store: LocalPackageStore, tmp_path: Path) -> None:
    firmware_id = str(ULID())
    incoming = await store.receive(firmware_id)
    await incoming.write(b"x")
    await incoming.keep("fw.bin")
    await incoming.discard()
    assert files_in(tmp_path / "packages") == {firmware_id}


async def test_bytes_that_read_back_otherwise_are_refused_and_removed(
    store: LocalPackageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fsync_then_rot(descriptor: int) -> None:
        fsync(descriptor)
        for path in (tmp_path / "packages" / ".incoming").iterdir():
            path.write_bytes(b"rotten")

    firmware_id = str(ULID())
    incoming = await store.receive(firmware_id)
    await incoming.write(b"good")
    monkeypatch.setattr("ota_hook.packages.store.os.fsync", fsync_then_rot)
    with pytest.raises(DependencyError, match="other bytes than were written"):
        await incoming.keep("fw.bin")
    await incoming.discard()
    assert files_in(tmp_path / "packages") == set()


async def test_a_full_disk_is_a_dependency_that_fails_and_leaves_nothing(
    store: LocalPackageStore, tmp_path: Path
) -> None:
    incoming = await store.receive(str(ULID()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES, before[1]))  # Python ignores SIGXFSZ: write fails
    try:
        await incoming.write(b"x" * BLOCK_BYTES)
        with pytest.raises(DependencyError, match="can't take the package"):
            await incoming.write(b"x" * BLOCK_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await incoming.discard()
    assert files_in(tmp_path / "packages") == set()


async def test_a_keep_that_is_called_off_can_be_discarded(store: LocalPackageStore, tmp_path: Path) -> None:
    incoming = await store.receive(str(ULID()))
    await incoming.write(os.urandom(8 * BLOCK_BYTES))
    keeping = asyncio.create_task(incoming.keep("fw.bin"))
    await asyncio.sleep(0)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    await incoming.discard()
    assert files_in(tmp_path / "packages") == set()


async def test_removing_what_is_not_there_is_no_error(store: LocalPackageStore) -> None:
    firmware_id = await keep(store, b"x")
    await store.remove(firmware_id)
    await store.remove(firmware_id)
    with pytest.raises(DependencyError):
        await store.open(firmware_id)


@pytest.mark.parametrize("name", ["../x", "", "a" * 26, "01ARZ3NDEKTSV4RRFFQ69G5FA/"])
async def test_only_ids_reach_the_folder(store: LocalPackageStore, name: str) -> None:
    with pytest.raises(ValueError, match="no ULID"):
        await store.open(name)


async def test_the_sweep_removes_what_is_old_and_unused_alone(store: LocalPackageStore, tmp_path: Path) -> None:
    used, orphan = await keep(store, b"used"), await keep(store, b"orphan")
    broken_off = str(ULID())
    await store.receive(broken_off)
    (tmp_path / "packages" / "README").write_text("not ours")
    now = time.time()
    assert await store.sweep({used}, now_s=now + ORPHAN_AGE_S - 60) == []
    assert sorted(await store.sweep({used}, now_s=now + ORPHAN_AGE_S + 60)) == sorted(
        [orphan, f".incoming/{broken_off}"]
    )
    assert files_in(tmp_path / "packages") == {used, "README"}


async def test_the_sweep_keeps_every_package_when_the_catalogue_is_empty(
    store: LocalPackageStore, tmp_path: Path
) -> None:
    firmware_id = await keep(store, b"x")
    assert await store.sweep((), now_s=time.time() + 2 * ORPHAN_AGE_S) == []
    assert files_in(tmp_path / "packages") == {firmware_id}
