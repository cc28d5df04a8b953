"""Reading and writing at once: the next batch is read while the last one is on its way. Knows nothing of either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sized
from types import TracebackType
from typing import Generic, Self, TypeVar

_Batch = TypeVar("_Batch", bound=Sized)


class OneBehind(Generic[_Batch]):
    """Works on one batch beside its caller, who waits where the one before is not done yet: order stays."""

    def __init__(self, work: Callable[[_Batch], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def start(self, batch: _Batch) -> None:
        await self.finish()
        if batch:
            self._task = asyncio.ensure_future(self._work(batch))

    async def finish(self) -> None:
        """Return when what was started is done; raises what went wrong."""
        if self._task is not None:
            task, self._task = self._task, None
            await task
