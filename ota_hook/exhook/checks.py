"""Events: a check is answered, progress is tracked; of a direct device and of a gateway's children.

Owns what an event is answered. Must not know what a firmware index is, nor how an answer is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from ota_hook.child_messages import ChildEvent, ChildName, child_of, form_of, parse_child_events
from ota_hook.decide import AnswerNoUpgrade, OfferUpdate, StaySilent, decide_check
from ota_hook.errors import DependencyError
from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.chunks import CHUNK_EVENT, Chunks
from ota_hook.exhook.commands import Commands, rewrite
from ota_hook.exhook.context import DeviceMessage, HookContext
from ota_hook.exhook.responses import Responses
from ota_hook.messages import BadMessage, Event, parse_json, read_event_name, read_events
from ota_hook.model import DeviceState, Family
from ota_hook.ports.device_messages import LoadedChildren
from ota_hook.progress import PROGRESS_EVENT, Said, read_progress

_DIRECT: Final = Family.DIRECT
_AT_A_TURN: Final = 100
"""So many children of a message are answered in one turn of the loop, which takes a few milliseconds."""


class _ChildCheck(NamedTuple):
    """A child's question."""

    identifier: str
    child: ChildName
    event: str


class _ChildrenAsked(NamedTuple):
    """The questions of one message, with what is known of the gateway and of each child."""

    message: DeviceMessage
    events: Sequence[ChildEvent]
    checks: Sequence[_ChildCheck]
    gateway: DeviceState
    children: Sequence[DeviceState | None]


