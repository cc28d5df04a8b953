"""Which ExHook call does what: bytes in, bytes out, whatever listener carries them.

It reads the message, asks `decide` and carries the decisions out through the ports. It must not know gRPC or Redis.
Every call is answered exactly once, whatever happens: the broker holds the publishing device until then. Nothing here
waits: an answer that needs Redis comes in a callback, and the ports keep the budget.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import structlog
from google.protobuf.message import DecodeError

from ota_hook.decide import (
    AnswerNoUpgrade,
    CountAttempt,
    OfferUpdate,
    StaySilent,
    decide_check,
    decide_report,
    open_offer,
)
from ota_hook.dialect import (
    Address,
    BadMessage,
    Channel,
    Dialect,
    is_publishable,
    no_upgrade_command,
    parse_attributes,
    parse_event,
    upgrade_command,
)
from ota_hook.errors import DependencyError
from ota_hook.exhook._codec import IGNORE, Publish, read_publish, write_rewrite
from ota_hook.exhook.exhook_pb2 import (
    ClientConnectedRequest,
    ClientDisconnectedRequest,
    ClientInfo,
    HookSpec,
    LoadedResponse,
    MessageAckedRequest,
    MessageDroppedRequest,
    ProviderLoadedRequest,
)
from ota_hook.exhook.late_reports import LateReports
from ota_hook.metrics import HookMetrics
from ota_hook.model import DeviceState, Outcome, is_direct_identifier
from ota_hook.packages.urls import package_url
from ota_hook.ports.catalogue import SnapshotSource
from ota_hook.ports.commands import CommandIds, Publisher
from ota_hook.ports.device_messages import DeviceStates, OpenOffers, Presence, Report
from ota_hook.progress import PROGRESS_EVENT, UNDELIVERED, Said, read_command, read_progress, read_reply

PACKAGES: Final = ("emqx.exhook.v1", "emqx.exhook.v2", "emqx.exhook.v3")
SERVICE: Final = "HookProvider"

EMPTY_SUCCESS: Final = b""

_VALUED_METHODS: Final = frozenset({"OnClientAuthenticate", "OnClientAuthorize", "OnClientCheckAcl"})
_NOTIFICATIONS: Final = frozenset(
    {
        "OnProviderUnloaded",
        "OnClientConnect",
        "OnClientConnack",
        "OnClientConnected",
        "OnClientDisconnected",
        "OnClientSubscribe",
        "OnClientUnsubscribe",
        "OnSessionCreated",
        "OnSessionSubscribed",
        "OnSessionUnsubscribed",
        "OnSessionResumed",
        "OnSessionDiscarded",
        "OnSessionTakenover",
        "OnSessionTakenovered",
        "OnSessionTerminated",
        "OnMessageDelivered",
        "OnMessageDropped",
        "OnMessageAcked",
    }
)
METHODS: Final = frozenset({"OnProviderLoaded", "OnMessagePublish"}) | _VALUED_METHODS | _NOTIFICATIONS
"""Every RPC name of the three packages; OnClientCheckAcl and OnSessionTakenovered are v1's."""

_PRESENCE_HOOKS: Final = ("client.connected", "session.resumed", "client.disconnected")
_ATTRIBUTES: Final = Channel.ATTRIBUTES  # a look into an enum costs more than a look at a name
_COMMAND_REPLY: Final = Channel.COMMAND_REPLY
_NODE_MAX_CHARS: Final = 256
_MAX_BACKGROUND_PUBLISHES: Final = 1_000
_CLOSE_S: Final = 2.0
_FUTURE_MS: Final = 300_000
"""A broker's clock may be so far ahead of ours; a report from later than that counts as sent now. Else one jump of a
clock would make every true report after it look stale."""

Respond = Callable[[Any, bytes], None]
"""Takes a call, as the listener named it, and its answer."""

