"""Sending one chunk of a run: each device looked at again, its offer noted, then the command published.

A device has its command id and the outcome `sending` before its command leaves, so that whoever takes over after a kill
sends the same id again, and only to those. Nothing is sent to a device that has nothing newer any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import structlog

from ota_hook.child_messages import ChildName, child_command
from ota_hook.decide import OfferUpdate, StaySilent, decide_push, open_offer, push_rule
from ota_hook.dialect import Dialect
from ota_hook.identifiers import gateway_of, path_of
from ota_hook.messages import BadMessage, upgrade_command
from ota_hook.model import ChildForm, DeviceState, OpenOffer, Outcome
from ota_hook.packages.urls import package_url
from ota_hook.ports.catalogue import SnapshotSource
from ota_hook.ports.commands import CommandIdBlocks, Message, Publisher
from ota_hook.ports.devices import DeviceStore
from ota_hook.ports.offers import OfferStore
from ota_hook.ports.runs import RunStore
from ota_hook.rollout.schedule import is_open
from ota_hook.task import RunDevice, RunHead

BATCH: Final = 100
"""Devices that are `sending` at once: so many may be sent twice when a worker is killed."""
_ASK_AGAIN_S: Final = 1.0
_BROKER_PAUSE_S: Final = 1.0

_log = structlog.get_logger("ota_hook.rollout")


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """What the deployment fixed."""

    dialect: Dialect
    identity: Literal["username", "clientid"] = "username"
    http_base: str
    https_base: str | None = None


class _Command(NamedTuple):
    """What to publish, and the offer that it makes."""

    topic: str
    payload: bytes
    offer: OpenOffer


class _Reached(NamedTuple):
    """A device, and the type of the one that its commands go to: itself, or its gateway."""

    state: DeviceState
    speaking_type: str


class Sender:
    """Sends chunks; one per worker process. `worker` names it."""

    def __init__(
        self,
        options: SendOptions,
        *,
        worker: str,
        lease_ms: int,
        snapshots: SnapshotSource,
        devices: DeviceStore,
        offers: OfferStore,
        runs: RunStore,
        command_ids: CommandIdBlocks,
        publisher: Publisher,
        clock_ms: Callable[[], int],
    ) -> None:
        self._options = options
        self._worker = worker
        self._lease_ms = lease_ms
        self._snapshots = snapshots
        self._devices = devices
        self._offers = offers
        self._runs = runs
        self._command_ids = command_ids
        self._publisher = publisher
        self._clock_ms = clock_ms

    async def send_chunk(self, head: RunHead, chunk: int) -> None:
        """Send until every command of the chunk left, the run's pace or window stops it, or another has the chunk."""
        is_first, has_waited = True, False
        window = head.task.window
        while window is None or is_open(window, self._clock_ms()):
            taken = await self._runs.take(
                head.id,
                chunk,
                worker=self._worker,
                now_ms=self._clock_ms(),
                lease_ms=self._lease_ms,
                first_id=await self._command_ids.take_block(BATCH),
                most=BATCH,
                pacing=head.task.pacing,
                stop_after=head.task.stop_after if head.task.stop_percent is not None else 0,
                stop_percent=head.task.stop_percent or 0,
                is_first=is_first,
            )
            if taken.word == "held" and not has_waited:
                # By whoever was lost with this work a moment ago, or by one who is at it and goes on.
                has_waited = True
                await asyncio.sleep(taken.wait_ms / 1000)
                continue
            is_first = False
            if taken.word != "taken":
                return
            settled = await self._settled_already(head, taken.again)
            sending = [*(device for device in taken.again if device not in settled), *taken.devices]
            sent = [*settled.values(), *await self._send(head, chunk, sending)]
            if sent:
                await self._runs.mark_sent(
                    *(head.id, chunk, sent), now_ms=self._clock_ms(), timeout_ms=head.task.timeout_s * 1000
                )
            if sending and all(device.outcome is Outcome.PLANNED for device in sent):
                await asyncio.sleep(_BROKER_PAUSE_S)  # the broker takes nothing
            elif not taken.devices:
                await asyncio.sleep(min(taken.wait_ms / 1000, _ASK_AGAIN_S))

    async def _settled_already(self, head: RunHead, again: Sequence[RunDevice]) -> dict[RunDevice, RunDevice]:
        """Those of which an earlier worker's command has an outcome by now, with it."""
        settled = {}
        states = await self._devices.load_devices([device.identifier for device in again])
        for device, state in zip(again, states, strict=True):
            if state is not None and any(offer.run_id == head.id for offer in state.open_offers):
                continue
            for entry in await self._offers.load_history(device.identifier):
                if entry.offer.run_id == head.id:
                    if entry.settled_at_ms != device.failed_at_ms:  # else the one before its retry
                        settled[device] = device._replace(outcome=entry.outcome, code=entry.code)
                    break
        return settled

    async def _send(self, head: RunHead, chunk: int, devices: Sequence[RunDevice]) -> list[RunDevice]:
        """What became of each."""
        states = await self._devices.load_devices([device.identifier for device in devices])
        gateway_types = await self._load_gateway_types(devices)
        commands: list[tuple[RunDevice, _Command]] = []
        done: list[RunDevice] = []
        for device, state in zip(devices, states, strict=True):
            prepared = self._prepare(head, chunk, device, _reach(state, gateway_types))
            if isinstance(prepared, _Command):
                commands.append((device, prepared))
            else:
                done.append(prepared)
        known = await self._offers.record_offers([(device.identifier, c.offer) for device, c in commands])
        sending = [one for one, is_known in zip(commands, known, strict=True) if is_known]
        done += [
            device._replace(outcome=Outcome.SKIPPED, code="unknown_device")
            for (device, _), is_known in zip(commands, known, strict=True)
            if not is_known
        ]
        return done + await self._publish(head, sending)

    async def _load_gateway_types(self, devices: Sequence[RunDevice]) -> dict[str, str]:
        """The device type of each registered gateway of the children among them."""
        gateways = sorted({gateway_of(device.identifier) for device in devices if path_of(device.identifier)})
        states = await self._devices.load_devices(gateways) if gateways else []
        return {state.identifier: state.device_type for state in states if state is not None}

    def _prepare(
        self, head: RunHead, chunk: int, device: RunDevice, reached: _Reached | StaySilent
    ) -> _Command | RunDevice:
        """The command as a check would be answered now; else the device's outcome."""
        if isinstance(reached, StaySilent):
            return device._replace(outcome=Outcome.SKIPPED, code=reached.reason)
        state = reached.state
        decision = self._decide(head, state)
        if isinstance(decision, StaySilent):
            if decision.reason != "no_rule" and any(offer.run_id == head.id for offer in state.open_offers):
                return device._replace(outcome=Outcome.OFFERED)  # an earlier worker may have sent it: time will tell
            return device._replace(outcome=Outcome.SKIPPED, code=decision.reason)
        firmware, options = decision.firmware, self._options
        url = package_url(firmware, http_base=options.http_base, https_base=options.https_base)
        if url is None:
            return device._replace(outcome=Outcome.FAILED, code="no_https_base")
        command = upgrade_command(
            firmware, url=url, command_id=device.command_id, extras=decision.device_type.command_extras
        )
        try:
            topic, payload = self._address(reached, command, device.command_id)
        except BadMessage as exc:
            return device._replace(outcome=Outcome.FAILED, code=exc.reason)
        offer = open_offer(decision, device.command_id, offered_at_ms=self._clock_ms())
        return _Command(topic, payload, replace(offer, run_id=head.id, chunk=chunk))

    def _decide(self, head: RunHead, state: DeviceState) -> OfferUpdate | StaySilent:
        task, snapshot = head.task, self._snapshots.current
        if task.device_type not in (None, state.device_type):
            return StaySilent("type_differs")
        rule = push_rule(snapshot, state.device_type, task.version_attribute, task.module)
        return StaySilent("no_rule") if rule is None else decide_push(state, rule, snapshot)

    def _address(self, reached: _Reached, command: bytes, command_id: int) -> tuple[str, bytes]:
        """Where the command goes, and what its gateway gets instead where it is a child's."""
        push_topic, identity = self._options.dialect.push_topic, self._options.identity
        state, speaking_type = reached
        path = path_of(state.identifier)
        if not path:
            return push_topic(state.identifier, speaking_type, identity=identity), command
        form = state.form or ChildForm.default(len(path))
        topic = push_topic(gateway_of(state.identifier), speaking_type, identity=identity, family=form.family)
        child = ChildName(path, form.as_list or len(path) > 1)
        return topic, child_command(child, command, command_id=command_id)

    async def _publish(self, head: RunHead, commands: Sequence[tuple[RunDevice, _Command]]) -> list[RunDevice]:
        messages = [Message(command.topic, command.payload, 1) for _, command in commands]
        results = await self._publisher.publish_many(messages)
        problems = {str(problem) for problem in results if problem is not None}
        if problems:
            _log.warning("publish_failed", run=head.id, problem=min(problems), count=sum(map(bool, results)))
        return [
            device._replace(
                outcome=Outcome.OFFERED if problem is None else Outcome.PLANNED,
                firmware_id=command.offer.firmware_id,
                from_version=command.offer.from_version,
                code="",
            )
            for (device, command), problem in zip(commands, results, strict=True)
        ]


def _reach(state: DeviceState | None, gateway_types: Mapping[str, str]) -> _Reached | StaySilent:
    if state is None:
        return StaySilent("unknown_device")
    speaking = gateway_of(state.identifier)
    speaking_type = state.device_type if speaking == state.identifier else gateway_types.get(speaking)
    return StaySilent("unknown_gateway") if speaking_type is None else _Reached(state, speaking_type)
