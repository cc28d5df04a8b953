"""What the parts of the provider share: the deployment's options, the ports, and how a call is finished.

Owns no behaviour of its own. Must not know gRPC or Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import structlog

from ota_hook.dialect import Address, Dialect
from ota_hook.errors import DependencyError
from ota_hook.exhook._codec import Publish
from ota_hook.metrics import HookMetrics
from ota_hook.ports.catalogue import SnapshotSource
from ota_hook.ports.commands import CommandIds, Publisher
from ota_hook.ports.device_messages import ChildStates, DeviceStates, OpenOffers, Presence
from ota_hook.ports.packages import PackageBlocks

_SAMPLE_S: Final = 1.0
_DEVICE_MAX_CHARS: Final = 512
_TOPIC_MAX_CHARS: Final = 256

Respond = Callable[[Any, bytes], None]
"""Takes a call, as the listener named it, and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookOptions:
    """What the deployment fixed. A device's payload above `payload_bytes` is left alone.

    `presence`: the broker tells who connects and disconnects, which costs each a round trip. `report_interval_ms`: a
    device that reports sooner than so long after its last report is refused; 0 refuses nobody.
    """

    dialect: Dialect
    identity: Literal["username", "clientid"] = "username"
    reply: Literal["rewrite", "publish"] = "rewrite"
    payload_bytes: int = 256 * 1024
    presence: bool = True
    report_interval_ms: int = 0
    http_base: str
    https_base: str | None = None


class DeviceMessage(NamedTuple):
    """A device's message: who published it where, what it is, whom to answer it, and since when it is looked at."""

    address: Address
    publish: Publish
    respond: Respond
    call: object
    since_s: float


class Sampler:
    """At most one log line a second per reason, so that a misbehaving fleet can't fill a disk."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def take(self, reason: str) -> bool:
        now = time.monotonic()
        if now < self._next.get(reason, 0.0):
            return False
        self._next[reason] = now + _SAMPLE_S
        return True


@dataclass(frozen=True, kw_only=True)
class HookContext:
    """One per process."""

    options: HookOptions
    snapshots: SnapshotSource
    devices: DeviceStates
    children: ChildStates
    offers: OpenOffers
    presence: Presence
    blocks: PackageBlocks
    command_ids: CommandIds
    publisher: Publisher | None
    metrics: HookMetrics
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    sampler: Sampler = field(default_factory=Sampler)
    log: Any = field(default_factory=lambda: structlog.get_logger("ota_hook.provider"))

    def finish(self, message: DeviceMessage, answer: bytes) -> None:
        """Answer what waited for Redis."""
        self.metrics.observe_answer(time.perf_counter() - message.since_s)
        message.respond(message.call, answer)

    def note_unused(self, reason: str, message: DeviceMessage, *, identifier: str = "") -> None:
        """Say whose message came to nothing, once a second for each reason. The caller counts it.

        `identifier` is the child that it was about. An event that is no check is not ours: of it only `debug` tells.
        """
        if self.sampler.take(reason):
            say = self.log.debug if reason == "no_rule" else self.log.warning
            device, topic = identifier or message.address.device, message.publish.topic
            say("bad_message", reason=reason, device=device[:_DEVICE_MAX_CHARS], topic=topic[:_TOPIC_MAX_CHARS])

    def note_fault(self) -> None:
        """A fault of ours must not hold a device or fail the broker's call; it is loud in the log and the metric."""
        self.metrics.unanswered["fault"] += 1
        self.log.exception("provider_fault")  # noqa: LOG004 - only handlers call it

    def note_failure(self, error: DependencyError) -> None:
        """What we depend on did not do it."""
        self.metrics.unanswered["dependency"] += 1
        if self.sampler.take("dependency"):
            self.log.warning("dependency_failed", problem=str(error))
