"""Firmware that fails too often is taken out of force, whoever offered it, and somebody is told.

It counts what happened since it was last stopped: an operator who enables it again gives it another chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from ota_hook.model import CatalogueChange, DocumentKind, Firmware, Outcome
from ota_hook.ports.catalogue import Catalogue
from ota_hook.ports.notices import Notices
from ota_hook.ports.offers import OfferStore
from ota_hook.ports.stops import FirmwareStops
from ota_hook.snapshot import Snapshot
from ota_hook.task import FirmwareStop

_FINISHED: Final = (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT)

_log = structlog.get_logger("ota_hook.rollout")


@dataclass(frozen=True, slots=True)
class StopRule:
    """So many per cent, of at least so many devices that finished."""

    percent: int
    after: int


class FirmwareWatch:
    """Looks at firmware that failed somewhere."""

    def __init__(
        self,
        rule: StopRule,
        *,
        catalogue: Catalogue,
        offers: OfferStore,
        stops: FirmwareStops,
        notices: Notices,
        clock_ms: Callable[[], int],
    ) -> None:
        self._rule = rule
        self._catalogue = catalogue
        self._offers = offers
        self._stops = stops
        self._notices = notices
        self._clock_ms = clock_ms

    async def look(self) -> None:
        """One round."""
        for firmware_id in await self._stops.load_failing():
            # Before it is settled, for this may fail or end here; and behind it, for what failed in between.
            await self._judge(firmware_id)
            await self._stops.settle(firmware_id)
            await self._judge(firmware_id)

    async def _judge(self, firmware_id: str) -> None:
        counters = (await self._offers.load_counters([firmware_id]))[firmware_id]
        (before,) = await self._stops.load_stops([firmware_id])
        stop = judge(self._rule, counters, before, at_ms=self._clock_ms())
        if stop is not None:
            await self._stop(firmware_id, stop, before)

    async def _stop(self, firmware_id: str, stop: FirmwareStop, before: FirmwareStop | None) -> None:
        stopped: Firmware | None = None

        def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
            nonlocal stopped
            firmware = snapshot.firmware.get(firmware_id)
            if firmware is None or firmware.deleted_at_ms is not None or not firmware.enabled:
                return ()
            stopped = replace(firmware, enabled=False, revision=firmware.revision + 1)
            return (CatalogueChange(DocumentKind.FIRMWARE, firmware_id, stopped),)

        # In this order: a reason may be lost with the process, the stop may not.
        await self._catalogue.change(decide)
        if stopped is None:
            # It is out of force already: commands that were under way fail on, and count for the stop before, if any.
            if before is not None:
                await self._stops.put_stop(firmware_id, replace(before, failed=stop.failed, finished=stop.finished))
        else:
            await self._stops.put_stop(firmware_id, stop)
            _log.warning("firmware_stopped", firmware=firmware_id, reason=stop.reason)
            facts = {"firmware": firmware_id, "version": stopped.version, "device_type": stopped.device_type}
            await self._notices.add("firmware_stopped", {**facts, "reason": stop.reason, "at_ms": stop.at_ms})


def judge(
    rule: StopRule, counters: Mapping[str, int], before: FirmwareStop | None, *, at_ms: int
) -> FirmwareStop | None:
    """The stop that these counters ask for, None for none. `before`: the last one, behind which it counts anew."""
    failed = counters.get(Outcome.FAILED, 0) + counters.get(Outcome.TIMED_OUT, 0)
    finished = sum(counters.get(outcome, 0) for outcome in _FINISHED)
    new_failed = failed - (before.failed if before is not None else 0)
    new_finished = finished - (before.finished if before is not None else 0)
    if new_finished < rule.after or new_failed * 100 < rule.percent * new_finished:
        return None
    reason = (
        f"{new_failed} of {new_finished} devices that finished failed or timed out;"
        f" a firmware stops at {rule.percent} %."
    )
    return FirmwareStop(reason=reason, at_ms=at_ms, failed=failed, finished=finished)
