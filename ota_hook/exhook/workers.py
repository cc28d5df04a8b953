"""Worker processes that share one port: started, watched, started again when they die, drained at the end.

It must not know what a worker does; that is a function that each process runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from typing import Any, Final

import structlog

from ota_hook.errors import ConfigurationError

STOP_SECONDS: Final = 15.0
"""Longer than a worker's own drain; then it is killed."""
READY_SECONDS: Final = 30.0
_PAUSES_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
_LIVED_S: Final = 30.0
"""A worker that lived so long was a good one: the next restart is quick again."""

_log = structlog.get_logger("ota_hook.workers")


class WorkerPool:
    """`count` processes that run `work(*arguments, number, ready)`.

    `work` must be importable, call `ready()` when it serves, and return when SIGTERM comes.
    """

    def __init__(self, count: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._work = work
        self._arguments = arguments
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, SpawnProcess] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._count = count
        self._stopping = False
        self._ready = [self._context.Event() for _ in range(count)]
        self.restarts = 0

    async def start(self) -> None:
        """Start them and watch over them until `stop`."""
        for number in range(self._count):
            self._processes[number] = self._spawn(number)
            self._tasks.append(asyncio.create_task(self._watch(number), name=f"worker {number}"))

    async def wait_ready(self, *, seconds: float = READY_SECONDS) -> None:
        """Return when each has called `ready` once. ConfigurationError where that takes longer."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not all(event.is_set() for event in self._ready):
            if asyncio.get_running_loop().time() > deadline:
                await self.stop()
                raise ConfigurationError("The hook's workers did not start.", mend="Their log says why.")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Ask them all to end, and wait; what does not end in time is killed."""
        self._stopping = True
        for process in self._processes.values():
            if process.is_alive():
                process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*(_ended(process) for process in self._processes.values()))
        for number, process in self._processes.items():
            if process.is_alive():
                _log.error("worker_killed", worker=number, pid=process.pid)
                process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values() if process.pid is not None and process.is_alive()]

    def _spawn(self, number: int) -> SpawnProcess:
        process = self._context.Process(
            target=self._work,
            args=(*self._arguments, number, self._ready[number].set),
            name=f"ota-hook-worker-{number}",
            daemon=False,
        )
        process.start()
        return process

    async def _watch(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        quick_ends = 0
        while not self._stopping:
            process, started = self._processes[number], loop.time()
            await _ended(process)
            if self._stopping:
                return
            quick_ends = 0 if loop.time() - started > _LIVED_S else quick_ends + 1
            _log.error("worker_died", worker=number, pid=process.pid, status=_status(process))
            await asyncio.sleep(_PAUSES_S[min(quick_ends, len(_PAUSES_S) - 1)] if quick_ends else 0)
            self.restarts += 1
            self._processes[number] = self._spawn(number)


async def _ended(process: SpawnProcess) -> None:
    """Return when the process has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()


def _status(process: SpawnProcess) -> str:
    code = process.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else str(code)


def on_parent_gone(then: Callable[[], None]) -> None:
    """In a worker: call `then` once when the parent has died without a word. Nothing happens in another process."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.sentinel is None:
        return
    loop, sentinel = asyncio.get_running_loop(), parent.sentinel

    def gone() -> None:
        loop.remove_reader(sentinel)
        then()

    loop.add_reader(sentinel, gone)
