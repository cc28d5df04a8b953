"""What people outside shall hear of, from who notes it to who tells it. Must not know what carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class Notices(Protocol):
    """What people outside shall hear of. Raises DependencyError."""

    async def add(self, kind: str, facts: Mapping[str, object]) -> None:
        """Tell it, at least once, soon."""
        ...


class Notice(NamedTuple):
    """One notice. `attempt` counts from 1; `id` stays the same when it is told again."""

    id: str
    attempt: int
    body: dict[str, object]


class NoticeSource(Protocol):
    """Notices that were not told yet. Raises DependencyError."""

    async def read(self, *, most: int, block_ms: int) -> list[Notice]:
        """What is to be told now; one that is not finished comes again, half a minute later."""
        ...

    async def finish(self, notices: Sequence[Notice]) -> None:
        """They were told, or are given up."""
        ...


class Listener(Protocol):
    async def tell(self, notice_id: str, body: dict[str, object]) -> None:
        """Tell it once. DependencyError where it was not heard."""
        ...
