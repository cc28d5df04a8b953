"""Waiting for what another process or task does: by a deadline, never by a guess."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(holds: Callable[[], bool | Awaitable[bool]], *, within_s: float = 5.0, what: str = "it") -> float:
    """Return when `holds` does, with the seconds it took; fail where it does not in time."""
    started = time.monotonic()
    while True:
        answer = holds()
        if answer if isinstance(answer, bool) else await answer:
            return time.monotonic() - started
        assert time.monotonic() - started < within_s, f"{what} did not happen within {within_s} s"
        await asyncio.sleep(0.01)
