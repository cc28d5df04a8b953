"""Responses: where a device type has them, a message is told to have been received, or refused and why.

Owns who is told. They say nothing of what came of a message, and hold no call: where the speaking device is not known
by then, it is loaded beside it. Must not know what the messages mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ota_hook.child_messages import ChildName, child_response
from ota_hook.dialect import Address, Channel
from ota_hook.errors import DependencyError
from ota_hook.exhook.commands import Commands
from ota_hook.exhook.context import HookContext
from ota_hook.messages import BadMessage, received_response, refused_response
from ota_hook.model import DeviceState

TOO_FAST: Final = "Device message frequency too fast, please wait for a moment"
_CHANNELS: Final = {
    Channel.ATTRIBUTES: Channel.ATTRIBUTES_RESPONSE,
    Channel.EVENT_REPORT: Channel.EVENT_RESPONSE,
}
_QOS: Final = 0


class Responses:
    """One per process."""

    def __init__(self, context: HookContext, commands: Commands) -> None:
        self._context = context
        self._commands = commands

    def respond(
        self, address: Address, device: DeviceState | None, *, events: int = 1, children: Sequence[ChildName] = ()
    ) -> None:
        """Say that a message was received: once for each of its `events`, or for those of its `children`.

        `device` is the one that speaks, a gateway for its children; its type says whether it is told.
        """
        if not self._context.snapshots.current.responds or device is None:
            return
        response = received_response(at_ms=self._context.clock_ms())
        for child in children:
            self._send(address, device, child_response(child, response), "received")
        for _ in range(0 if children else events):
            self._send(address, device, response, "received")

    def respond_when_loaded(self, address: Address, *, events: int = 1, children: Sequence[ChildName] = ()) -> None:
        """`respond`, where the speaking device is not known yet."""
        if self._context.snapshots.current.responds:
            self._load(address, lambda device: self.respond(address, device, events=events, children=children))

    def refuse(self, address: Address, text: str) -> None:
        """Say that a message was refused, and why."""
        if self._context.snapshots.current.responds and address.channel in _CHANNELS:
            response = refused_response(text, at_ms=self._context.clock_ms())
            self._load(address, lambda device: self._send(address, device, response, "refused"))

    def _load(self, address: Address, then: Callable[[DeviceState], None]) -> None:
        def loaded(device: DeviceState | DependencyError | None) -> None:
            try:
                if isinstance(device, DeviceState):
                    then(device)
            except Exception:  # noqa: BLE001 - logged there
                self._context.note_fault()

        self._context.devices.load_device(address.device, loaded)

    def _send(self, address: Address, device: DeviceState, response: bytes, word: str) -> None:
        device_type = self._context.snapshots.current.types.get(device.device_type)
        if device_type is None or not device_type.responses_enabled:
            return
        if address.device_type not in (None, device.device_type):
            return
        try:
            topic = self._context.options.dialect.answer_topic(address, device.device_type, _CHANNELS[address.channel])
        except BadMessage:
            return
        if topic is not None:
            self._context.metrics.responses[word] += 1
            self._commands.publish(topic, response, _QOS, is_response=True)
