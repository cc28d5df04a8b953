"""What devices are told: answers made, their offers noted, and what can't ride on the event itself published.

Owns the messages that wait to be published, within a bound. Must not know why something is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

from ota_hook.child_messages import ChildName, child_command
from ota_hook.decide import AnswerNoUpgrade, OfferUpdate, open_offer
from ota_hook.dialect import is_publishable
from ota_hook.exhook._codec import write_rewrite
from ota_hook.exhook.context import HookContext
from ota_hook.messages import BadMessage, begin_upgrade_command, end_command, no_upgrade_command
from ota_hook.model import CommandExtra, Firmware
from ota_hook.packages.urls import package_url
from ota_hook.ports.commands import Message

WAITING_MAX: Final = 10_000
"""So many messages wait for the publisher at most; devices ask again for what is dropped."""
WAITING_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of their payloads: pieces of firmware wait among them."""
_BEGUN_MAX: Final = 10_000
_BATCH: Final = 500
_CLOSE_S: Final = 2.0


class _Begun(NamedTuple):
    """What every device is told of a firmware, up to the command's id; as long as it and the extras are the same."""

    firmware: Firmware
    extras: tuple[CommandExtra, ...]
    command: bytes


class Commands:
    """One per process."""

    def __init__(self, context: HookContext) -> None:
        self._context = context
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._begun: dict[str, _Begun] = {}
        self._task: asyncio.Task[None] | None = None

    def make(
        self, decision: OfferUpdate | AnswerNoUpgrade, device: str, *, child: ChildName | None = None
    ) -> bytes | None:
        """The command's bytes, its offer noted; None where the firmware has no address that this process can give.

        A DependencyError where no command id is in stock.
        """
        context = self._context
        if isinstance(decision, AnswerNoUpgrade):
            command_id = context.command_ids.next_id()
            context.metrics.checks[decision.reason] += 1
            command = no_upgrade_command(decision.module, command_id=command_id)
            return command if child is None else child_command(child, command, command_id=command_id)
        firmware, extras = decision.firmware, decision.device_type.command_extras
        begun = self._begun.get(firmware.id)
        if begun is None or begun.firmware is not firmware or begun.extras is not extras:
            begun = self._begin(firmware, extras)
            if begun is None:
                return None
        command_id = context.command_ids.next_id()
        context.offers.record_offer(device, open_offer(decision, command_id, offered_at_ms=context.clock_ms()))
        context.metrics.checks["offer"] += 1
        command = end_command(begun.command, command_id)
        return command if child is None else child_command(child, command, command_id=command_id)

    def _begin(self, firmware: Firmware, extras: tuple[CommandExtra, ...]) -> _Begun | None:
        context, options = self._context, self._context.options
        url = package_url(firmware, http_base=options.http_base, https_base=options.https_base)
        if url is None:
            context.metrics.checks["no_https_base"] += 1
            if context.sampler.take("no_https_base"):
                context.log.error(
                    "no_https_base", firmware=firmware.id, mend="set OTA_HOOK_PUBLIC_URL_HTTPS for the hook"
                )
            return None
        if len(self._begun) >= _BEGUN_MAX:
            self._begun.clear()
        begun = _Begun(firmware, extras, begin_upgrade_command(firmware, url=url, extras=extras))
        self._begun[firmware.id] = begun
        return begun

    def can_publish(self, topic: str, *, is_response: bool = False) -> bool:
        """Whether `publish` would send something; counted where not. An offer that is not sent must not be noted."""
        if self._context.publisher is None:
            self._context.metrics.unanswered["no_publisher"] += 1
            if self._context.sampler.take("no_publisher"):
                self._context.log.warning("no_publisher", topic=topic[:256], mend="set OTA_HOOK_MQTT_URL for the hook")
            return False
        most = WAITING_MAX // 2 if is_response else WAITING_MAX
        if len(self._waiting) >= most or self._waiting_bytes >= WAITING_MAX_BYTES:
            self._context.metrics.unanswered["publisher_full"] += 1
            return False
        return True

    def publish(self, topic: str, payload: bytes, qos: int, *, is_response: bool = False) -> None:
        """Send beside the event; the broker isn't held for it, and what is lost is asked for again.

        A response says nothing that a device needs, so it leaves room for commands.
        """
        if not self.can_publish(topic, is_response=is_response):
            return
        self._waiting.append(Message(topic, payload, qos))
        self._waiting_bytes += len(payload)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._publish_waiting())

    async def _publish_waiting(self) -> None:
        publisher = self._context.publisher
        while self._waiting and publisher is not None:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            self._waiting_bytes -= sum(len(message.payload) for message in batch)
            try:
                results = await publisher.publish_many(batch)
            except Exception:  # noqa: BLE001 - logged there
                self._context.note_fault()
                continue
            problems = [problem for problem in results if problem is not None]
            self._context.metrics.unanswered["publisher"] += len(problems)
            if problems and self._context.sampler.take("publisher"):
                self._context.log.warning("publish_failed", problem=str(problems[0]), count=len(problems))

    async def close(self) -> None:
        """Give what waits a moment; what is still under way then is dropped."""
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_CLOSE_S)
            self._task.cancel()


def rewrite(topic: str, payload: bytes, qos: int) -> bytes:
    """The answer that turns the event into `payload` on `topic`.

    Checked before it leaves: the broker does not survive a topic with a wildcard, and takes a qos above 2 for 2.
    """
    if not is_publishable(topic) or not 0 <= qos <= 2:
        raise BadMessage("topic_unusable")
    return write_rewrite(topic, payload, qos)
