"""The end of tasks: cancelled until they are over. Knows nothing of what they did."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

_AGAIN_S: Final = 1.0


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and return when all have ended; what they raised is theirs to be asked for.

    asyncio.wait_for of Python 3.11, which redis-py sends through, takes a cancellation that comes with its answer for
    its own: so it is repeated.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_AGAIN_S)
