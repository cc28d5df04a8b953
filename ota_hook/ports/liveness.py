"""Which processes are alive. Must not know how they say so."""

from __future__ import annotations

from typing import Protocol


class HookLiveness(Protocol):
    async def count_live(self) -> int:
        """How many hook processes' heartbeats are fresh. Raises DependencyError."""
        ...
