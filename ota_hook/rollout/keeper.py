"""What open runs need from time to time, whichever worker does it.

Windows, chunks for the queue, timeouts, counters that are counted anew, their end.

Every step may be done twice, and by two workers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import structlog

from ota_hook.decide import SettleOffer, decide_report
from ota_hook.model import DEFAULT_MODULE, DeviceState, OpenOffer, Outcome
from ota_hook.ports.catalogue import SnapshotSource
from ota_hook.ports.devices import DeviceStore
from ota_hook.ports.notices import Notices
from ota_hook.ports.offers import OfferStore
from ota_hook.ports.presence import Connections
from ota_hook.ports.runs import RunStore
from ota_hook.ports.work import WorkQueue
from ota_hook.presence import is_online
from ota_hook.progress import UNDELIVERED
from ota_hook.rollout.schedule import is_open, opening_text
from ota_hook.task import Run, RunDevice, RunHead, RunState

QUEUED_CHUNKS: Final = 64
"""Of one run: what its workers do between two looks, 16,000 devices."""
RECOUNT_EVERY_MS: Final = 600_000
"""Counters change with the records that they count; what else changes them, a restore or a hand, stays so long."""
_RECOUNTED_CHUNKS: Final = 40
"""So many a look: a run of a million devices is counted within a minute."""
_RECOUNTED_CHUNKS_AT_END: Final = 400
_TOLD: Final = frozenset({RunState.STOPPED, RunState.PAUSED, RunState.COMPLETED, RunState.CANCELLED, RunState.FAILED})
_QUEUE_STALE_MS: Final = 30_000
_DUE_AT_ONCE: Final = 100

_log = structlog.get_logger("ota_hook.rollout")


class _Late(NamedTuple):
    """A device whose time is over, and what is known of it; None: it is not registered any more."""

    device: RunDevice
    state: DeviceState | None


class Keeper:
    """Looks after open runs. Who is not online is waited for; `connections` None: that is not known of anybody.

    `mended` counts counters of runs that were found wrong.
    """

    def __init__(
        self,
        *,
        snapshots: SnapshotSource,
        devices: DeviceStore,
        offers: OfferStore,
        runs: RunStore,
        queue: WorkQueue,
        notices: Notices,
        clock_ms: Callable[[], int],
        connections: Connections | None,
    ) -> None:
        self._snapshots = snapshots
        self._devices = devices
        self._offers = offers
        self._runs = runs
        self._queue = queue
        self._notices = notices
        self._clock_ms = clock_ms
        self._connections = connections
        self.mended = 0

    async def look_after_all(self) -> None:
        """One round. A run that fails keeps no other from its turn."""
        for head in await self._runs.load_open():
            try:
                await self.look_after(head)
            except Exception:  # noqa: BLE001 - logged whole
                _log.exception("run_not_kept", run=head.id)

    async def look_after(self, head: RunHead) -> None:
        """One run."""
        run = await self._runs.load_run(head.id)
        if run is None:
            return
        if run.state.is_final:
            await self._end(run)
            return
        await self._recount(head, most_chunks=_RECOUNTED_CHUNKS)
        await self._tell(run)
        run = await self._obey_window(run)
        if head.task.stop_percent is not None and await self._runs.stop_if_it_fails(
            head.id, stop_after=head.task.stop_after, stop_percent=head.task.stop_percent
        ):
            _log.warning("run_stopped_itself", run=head.id, task=head.task.id)
        elif run.state is RunState.RUNNING:
            await self._runs.wake(head.id, now_ms=self._clock_ms())
            chunks = await self._runs.queue_chunks(
                head.id, now_ms=self._clock_ms(), stale_ms=_QUEUE_STALE_MS, most=QUEUED_CHUNKS
            )
            for chunk in chunks:
                await self._queue.add(head.id, chunk)
        await self._time_out(head)
        if run.is_planned and not run.state.is_final:
            await self._expire(run)

    async def _end(self, run: Run) -> None:
        """Tell and close a run that is over, unless its devices say that it is not."""
        if run.state is RunState.CANCELLED:
            await self._cancel_devices(run.head)
        if not await self._recount(run.head, most_chunks=_RECOUNTED_CHUNKS_AT_END):
            return
        counted = await self._runs.load_run(run.head.id)
        if counted is not None and counted.state.is_final and await self._tell(counted):
            await self._runs.close(run.head)

    async def _recount(self, head: RunHead, *, most_chunks: int) -> bool:
        """Whether nothing is left to count."""
        recount = await self._runs.recount(
            head.id, now_ms=self._clock_ms(), every_ms=RECOUNT_EVERY_MS, most_chunks=most_chunks
        )
        if recount.mended:
            self.mended += len(recount.mended)
            wrong = {name: f"{found or 0} stood for {counted}" for name, (found, counted) in recount.mended.items()}
            _log.error("run_counters_mended", run=head.id, task=head.task.id, counters=wrong)
        return recount.is_done

    async def _tell(self, run: Run) -> bool:
        """Whether nothing is left to tell: another worker may be at it, and may be lost with it."""
        if run.state not in _TOLD:
            return True
        is_news = await self._runs.is_news(run.head.id, run.state, now_ms=self._clock_ms())
        if is_news:
            await self._notices.add(
                f"run_{run.state.value}",
                {
                    "run": run.head.id,
                    "task": run.head.task.id,
                    "name": run.head.task.name,
                    "reason": run.reason,
                    "counters": {outcome.value: count for outcome, count in run.counters.items()},
                    "at_ms": self._clock_ms(),
                },
            )
            await self._runs.note_told(run.head.id, run.state)
        return is_news is not None

    async def _obey_window(self, run: Run) -> Run:
        window, now_ms = run.head.task.window, self._clock_ms()
        if window is None or run.state not in {RunState.RUNNING, RunState.WAITING}:
            return run
        opened = is_open(window, now_ms)
        if run.state is RunState.RUNNING and not opened:
            reason = f"Its window opens at {opening_text(window, now_ms)}."
            await self._runs.set_state(run.head, RunState.WAITING, of=[RunState.RUNNING], reason=reason, now_ms=now_ms)
        elif run.state is RunState.WAITING and opened and run.is_planned:
            await self._runs.set_state(run.head, RunState.RUNNING, of=[RunState.WAITING], reason="", now_ms=now_ms)
        return await self._runs.load_run(run.head.id) or run

    # ---- timeouts

    async def _time_out(self, head: RunHead) -> None:
        now_ms, timeout_ms = self._clock_ms(), head.task.timeout_s * 1000
        for chunk in await self._runs.load_due_chunks(head.id, now_ms=now_ms, limit=_DUE_AT_ONCE):
            late = [
                device
                for device in await self._runs.read_chunk(head.id, chunk)
                if is_under_way(device) and (device.code == UNDELIVERED or device.at_ms + timeout_ms <= now_ms)
            ]
            states = await self._devices.load_devices([device.identifier for device in late])
            rest = await self._note_proven(head, chunk, [*map(_Late, late, states)])
            late = await self._leave_absent(head, chunk, rest)
            await self._settle(head, chunk, late, Outcome.TIMED_OUT)
            await self._runs.set_next_deadline(head.id, chunk, now_ms=now_ms, timeout_ms=timeout_ms)

    async def _note_proven(self, head: RunHead, chunk: int, late: Sequence[_Late]) -> list[_Late]:
        """Close the offers of which the device's version says what became; the news may have been lost. The others."""
        proven: dict[tuple[Outcome, str], list[RunDevice]] = {}
        rest = []
        for device, state in late:
            decided = decide_report(state, state.versions.keys(), self._snapshots.current) if state is not None else ()
            found = [one for one in decided if isinstance(one, SettleOffer) and one.offer.run_id == head.id]
            if found:
                proven.setdefault((found[0].outcome, found[0].code), []).append(device)
            else:
                rest.append(_Late(device, state))
        for (outcome, code), devices in proven.items():
            await self._settle(head, chunk, devices, outcome, code)
        return rest

    async def _leave_absent(self, head: RunHead, chunk: int, late: Sequence[_Late]) -> list[RunDevice]:
        """Those that had their command, or are there and could have had it; the others are waited for.

        One that was waited for and is back gets its command again: the news of its coming may have been lost.
        """
        if self._connections is None:
            return [device for device, _ in late if device.code != UNDELIVERED]
        connections = await self._connections.load_connections([device.identifier for device, _ in late])
        now_ms = self._clock_ms()
        absent = {
            device.identifier
            for (device, state), connection in zip(late, connections, strict=True)
            if device.outcome is Outcome.OFFERED
            and state is not None
            and not is_online(state, connection, now_ms=now_ms)
        }
        if absent:
            await self._runs.note_undelivered(head.id, chunk, sorted(absent))
        there = [(device, state) for device, state in late if device.identifier not in absent]
        back = [device.identifier for device, state in there if device.code == UNDELIVERED and state is not None]
        if back:
            await self._runs.send_again(head.id, chunk, back, now_ms=now_ms)
        return [device for device, _ in there if device.identifier not in back]

    async def _expire(self, run: Run) -> None:
        """Wait no more for devices that did not come back."""
        started_ms, now_ms = run.started_at_ms, self._clock_ms()
        if started_ms is None or now_ms < started_ms + run.head.task.expires_s * 1000:
            return
        if all(outcome.is_final for outcome in run.counters):  # it is paused: its end is up to its operator
            return
        for chunk in range(await self._runs.count_chunks(run.head.id)):
            devices = [d for d in await self._runs.read_chunk(run.head.id, chunk) if not d.outcome.is_final]
            await self._settle(run.head, chunk, [d for d in devices if d.command_id], Outcome.TIMED_OUT)
            unsent = [d._replace(outcome=Outcome.TIMED_OUT, code="expired", at_ms=now_ms) for d in devices]
            await self._runs.move(run.head.id, chunk, unsent, now_ms=now_ms)

    async def _cancel_devices(self, head: RunHead) -> None:
        for chunk in range(await self._runs.count_chunks(head.id)):
            devices = await self._runs.read_chunk(head.id, chunk)
            open_devices = [device for device in devices if not device.outcome.is_final]
            sent = [device for device in open_devices if device.command_id]
            await self._settle(head, chunk, sent, Outcome.CANCELLED)
            unsent = [device._replace(outcome=Outcome.CANCELLED, code="") for device in open_devices]
            await self._runs.move(head.id, chunk, unsent, now_ms=self._clock_ms())

    async def _settle(
        self, head: RunHead, chunk: int, devices: Sequence[RunDevice], outcome: Outcome, code: str = ""
    ) -> None:
        """Close these devices' offers; one that was closed already has the outcome that it was closed with."""
        if not devices:
            return
        now_ms = self._clock_ms()
        closed = await self._offers.settle_offers(
            [(device.identifier, self._offer_of(head, device)) for device in devices],
            outcome,
            code=code,
            settled_at_ms=now_ms,
        )
        moves = []
        for device, is_closed in zip(devices, closed, strict=True):
            if is_closed:
                moves.append(device._replace(outcome=outcome, code=code, at_ms=now_ms))
            elif not (device.outcome is Outcome.PLANNED and device.failed_at_ms):  # it waits for its retry
                moves.append(await self._found_outcome(head, device))
        await self._runs.move(head.id, chunk, moves, now_ms=now_ms)

    async def _found_outcome(self, head: RunHead, device: RunDevice) -> RunDevice:
        """What the device's own history says; `cancelled` where it says nothing: it was forgotten with its offers."""
        for entry in await self._offers.load_history(device.identifier):
            if entry.offer.run_id == head.id and entry.settled_at_ms != device.failed_at_ms:
                return device._replace(outcome=entry.outcome, code=entry.code, at_ms=entry.settled_at_ms)
        return device._replace(outcome=Outcome.CANCELLED, code="forgotten", at_ms=self._clock_ms())

    def _offer_of(self, head: RunHead, device: RunDevice) -> OpenOffer:
        """As much of the offer as finds it."""
        firmware = self._snapshots.current.firmware.get(device.firmware_id)
        return OpenOffer(
            module=firmware.module if firmware is not None else head.task.module or DEFAULT_MODULE,
            firmware_id=device.firmware_id,
            version_attribute="",
            version="",
            from_version=device.from_version,
            command_ids=(device.command_id,),
            offered_at_ms=device.at_ms,
            run_id=head.id,
        )


def is_under_way(device: RunDevice) -> bool:
    """Whether its command left and it has no final outcome."""
    return not device.outcome.is_final and device.outcome not in {Outcome.PLANNED, Outcome.SENDING}
