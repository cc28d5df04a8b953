"""Waiting for what another process or task does: by a deadline, never by a guess.

Time is counted as this process has it: where the machine holds the process up, its clocks run on, and nothing that is
waited for could have been seen meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

_STEP_S = 0.01
_LONGEST_STEP_S = 0.1
"""A step that took longer was a hold-up, and counts as this much."""


async def eventually(holds: Callable[[], bool | Awaitable[bool]], *, within_s: float = 5.0, what: str = "it") -> float:
    """Return when `holds` does, with the seconds it took; fail where it does not in time."""
    waited_s = 0.0
    while True:
        began = time.monotonic()
        answer = holds()
        held = answer if isinstance(answer, bool) else await answer
        looked = time.monotonic()
        waited_s += looked - began
        if held:
            return waited_s
        assert waited_s < within_s, f"{what} did not happen within {within_s} s"
        await asyncio.sleep(_STEP_S)
        waited_s += min(time.monotonic() - looked, _LONGEST_STEP_S)


class OwnTime:
    """A clock of the event loop that stands still while the process is held up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @classmethod
    @asynccontextmanager
    async def kept(cls) -> AsyncIterator[OwnTime]:
        clock = cls()
        async with running_beside(clock._run()):
            yield clock

    async def _run(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(_STEP_S)
            now = time.monotonic()
            self.seconds, before = self.seconds + min(now - before, _LONGEST_STEP_S), now


@asynccontextmanager
async def running_beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Have it run until the context ends. Where it failed, that is raised: what it should have done is missing."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
