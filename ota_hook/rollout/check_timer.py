"""The timer of offers that no open run looks after: those that checks made, and those of runs that are gone.

Devices that neither report nor ask again within their time have timed out. One worker at a time goes through the open
offers, every few minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

import structlog

from ota_hook.decide import SettleOffer, decide_report
from ota_hook.model import OpenOffer, Outcome
from ota_hook.ports.catalogue import SnapshotSource
from ota_hook.ports.devices import DeviceStore
from ota_hook.ports.offers import OfferStore
from ota_hook.ports.overdue import OverdueOffers
from ota_hook.ports.turns import Turn

REST_MS: Final = 300_000
_KEEP_TURN_S: Final = 5.0

_log = structlog.get_logger("ota_hook.rollout")


class CheckTimer:
    """`timeout_ms`: so long after it was offered something last a device may take."""

    def __init__(
        self,
        turn: Turn,
        *,
        timeout_ms: int,
        snapshots: SnapshotSource,
        devices: DeviceStore,
        offers: OfferStore,
        overdue: OverdueOffers,
        clock_ms: Callable[[], int],
    ) -> None:
        self._turn = turn
        self._timeout_ms = timeout_ms
        self._snapshots = snapshots
        self._devices = devices
        self._offers = offers
        self._overdue = overdue
        self._clock_ms = clock_ms

    async def look(self) -> None:
        """One round, where it is this worker's turn."""
        if not await self._turn.take():
            return
        kept_s, timed_out = time.monotonic(), 0
        async with aclosing(self._overdue.scan(offered_before_ms=self._clock_ms() - self._timeout_ms)) as pieces:
            async for offers in pieces:
                timed_out += await self._settle(offers)
                if time.monotonic() - kept_s > _KEEP_TURN_S:
                    kept_s = time.monotonic()
                    if not await self._turn.take():
                        return
        if timed_out:
            _log.info("offers_timed_out", count=timed_out)
        await self._turn.end(rest_ms=REST_MS)

    async def _settle(self, offers: Sequence[tuple[str, OpenOffer]]) -> int:
        """How many timed out."""
        # In this order: a run that is open now was open when its offer was read, or made since.
        open_runs = await self._overdue.find_open_runs({offer.run_id for _, offer in offers if offer.run_id})
        left = [(identifier, offer) for identifier, offer in offers if offer.run_id not in open_runs]
        if not left:
            return 0
        return await self._overdue.time_out(await self._note_proven(left), settled_at_ms=self._clock_ms())

    async def _note_proven(self, offers: Sequence[tuple[str, OpenOffer]]) -> list[tuple[str, OpenOffer]]:
        """Close offers of which the device's version says what became; the note of it was lost. The others."""
        proven: dict[tuple[Outcome, str], list[tuple[str, OpenOffer]]] = {}
        rest = []
        states = await self._devices.load_devices([identifier for identifier, _ in offers])
        for (identifier, offer), state in zip(offers, states, strict=True):
            decided = decide_report(state, state.versions.keys(), self._snapshots.current) if state is not None else ()
            found = [one for one in decided if isinstance(one, SettleOffer) and one.offer == offer]
            if found:
                proven.setdefault((found[0].outcome, found[0].code), []).append((identifier, offer))
            else:
                rest.append((identifier, offer))
        for (outcome, code), settled in proven.items():
            await self._offers.settle_offers(settled, outcome, code=code, settled_at_ms=self._clock_ms())
        return rest
