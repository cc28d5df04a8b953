"""What every process does for itself: limits, signals, the collector, its data directory, metrics, background tasks.

Must not know roles, or what the tasks do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server

from ota_hook.endings import end_tasks
from ota_hook.errors import ConfigurationError
from ota_hook.settings import Listen

_GC_THRESHOLDS: Final = (5_000, 50, 1_000)
_SWITCH_S: Final = 0.000_5
_DESCRIPTORS: Final = 65_536


@asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set. A second signal ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def ask(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def calm_interpreter() -> None:
    """Keep Python's cycle collector from walking what never dies, and threads from keeping the loop waiting.

    A check makes some tens of objects and no cycles; at the default thresholds the collector ran over the catalogue
    again and again, a third of a worker's time and nearly all of its p99 (benchmarks/check.py). While a thread makes
    the next snapshot, each turn of the loop waits for the interpreter's lock as long as the switch interval.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_S)


def raise_descriptor_limit() -> None:
    """A connection is a descriptor, and the usual soft limit of 1,024 is for programs that call select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def prepare_data_dir(data_dir: Path) -> None:
    """Make it where it is missing. Raises ConfigurationError."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The data directory {data_dir} can't be made: {exc.strerror}.", mend="Choose another: OTA_HOOK_DATA_DIR."
        ) from exc


def serve_metrics(listen: Listen | None, setting: str, registry: CollectorRegistry) -> Callable[[], None]:
    """Serve metrics over HTTP, where the setting says so; returns what ends it. Raises ConfigurationError."""
    if listen is None:
        return lambda: None
    try:
        server, thread = start_http_server(listen.port, listen.host, registry)
    except OSError as exc:
        raise ConfigurationError(f"{setting}: {listen} can't be bound: {exc.strerror}.") from exc

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


@asynccontextmanager
async def background(work: Awaitable[None]) -> AsyncIterator[None]:
    """Run `work` while the context lasts, then cancel it."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        await end_tasks([task])
        with contextlib.suppress(asyncio.CancelledError):
            await task
