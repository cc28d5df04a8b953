"""What became of offers, for operators and workers. device_messages.py has what the hook notes of them.

Owns how offers are opened and settled from a run, and how histories and counters are read.
Must not know how they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from ota_hook.model import OpenOffer, Outcome, SettledOffer


class OfferStore(Protocol):
    """A device's last outcomes and counters per firmware, for operators. Raises DependencyError."""

    async def cancel_offers(self, firmware_id: str, *, settled_at_ms: int) -> int:
        """Close every open offer of a firmware as cancelled (its deletion). Returns how many; idempotent."""
        ...

    async def record_offers(self, offers: Sequence[tuple[str, OpenOffer]]) -> list[bool]:
        """Open offers of devices, as OpenOffers.record_offer does. False for a device that is not registered."""
        ...

    async def settle_offers(
        self, offers: Sequence[tuple[str, OpenOffer]], outcome: Outcome, *, code: str = "", settled_at_ms: int
    ) -> list[bool]:
        """Close open offers of devices, each where it is of that module, firmware and run; whether it was."""
        ...

    async def load_history(self, identifier: str) -> list[SettledOffer]:
        """The last 20 settled offers, newest first."""
        ...

    async def load_counters(self, firmware_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """Per firmware, how often each outcome happened."""
        ...