class Checks:
    """One per process. `is_late` says whether a report of the device waits to be stored: what is stored is older than
    what it said last, and no answer is better than a wrong one.
    """

    def __init__(
        self, context: HookContext, commands: Commands, responses: Responses, *, is_late: Callable[[str], bool]
    ) -> None:
        self._context = context
        self._snapshots = context.snapshots
        self._devices = context.devices
        self._results = context.metrics.checks
        self._dialect = context.options.dialect
        self._rewrites = context.options.reply == "rewrite"
        self._commands = commands
        self._responses = responses
        self._chunks = Chunks(context, commands)
        self._is_late = is_late

    def take(self, message: DeviceMessage) -> bool:
        """Whether Redis was asked; then its reply answers the call."""
        address = message.address
        if address.family is not _DIRECT:
            return self._take_children(message)
        document = parse_json(message.publish.payload)
        if type(document) is dict:  # nearly all of them
            name = read_event_name(document)
            if name in self._snapshots.current.events and not self._is_late(address.device):
                self._devices.load_device(address.device, partial(self._device_loaded, message, (name,), 1))
                return True
            if name == CHUNK_EVENT:
                return self._chunks.take(message, address.device, Event(name, document))
        events = read_events(document)
        said: list[tuple[str, Said]] = []
        checks = [event.name for event in events if self._is_check(message, address.device, event, said)]
        self._track(said)
        if not checks or self._is_late(address.device):
            self._results["late_report"] += len(checks)
            self._responses.respond_when_loaded(address, events=len(events))
            return False
        self._devices.load_device(address.device, partial(self._device_loaded, message, checks, len(events)))
        return True

    async def close(self) -> None:
        """Answer what is under way."""
        await self._chunks.close()

    def _is_check(self, message: DeviceMessage, identifier: str, event: Event, said: list[tuple[str, Said]]) -> bool:
        """Progress is added to `said`: a later event may spoil the message."""
        if event.name in self._snapshots.current.events:
            return True
        if event.name == PROGRESS_EVENT:
            said.append((identifier, read_progress(event.document)))
        else:
            self._stay_silent("no_rule", message, identifier)
        return False

    def _stay_silent(self, reason: str, message: DeviceMessage, identifier: str, *, count: int = 1) -> None:
        self._results[reason] += count
        self._context.note_unused(reason, message, identifier=identifier)

    def _track(self, said: Sequence[tuple[str, Said]]) -> None:
        for identifier, one in said:
            self._context.offers.track_offer(identifier, one, at_ms=self._context.clock_ms())

    def _device_loaded(
        self,
        message: DeviceMessage,
        checks: Sequence[str],
        event_count: int,
        device: DeviceState | DependencyError | None,
    ) -> None:
        answer, address = IGNORE, message.address
        try:
            if isinstance(device, DependencyError):
                self._context.note_failure(device)
            else:
                snapshot = self._snapshots.current
                for event in checks:
                    for decision in decide_check(device, event, snapshot, topic_type=address.device_type):
                        if isinstance(decision, StaySilent):
                            self._stay_silent(decision.reason, message, address.device)
                        else:
                            speaking_type = decision.device_type.key
                            answer = self._answer(message, decision, speaking_type, answer, address.device)
                if snapshot.responds:
                    self._responses.respond(address, device, events=event_count)
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        self._context.finish(message, answer)

    def _answer(
        self,
        message: DeviceMessage,
        decision: OfferUpdate | AnswerNoUpgrade,
        speaking_type: str,
        answer: bytes,
        identifier: str,
        *,
        child: ChildName | None = None,
    ) -> bytes:
        """One more command, its offer noted: the event rewritten into it, or published where it is `answer` already."""
        rewrites = answer is IGNORE and self._rewrites
        try:
            topic = self._dialect.answer_topic(message.address, speaking_type)
            if topic is None or not (rewrites or self._commands.can_publish(topic)):
                return answer
            command = self._commands.make(decision, identifier, child=child)
        except BadMessage as exc:
            self._context.metrics.bad_messages[exc.reason] += 1
            return answer
        except DependencyError as exc:
            self._context.note_failure(exc)
            return answer
        if command is None:
            return answer
        # A lost `upgrade: false` is asked for again, and at qos 1 each would cost an ack's round trip.
        qos = min(message.publish.qos, 2) if isinstance(decision, OfferUpdate) else 0
        if rewrites:
            return rewrite(topic, command, qos)
        self._commands.publish(topic, command, max(qos, 1) if isinstance(decision, OfferUpdate) else 0)
        return answer

    # ---- children

    def _take_children(self, message: DeviceMessage) -> bool:
        gateway = message.address.device
        events = parse_child_events(message.publish.payload)
        named = [(child_of(gateway, event.child), event) for event in events]
        if len(events) == 1 and events[0].event.name == CHUNK_EVENT:
            return self._chunks.take(message, named[0][0], events[0].event)
        checks, said = [], list[tuple[str, Said]]()
        for identifier, (child, event) in named:
            if not self._is_check(message, identifier, event, said):
                continue
            if self._is_late(identifier):
                self._results["late_report"] += 1
                continue
            checks.append(_ChildCheck(identifier, child, event.name))
        self._track(said)
        if not checks:
            self._responses.respond_when_loaded(message.address, children=[event.child for event in events])
            return False
        loaded = partial(self._children_loaded, message, checks, events)
        self._context.children.load_children(gateway, [check.identifier for check in checks], loaded)
        return True

    def _children_loaded(
        self,
        message: DeviceMessage,
        checks: Sequence[_ChildCheck],
        events: Sequence[ChildEvent],
        loaded: LoadedChildren | DependencyError,
    ) -> None:
        if isinstance(loaded, DependencyError):
            self._context.note_failure(loaded)
        elif loaded.gateway is None:
            self._stay_silent("unknown_gateway", message, message.address.device, count=len(checks))
        elif message.address.device_type not in (None, loaded.gateway.device_type):
            self._stay_silent("type_differs", message, message.address.device, count=len(checks))
        else:
            self._answer_children(_ChildrenAsked(message, events, checks, loaded.gateway, loaded.children), 0, IGNORE)
            return
        self._context.finish(message, IGNORE)

    def _answer_children(self, asked: _ChildrenAsked, start: int, answer: bytes) -> None:
        """Answer those from `start` on, some in each turn of the loop: others wait for their answers too."""
        message, end = asked.message, start + _AT_A_TURN
        try:
            for check, device in zip(asked.checks[start:end], asked.children[start:end], strict=True):
                answer = self._answer_child(message, asked.gateway, check, device, answer)
            if end < len(asked.checks):
                asyncio.get_running_loop().call_soon(self._answer_children, asked, end, answer)
                return
            if self._snapshots.current.responds:
                children = [event.child for event in asked.events]
                self._responses.respond(message.address, asked.gateway, children=children)
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        self._context.finish(message, answer)

    def _answer_child(
        self,
        message: DeviceMessage,
        gateway: DeviceState,
        check: _ChildCheck,
        device: DeviceState | None,
        answer: bytes,
    ) -> bytes:
        identifier, child, event = check
        for decision in decide_check(device, event, self._snapshots.current):
            if isinstance(decision, StaySilent):
                self._stay_silent(decision.reason, message, identifier)
            else:
                speaking_type = gateway.device_type
                answer = self._answer(message, decision, speaking_type, answer, identifier, child=child)
        if device is not None:
            form = form_of(message.address.family, child).unless_default(len(child.path))
            if device.form != form:
                self._context.children.note_form(identifier, form_of(message.address.family, child))
        return answer
