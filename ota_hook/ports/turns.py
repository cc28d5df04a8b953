"""Turns, with what one worker does at a time. Must not know what that is, or where it stands whose turn it is."""

from __future__ import annotations

from typing import Protocol


class Turn(Protocol):
    """One worker's view of it. Raises DependencyError."""

    async def take(self) -> bool:
        """Have the turn, or keep it: call it again every few seconds. False where it is another's, or it rests."""
        ...

    async def end(self, *, rest_ms: int) -> None:
        """It is done; nobody shall do it again for so long."""
        ...
