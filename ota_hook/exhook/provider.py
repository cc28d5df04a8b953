"""Which ExHook call does what: bytes in, bytes out, whatever listener carries them.

It reads the message, asks `decide` and carries the decisions out through the ports. It must not know gRPC or Redis.
Every call is answered, whatever happens: the broker holds the publishing device until then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Literal

import structlog
from google.protobuf.message import DecodeError

from ota_hook.decide import AnswerNoUpgrade, OfferUpdate, StaySilent, decide_check, decide_report
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
from ota_hook.exhook.exhook_pb2 import (
    HookSpec,
    LoadedResponse,
    Message,
    MessagePublishRequest,
    ProviderLoadedRequest,
    ValuedResponse,
)
from ota_hook.exhook.late_reports import LateReports, Report
from ota_hook.metrics import HookMetrics
from ota_hook.model import OpenOffer
from ota_hook.packages.urls import package_url
from ota_hook.ports import CommandIds, DeviceStates, OpenOffers, Publisher, SnapshotSource

PACKAGES: Final = ("emqx.exhook.v1", "emqx.exhook.v2", "emqx.exhook.v3")
SERVICE: Final = "HookProvider"

EMPTY_SUCCESS: Final = b""
IGNORE: Final = ValuedResponse(type=ValuedResponse.IGNORE).SerializeToString()

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

_MAX_BACKGROUND_PUBLISHES: Final = 1_000
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HookOptions:
    """What the deployment fixed. `answer_budget_ms`: after so long a call is answered with IGNORE."""

    dialect: Dialect
    identity: Literal["username", "clientid"] = "username"
    reply: Literal["rewrite", "publish"] = "rewrite"
    http_base: str
    https_base: str | None = None
    answer_budget_ms: int = 50


class HookProvider:
    """One per process; safe for any number of concurrent calls on one event loop."""

    def __init__(
        self,
        options: HookOptions,
        *,
        snapshots: SnapshotSource,
        devices: DeviceStates,
        offers: OpenOffers,
        command_ids: CommandIds,
        publisher: Publisher | None,
        metrics: HookMetrics,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._options = options
        self._snapshots = snapshots
        self._devices = devices
        self._offers = offers
        self._command_ids = command_ids
        self._publisher = publisher
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._log = structlog.get_logger("ota_hook.provider")
        self._sampled = _Sampler()
        self._background: set[asyncio.Task[None]] = set()
        self._late_reports = LateReports(self._store_report, metrics)

    async def handle(self, method: str, request: bytes) -> bytes:
        """Answer one call; `method` is a name of METHODS, without package. Never raises, never outlasts the budget."""
        self._metrics.calls.labels(method).inc()
        if method == "OnMessagePublish":
            return await self._answer_publish(request)
        if method == "OnProviderLoaded":
            return self._hooks(request)
        # Authentication and authorization are never registered; IGNORE leaves them as the broker decided.
        return IGNORE if method in _VALUED_METHODS else EMPTY_SUCCESS

    async def close(self) -> None:
        """Give late reports and commands that are being published a moment; what is still under way then is dropped."""
        await self._late_reports.close()
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=_CLOSE_S)
            for task in late:
                task.cancel()

    def _hooks(self, request: bytes) -> bytes:
        try:
            broker = ProviderLoadedRequest.FromString(request)
            self._log.info("broker_attached", node=broker.meta.node, version=broker.broker.version)
        except DecodeError:
            self._log.warning("broker_attached", problem="its request can't be decoded")
        spec = HookSpec(name="message.publish", topics=self._options.dialect.topic_filters)
        return LoadedResponse(hooks=[spec]).SerializeToString()

    async def _answer_publish(self, request: bytes) -> bytes:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._options.answer_budget_ms / 1000):
                return await self._on_publish(MessagePublishRequest.FromString(request).message)
        except TimeoutError:
            self._metrics.unanswered.labels("budget").inc()
        except DependencyError as exc:
            self._metrics.unanswered.labels("dependency").inc()
            if self._sampled.take("dependency"):
                self._log.warning("dependency_failed", problem=str(exc))
        except DecodeError:
            self._metrics.bad_messages.labels("not_protobuf").inc()
        except Exception:  # noqa: BLE001 - see below
            # A fault of ours must not hold a device or fail the broker's call; it is loud in the log and the metric.
            self._metrics.unanswered.labels("fault").inc()
            self._log.exception("provider_fault")
        finally:
            self._metrics.answer_seconds.observe(time.perf_counter() - started)
        return IGNORE

    async def _on_publish(self, message: Message) -> bytes:
        username = message.headers.get("username", "")
        clientid = getattr(message, "from")
        identity = username if self._options.identity == "username" else clientid
        try:
            address = self._options.dialect.recognise(
                message.topic, identity=identity, clientid=clientid, username=username
            )
            if address is None:
                return IGNORE
            if address.channel is Channel.ATTRIBUTES:
                await self._on_report(address, message)
                return IGNORE
            return await self._on_event(address, message)
        except BadMessage as exc:
            self._metrics.bad_messages.labels(exc.reason).inc()
            if self._sampled.take(exc.reason):
                self._log.warning("bad_message", reason=exc.reason, device=identity[:128], topic=message.topic[:256])
            return IGNORE

    async def _on_report(self, address: Address, message: Message) -> None:
        parsed = parse_attributes(message.payload, self._snapshots.current.kept_attributes)
        if parsed.bad_values:
            self._metrics.bad_messages.labels("bad_version").inc(parsed.bad_values)
        if not parsed.versions:
            self._metrics.reports.labels("no_version").inc()
            return
        report = Report(
            device=address.device,
            versions=parsed.versions,
            reported_at_ms=message.timestamp or self._clock_ms(),
            topic_type=address.device_type,
        )
        if address.device in self._late_reports:
            self._late_reports.add(report)
            return
        try:
            await self._store_report(report)
        except (asyncio.CancelledError, DependencyError):
            # The budget ran out, or Redis is away. The device was told that its report arrived, so it is kept.
            self._late_reports.add(report)
            raise

    async def _store_report(self, report: Report) -> None:
        """Keep the versions and settle what they prove. Safe to repeat."""
        snapshot = self._snapshots.current
        registering = snapshot.types.get(report.topic_type) if report.topic_type is not None else None
        device = await self._devices.store_report(
            report.device,
            report.versions,
            reported_at_ms=report.reported_at_ms,
            kept_by_type=snapshot.kept_by_type,
            expected_type=report.topic_type,
            register=registering is not None and registering.auto_register,
        )
        if device is None:
            self._metrics.reports.labels("unknown_device").inc()
            return
        self._metrics.reports.labels("kept").inc()
        for decision in decide_report(device, report.versions.keys(), snapshot):
            settled = await self._offers.settle_offer(
                device.identifier,
                decision.offer,
                decision.outcome,
                code=decision.code,
                settled_at_ms=self._clock_ms(),
            )
            if settled:
                self._metrics.settled_offers.labels(decision.outcome.value).inc()

    async def _on_event(self, address: Address, message: Message) -> bytes:
        event = parse_event(message.payload)
        if address.device in self._late_reports:
            # What is stored is older than what the device said last: no answer is better than a wrong one.
            self._metrics.checks.labels("late_report").inc()
            return IGNORE
        device = await self._devices.load_device(address.device)
        answer = IGNORE
        for decision in decide_check(device, event, self._snapshots.current, topic_type=address.device_type):
            if isinstance(decision, StaySilent):
                self._metrics.checks.labels(decision.reason).inc()
                continue
            topic = self._options.dialect.command_topic(address, decision.device_type.key)
            command = await self._command(decision, address.device)
            if command is None:
                continue
            qos = min(message.qos, 2) if isinstance(decision, OfferUpdate) else 0
            if self._options.reply == "rewrite" and answer is IGNORE:
                answer = rewrite(topic, command, qos)
            else:
                self._publish(topic, command, max(qos, 1) if isinstance(decision, OfferUpdate) else 0)
        return answer

    async def _command(self, decision: OfferUpdate | AnswerNoUpgrade, device: str) -> bytes | None:
        """The command's bytes, its offer noted; None where the firmware has no address that this process can give."""
        if isinstance(decision, AnswerNoUpgrade):
            self._metrics.checks.labels(decision.reason).inc()
            return no_upgrade_command(decision.module, command_id=await self._command_ids.next_id())
        firmware = decision.firmware
        url = package_url(firmware, http_base=self._options.http_base, https_base=self._options.https_base)
        if url is None:
            self._metrics.checks.labels("no_https_base").inc()
            if self._sampled.take("no_https_base"):
                self._log.error(
                    "no_https_base", firmware=firmware.id, mend="set OTA_HOOK_PUBLIC_URL_HTTPS for the hook"
                )
            return None
        command_id = await self._command_ids.next_id()
        offer = OpenOffer(
            module=firmware.module,
            firmware_id=firmware.id,
            version_attribute=decision.rule.version_attribute,
            version=firmware.version,
            from_version=decision.from_version,
            command_ids=(command_id,),
            offered_at_ms=self._clock_ms(),
        )
        await self._offers.record_offer(device, offer)
        self._metrics.checks.labels("offer").inc()
        return upgrade_command(firmware, url=url, command_id=command_id, extras=decision.device_type.command_extras)

    def _publish(self, topic: str, command: bytes, qos: int) -> None:
        """Send what can't ride on the event itself; the broker isn't held for it, and the device asks again if lost."""
        if self._publisher is None or len(self._background) >= _MAX_BACKGROUND_PUBLISHES:
            self._metrics.unanswered.labels("no_publisher").inc()
            return
        self._spawn(self._publish_now(self._publisher, topic, command, qos))

    async def _publish_now(self, publisher: Publisher, topic: str, command: bytes, qos: int) -> None:
        try:
            await publisher.publish(topic, command, qos=qos)
        except DependencyError as exc:
            self._metrics.unanswered.labels("publisher").inc()
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
    return ValuedResponse(
        type=ValuedResponse.STOP_AND_RETURN, message=Message(topic=topic, payload=payload, qos=qos)
    ).SerializeToString()


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
