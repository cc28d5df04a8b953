"""Open offers that nothing came of, for workers. Must not know when one is overdue, nor how offers are stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Protocol

from ota_hook.model import OpenOffer


class OverdueOffers(Protocol):
    """Raises DependencyError."""

    def scan(self, *, offered_before_ms: int) -> AsyncGenerator[list[tuple[str, OpenOffer]]]:
        """Every open offer that was last made by then, with its device; piece by piece, and a piece may be empty."""
        ...

    async def find_open_runs(self, run_ids: Collection[str]) -> set[str]:
        """Those of them that are open: somebody looks after their offers."""
        ...

    async def time_out(self, offers: Sequence[tuple[str, OpenOffer]], *, settled_at_ms: int) -> int:
        """Close them as timed out, each where it was not repeated since and no run made it its own. How many."""
        ...
