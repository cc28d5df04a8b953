"""Questions for stored attributes, of a direct device or of a gateway's children: answered in place, as a check is.

Owns what is told: the version attributes that are kept, and nothing of a device that is not registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from ota_hook.child_messages import ChildQuestion, child_attributes_response, child_of, parse_child_questions
from ota_hook.dialect import Channel
from ota_hook.errors import DependencyError
from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.commands import Commands, rewrite
from ota_hook.exhook.context import DeviceMessage, HookContext
from ota_hook.messages import BadMessage, attributes_response, parse_object, read_keys
from ota_hook.model import DeviceState, Family
from ota_hook.ports.device_messages import LoadedChildren

_DIRECT: Final = Family.DIRECT


class Questions:
    """One per process."""

    def __init__(self, context: HookContext, commands: Commands) -> None:
        self._context = context
        self._commands = commands

    def take(self, message: DeviceMessage) -> bool:
        """Whether Redis was asked; then its reply answers the call."""
        address, publish = message.address, message.publish
        if address.family is _DIRECT:
            keys = read_keys(parse_object(publish.payload))
            self._context.devices.load_device(address.device, partial(self._loaded, message, keys))
            return True
        questions = parse_child_questions(publish.payload)
        named = [child_of(address.device, question.child) for question in questions]
        loaded = partial(self._children_loaded, message, questions)
        self._context.children.load_children(address.device, named, loaded)
        return True

    def _loaded(
        self, message: DeviceMessage, keys: frozenset[str] | None, device: DeviceState | DependencyError | None
    ) -> None:
        answer = IGNORE
        try:
            if isinstance(device, DependencyError):
                self._context.note_failure(device)
            elif self._may_ask(message, device) and device is not None:
                payload = attributes_response(_versions(device, keys), at_ms=self._context.clock_ms())
                answer = self._answer(message, device, [payload])
        except BadMessage as exc:
            self._context.metrics.bad_messages[exc.reason] += 1
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        self._context.finish(message, answer)

    def _children_loaded(
        self, message: DeviceMessage, questions: Sequence[ChildQuestion], loaded: LoadedChildren | DependencyError
    ) -> None:
        answer = IGNORE
        try:
            if isinstance(loaded, DependencyError):
                self._context.note_failure(loaded)
            elif self._may_ask(message, loaded.gateway) and loaded.gateway is not None:
                at_ms = self._context.clock_ms()
                payloads = [
                    child_attributes_response(question.child, _versions(child, question.keys), at_ms=at_ms)
                    for question, child in zip(questions, loaded.children, strict=True)
                    if child is not None
                ]
                self._context.metrics.questions["unknown_device"] += len(questions) - len(payloads)
                if len(payloads) < len(questions):
                    self._context.note_unused("unknown_child", message)
                answer = self._answer(message, loaded.gateway, payloads)
        except BadMessage as exc:
            self._context.metrics.bad_messages[exc.reason] += 1
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        self._context.finish(message, answer)

    def _may_ask(self, message: DeviceMessage, device: DeviceState | None) -> bool:
        word = None
        if device is None:
            word = "unknown_device"
        elif message.address.device_type not in (None, device.device_type):
            word = "type_differs"
        if word is not None:
            self._context.metrics.questions[word] += 1
            self._context.note_unused(word, message)
        return word is None

    def _answer(self, message: DeviceMessage, speaking: DeviceState, payloads: Sequence[bytes]) -> bytes:
        """The question rewritten into the first answer; the others are published."""
        address, qos = message.address, min(message.publish.qos, 2)
        answer, options = IGNORE, self._context.options
        topic = options.dialect.answer_topic(address, speaking.device_type, Channel.ATTRIBUTES_GET_RESPONSE)
        if topic is None:
            self._context.metrics.questions["no_topic"] += len(payloads)
            return answer
        self._context.metrics.questions["answered"] += len(payloads)
        for payload in payloads:
            if answer is IGNORE and options.reply == "rewrite":
                answer = rewrite(topic, payload, qos)
            else:
                self._commands.publish(topic, payload, qos)
        return answer


def _versions(device: DeviceState, keys: frozenset[str] | None) -> dict[str, str]:
    """What was asked for, by name: the order in which it was stored first is no order."""
    return {
        attribute: version.text
        for attribute, version in sorted(device.versions.items())
        if keys is None or attribute in keys
    }
