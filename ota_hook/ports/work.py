"""The queue of workers. Must not know how work is done, or where the queue is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Work(NamedTuple):
    """A piece of work. `chunk` None: plan the run; else send to the devices of that chunk. `attempt` from 1."""

    entry: str
    run_id: str
    chunk: int | None
    attempt: int = 1


class DeadWork(NamedTuple):
    """Work that was given up."""

    at_ms: int
    run_id: str
    chunk: int | None
    reason: str


class WorkQueue(Protocol):
    """What workers shall do; each piece is done at least once. Raises DependencyError."""

    async def open(self) -> None: ...

    async def add(self, run_id: str, chunk: int | None) -> None: ...

    async def claim(self, *, most: int, block_ms: int) -> list[Work]:
        """Work that nobody has, or that nobody renewed within the lease; waits up to `block_ms` for some."""
        ...

    async def renew(self, work: Sequence[Work]) -> None:
        """Say that this worker is still at it."""
        ...

    async def finish(self, work: Work) -> None: ...

    async def bury(self, work: Work, reason: str) -> None:
        """Give it up, visibly."""
        ...

    async def load_dead(self, *, limit: int) -> list[DeadWork]: ...
