"""Planning a run: which devices have something newer, as chunks of work.

The plan is written chunk by chunk with the place behind it, so that whoever goes on after a kill begins there; two that
plan at once can't write the same devices twice. It must not know how a store keeps it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from ota_hook.decide import OfferUpdate, decide_push, push_rule
from ota_hook.model import Outcome
from ota_hook.ports.catalogue import SnapshotSource
from ota_hook.ports.devices import DeviceStore
from ota_hook.ports.runs import PlanPosition, RunStore
from ota_hook.snapshot import Snapshot
from ota_hook.task import RunDevice, RunHead, RunState, Task

CHUNK_DEVICES: Final = 250
_LOADED_AT_ONCE: Final = 500

_Piece = tuple[int, list[RunDevice]]
"""The place behind what was looked at, and the devices that have something newer."""


class Planner:
    """Plans runs from the catalogue in force."""

    def __init__(
        self, snapshots: SnapshotSource, devices: DeviceStore, runs: RunStore, *, clock_ms: Callable[[], int]
    ) -> None:
        self._snapshots = snapshots
        self._devices = devices
        self._runs = runs
        self._clock_ms = clock_ms

    async def plan(self, head: RunHead) -> bool:
        """Plan, or go on planning. False where somebody else planned meanwhile, or the run is not to be planned."""
        position: PlanPosition | None = await self._runs.begin_plan(head, now_ms=self._clock_ms())
        if position is None or position.state is not RunState.PLANNING:
            return False
        chunk: list[RunDevice] = []
        cursor = position.cursor
        async with aclosing(self._pieces(head, position.cursor)) as pieces:
            async for cursor, devices in pieces:
                chunk += devices
                if len(chunk) >= CHUNK_DEVICES:
                    position = await self._runs.add_chunk(head.id, chunk, before=position, cursor=cursor)
                    if position is None:
                        return False
                    chunk = []
        if chunk:
            position = await self._runs.add_chunk(head.id, chunk, before=position, cursor=cursor)
            if position is None:
                return False
        return await self._runs.end_plan(head.id, position, now_ms=self._clock_ms())

    def _pieces(self, head: RunHead, cursor: int) -> AsyncGenerator[_Piece]:
        snapshot = self._snapshots.current
        chosen = head.devices if head.devices is not None else head.task.devices
        if chosen is not None:
            return self._among(chosen, head.task, snapshot, cursor)
        return self._everywhere(head.task, snapshot, cursor)

    async def _everywhere(self, task: Task, snapshot: Snapshot, first: int) -> AsyncGenerator[_Piece]:
        """Every device of the type, bucket by bucket; the place is that of the next bucket."""
        device_type = task.device_type or ""
        rule = push_rule(snapshot, device_type, task.version_attribute, task.module)
        index = snapshot.index(device_type, rule.module) if rule is not None else None
        if rule is None or index is None:
            return
        async with aclosing(self._devices.scan_buckets(first)) as buckets:
            async for number, blob in buckets:
                found = index.resolve_many(blob, device_type, rule.version_attribute)
                if found:
                    yield (
                        number + 1,
                        [
                            RunDevice(match.identifier, Outcome.PLANNED, match.firmware_id, match.current)
                            for match in found
                        ],
                    )

    async def _among(
        self, identifiers: tuple[str, ...], task: Task, snapshot: Snapshot, first: int
    ) -> AsyncGenerator[_Piece]:
        """Of these devices; the place is that in the list."""
        for start in range(first, len(identifiers), _LOADED_AT_ONCE):
            batch = identifiers[start : start + _LOADED_AT_ONCE]
            found = []
            for identifier, device in zip(batch, await self._devices.load_devices(batch), strict=True):
                if device is None or task.device_type not in (None, device.device_type):
                    continue
                rule = push_rule(snapshot, device.device_type, task.version_attribute, task.module)
                decision = None if rule is None else decide_push(device, rule, snapshot)
                if isinstance(decision, OfferUpdate):
                    found.append(RunDevice(identifier, Outcome.PLANNED, decision.firmware.id, decision.from_version))
            yield start + len(batch), found