_Asked = tuple[Respond, object, float]
"""Whom to answer, which call, and since when Redis is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookOptions:
    """What the deployment fixed. A device's payload above `payload_bytes` is left alone.

    `presence`: the broker tells who connects and disconnects, which costs each a round trip.
    """

    dialect: Dialect
    identity: Literal["username", "clientid"] = "username"
    reply: Literal["rewrite", "publish"] = "rewrite"
    payload_bytes: int = 256 * 1024
    presence: bool = True
    http_base: str
    https_base: str | None = None


class HookProvider:
    """One per process; for one event loop, any number of calls at a time."""

    def __init__(
        self,
        options: HookOptions,
        *,
        snapshots: SnapshotSource,
        devices: DeviceStates,
        offers: OpenOffers,
        presence: Presence,
        command_ids: CommandIds,
        publisher: Publisher | None,
        metrics: HookMetrics,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._options = options
        self._dialect = options.dialect
        self._leads = options.dialect.leads
        self._by_username = options.identity == "username"
        self._snapshots = snapshots
        self._devices = devices
        self._offers = offers
        self._presence = presence
        self._command_ids = command_ids
        self._publisher = publisher
        self._metrics = metrics
        self._calls = metrics.calls
        self._clock_ms = clock_ms
        self._log = structlog.get_logger("ota_hook.provider")
        self._sampled = _Sampler()
        self._background: set[asyncio.Task[None]] = set()
        self._late_reports = LateReports(self._store_late, metrics)
        self._followers: dict[str, Callable[[bytes], None]] = {
            "OnMessageAcked": self._on_acked,
            "OnMessageDropped": self._on_dropped,
            "OnClientConnected": self._on_come,
            "OnSessionResumed": self._on_come,
            "OnClientDisconnected": self._on_gone,
        }

    # ---- calls

    def take(self, method: str, request: bytes, respond: Respond, call: object = None) -> bytes | None:
        """Take one call; `method` is a name of METHODS, without package.

        Returns the answer where it is there at once. Else None, and `respond(call, answer)` is called once, within the
        budget. Never raises.
        """
        self._calls[method] += 1
        if method == "OnMessagePublish":
            return self._on_publish(request, respond, call)
        if method == "OnProviderLoaded":
            return self._hooks(request)
        if (follow := self._followers.get(method)) is not None:
            self._follow(follow, request)
            return EMPTY_SUCCESS
        # Authentication and authorization are never registered; IGNORE leaves them as the broker decided.
        return IGNORE if method in _VALUED_METHODS else EMPTY_SUCCESS

    async def handle(self, method: str, request: bytes) -> bytes:
        """`take` for listeners that wait."""
        later: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answer = self.take(method, request, lambda _, late: None if later.done() else later.set_result(late))
        return answer if answer is not None else await later

    async def close(self) -> None:
        """Give late reports and commands being published a moment; what is still under way then is dropped."""
        await self._late_reports.close()
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=_CLOSE_S)
            for task in late:
                task.cancel()

    def _hooks(self, request: bytes) -> bytes:
        try:
            broker = ProviderLoadedRequest.FromString(request)
            self._log.info("broker_attached", node=broker.meta.node, version=broker.broker.version)
            if self._options.presence and broker.meta.node:
                self._presence.attach(broker.meta.node[:_NODE_MAX_CHARS], at_ms=self._clock_ms())
        except DecodeError:
            self._log.warning("broker_attached", problem="its request can't be decoded")
        commands = [self._dialect.command_filter]
        specs = [
            HookSpec(name="message.publish", topics=self._dialect.topic_filters),
            HookSpec(name="message.acked", topics=commands),
            HookSpec(name="message.dropped", topics=commands),
        ]
        if self._options.presence:
            specs += [HookSpec(name=name) for name in _PRESENCE_HOOKS]
        return LoadedResponse(hooks=specs).SerializeToString()

    # ---- what the broker tells

    def _follow(self, follow: Callable[[bytes], None], request: bytes) -> None:
        try:
            follow(request)
        except DecodeError:
            self._metrics.bad_messages["not_protobuf"] += 1
        except Exception:  # noqa: BLE001 - logged there
            self._note_fault()

    def _on_acked(self, request: bytes) -> None:
        """A device has its command. Others may listen to the topic as well: their acks say nothing."""
        acked = MessageAckedRequest.FromString(request)
        client, topic = acked.clientinfo, acked.message.topic
        device = self._dialect.commanded_device(topic, clientid=client.clientid, username=client.username)
        command_id = read_command(acked.message.payload)
        if device is not None and command_id is not None and device == self._identity_of(client):
            said = Said(command_id, None, Outcome.DELIVERED, "")
            self._offers.track_offer(device, said, at_ms=self._clock_ms())

    def _on_dropped(self, request: bytes) -> None:
        """Nobody was there for a command."""
        message = MessageDroppedRequest.FromString(request).message
        device = self._dialect.commanded_device(message.topic, clientid="", username="")
        command_id = read_command(message.payload)
        if device is not None and command_id is not None:
            said = Said(command_id, None, Outcome.OFFERED, UNDELIVERED)
            self._offers.track_offer(device, said, at_ms=self._clock_ms())

    def _on_come(self, request: bytes) -> None:
        # Connected and resumed are alike on the wire. A persistent session says `resumed` and not that it subscribes.
        client = ClientConnectedRequest.FromString(request).clientinfo
        device = self._identity_of(client)
        if is_direct_identifier(device):
            self._presence.come(device, _connection_of(client), at_ms=self._clock_ms())

    def _on_gone(self, request: bytes) -> None:
        client = ClientDisconnectedRequest.FromString(request).clientinfo
        device = self._identity_of(client)
        if is_direct_identifier(device):
            self._presence.go(device, _connection_of(client))

    def _identity_of(self, client: ClientInfo) -> str:
        return client.username if self._by_username else client.clientid

    def _finish(self, asked: _Asked, answer: bytes) -> None:
        respond, call, asked_s = asked
        self._metrics.observe_answer(time.perf_counter() - asked_s)
        respond(call, answer)

    def _note_fault(self) -> None:
        # A fault of ours must not hold a device or fail the broker's call; it is loud in the log and the metric.
        self._metrics.unanswered["fault"] += 1
        self._log.exception("provider_fault")

    def _failed(self, error: DependencyError) -> None:
        self._metrics.unanswered["dependency"] += 1
        if self._sampled.take("dependency"):
            self._log.warning("dependency_failed", problem=str(error))

    def _on_publish(self, request: bytes, respond: Respond, call: object) -> bytes | None:
        publish = read_publish(request)
        if publish is None:
            self._metrics.bad_messages["not_protobuf"] += 1
            return IGNORE
        topic = publish.topic
        if not topic.startswith(self._leads):
            return IGNORE
        clientid, username = publish.clientid, publish.username
        identity = username if self._by_username else clientid
        try:
            address = self._dialect.recognise(topic, identity=identity, clientid=clientid, username=username)
            if address is None:
                return IGNORE
            if len(publish.payload) > self._options.payload_bytes:
                raise BadMessage("too_large")  # noqa: TRY301 - the one way out for what a device did
            if address.channel is _COMMAND_REPLY:
                self._note_reply(address, publish)
                return IGNORE
            asked = (respond, call, time.perf_counter())
            ask = self._ask_about_report if address.channel is _ATTRIBUTES else self._ask_about_check
            return None if ask(address, publish, asked) else IGNORE
        except BadMessage as exc:
            self._metrics.bad_messages[exc.reason] += 1
            if self._sampled.take(exc.reason):
                self._log.warning("bad_message", reason=exc.reason, device=identity[:128], topic=topic[:256])
        except Exception:  # noqa: BLE001 - logged there
            self._note_fault()
        return IGNORE

    # ---- reports

    def _ask_about_report(self, address: Address, publish: Publish, asked: _Asked) -> bool:
        """Whether Redis was asked; then its reply answers the call."""
        snapshot = self._snapshots.current
        parsed = parse_attributes(publish.payload, snapshot.kept_attributes)
        if parsed.bad_values:
            self._metrics.bad_messages["bad_version"] += parsed.bad_values
        if not parsed.versions:
            self._metrics.reports["no_version"] += 1
            return False
        now_ms = self._clock_ms()
        sent_ms = publish.timestamp_ms
        registering = snapshot.types.get(address.device_type) if address.device_type is not None else None
        report = Report(
            device=address.device,
            versions=parsed.versions,
            reported_at_ms=sent_ms if 0 < sent_ms <= now_ms + _FUTURE_MS else now_ms,
            topic_type=address.device_type,
            register=registering is not None and registering.auto_register,
        )
        if address.device in self._late_reports:
            self._late_reports.add(report)
            return False
        self._devices.store_report(report, snapshot.kept_by_type, partial(self._report_stored, asked, report))
        return True

    def _report_stored(self, asked: _Asked, report: Report, device: DeviceState | DependencyError | None) -> None:
        try:
            if isinstance(device, DependencyError):
                # The broker acknowledges the report to the device all the same, so it is kept.
                self._failed(device)
                self._late_reports.add(report)
            else:
                self._settle(report, device)
        except Exception:  # noqa: BLE001 - logged there
            self._note_fault()
        self._finish(asked, IGNORE)

    def _store_late(self, report: Report, settled: Callable[[bool], None]) -> None:
        def stored(device: DeviceState | DependencyError | None) -> None:
            try:
                if not isinstance(device, DependencyError):
                    self._settle(report, device)
            finally:  # a fault is the pipe's to log; the report is stored all the same
                settled(not isinstance(device, DependencyError))

        self._devices.store_report(report, self._snapshots.current.kept_by_type, stored)

    def _settle(self, report: Report, device: DeviceState | None) -> None:
        """Note what a stored report proves. `device` None: nobody that is registered sent it."""
        if device is None:
            self._metrics.reports["unknown_device"] += 1
            return
        self._metrics.reports["kept"] += 1
        if not device.open_offers:
            return
        for decision in decide_report(device, report.versions.keys(), self._snapshots.current):
            if isinstance(decision, CountAttempt):
                self._offers.count_attempt(device.identifier, decision.offer, at_ms=self._clock_ms())
                continue
            self._offers.settle_offer(
                device.identifier,
                decision.offer,
                decision.outcome,
                code=decision.code,
                settled_at_ms=self._clock_ms(),
            )
            self._metrics.settled_offers[decision.outcome.value] += 1

    # ---- replies and progress

    def _note_reply(self, address: Address, publish: Publish) -> None:
        said = read_reply(publish.payload)
        if said is not None:
            self._offers.track_offer(address.device, said, at_ms=self._clock_ms())

    # ---- checks

    def _ask_about_check(self, address: Address, publish: Publish, asked: _Asked) -> bool:
        """Whether Redis was asked; then its reply answers the call."""
        event = parse_event(publish.payload)
        if event == PROGRESS_EVENT:
            self._offers.track_offer(address.device, read_progress(publish.payload), at_ms=self._clock_ms())
            return False
        if event not in self._snapshots.current.events:
            self._metrics.checks["no_rule"] += 1
            return False
        if address.device in self._late_reports:
            # What is stored is older than what the device said last: no answer is better than a wrong one.
            self._metrics.checks["late_report"] += 1
            return False
        loaded = partial(self._device_loaded, asked, address, event, publish.qos)
        self._devices.load_device(address.device, loaded)
        return True

    def _device_loaded(
        self,
        asked: _Asked,
        address: Address,
        event: str,
        qos: int,
        device: DeviceState | DependencyError | None,
    ) -> None:
        answer = IGNORE
        try:
            if isinstance(device, DependencyError):
                self._failed(device)
            else:
                answer = self._answer_check(address, event, qos, device)
        except Exception:  # noqa: BLE001 - logged there
            self._note_fault()
        self._finish(asked, answer)

    def _answer_check(self, address: Address, event: str, qos: int, device: DeviceState | None) -> bytes:
        """The event rewritten into the first answer; the others are published."""
        answer = IGNORE
        for decision in decide_check(device, event, self._snapshots.current, topic_type=address.device_type):
            if isinstance(decision, StaySilent):
                self._metrics.checks[decision.reason] += 1
                continue
            try:
                topic = self._dialect.command_topic(address, decision.device_type.key)
                command = self._command(decision, address.device)
            except BadMessage as exc:
                self._metrics.bad_messages[exc.reason] += 1
                continue
            except DependencyError as exc:
                self._failed(exc)
                continue
            if command is None:
                continue
            is_offer = isinstance(decision, OfferUpdate)
            if self._options.reply == "rewrite" and answer is IGNORE:
                answer = rewrite(topic, command, min(qos, 2) if is_offer else 0)
            else:
                self._publish(topic, command, max(min(qos, 2), 1) if is_offer else 0)
        return answer

    def _command(self, decision: OfferUpdate | AnswerNoUpgrade, device: str) -> bytes | None:
        """The command's bytes, its offer noted; None where the firmware has no address that this process can give."""
        if isinstance(decision, AnswerNoUpgrade):
            command_id = self._command_ids.next_id()
            self._metrics.checks[decision.reason] += 1
            return no_upgrade_command(decision.module, command_id=command_id)
        firmware = decision.firmware
        url = package_url(firmware, http_base=self._options.http_base, https_base=self._options.https_base)
        if url is None:
            self._metrics.checks["no_https_base"] += 1
            if self._sampled.take("no_https_base"):
                self._log.error(
                    "no_https_base", firmware=firmware.id, mend="set OTA_HOOK_PUBLIC_URL_HTTPS for the hook"
                )
            return None
        command_id = self._command_ids.next_id()
        self._offers.record_offer(device, open_offer(decision, command_id, offered_at_ms=self._clock_ms()))
        self._metrics.checks["offer"] += 1
        return upgrade_command(firmware, url=url, command_id=command_id, extras=decision.device_type.command_extras)

    # ---- commands that are published

    def _publish(self, topic: str, command: bytes, qos: int) -> None:
        """Send what can't ride on the event itself; the broker isn't held for it, and the device asks again if lost."""
        if self._publisher is None or len(self._background) >= _MAX_BACKGROUND_PUBLISHES:
            self._metrics.unanswered["no_publisher"] += 1
            return
        self._spawn(self._publish_now(self._publisher, topic, command, qos))

    async def _publish_now(self, publisher: Publisher, topic: str, command: bytes, qos: int) -> None:
        try:
            await publisher.publish(topic, command, qos=qos)
        except DependencyError as exc:
            self._metrics.unanswered["publisher"] += 1
            if self._sampled.take("publisher"):
                self._log.warning("publish_failed", problem=str(exc))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def rewrite(topic: str, payload: bytes, qos: int) -> bytes:
    """The answer that turns the event into `payload` on `topic`.

    Checked before it leaves: the broker does not survive a topic with a wildcard, and takes a qos above 2 for 2.
    """
    if not is_publishable(topic) or not 0 <= qos <= 2:
        raise BadMessage("topic_unusable")
    return write_rewrite(topic, payload, qos)


def _connection_of(client: ClientInfo) -> str:
    """Names one connection: connects and disconnects of several may arrive out of order, across nodes."""
    return f"{client.clientid}\0{client.node}\0{client.peerport}"


class _Sampler:
    """At most one log line a second per reason, so that a misbehaving fleet can't fill a disk."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def take(self, reason: str) -> bool:
        now = time.monotonic()
        if now < self._next.get(reason, 0.0):
            return False
        self._next[reason] = now + 1.0
        return True
