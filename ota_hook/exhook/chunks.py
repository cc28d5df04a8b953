"""Firmware over MQTT: an `otaChunk` event is answered with the raw bytes of the firmware that the device was offered.

Owns how long a device waits for them, and what is noted of its progress. Must not know where packages are.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from ota_hook.decide import ServeChunk, StaySilent, decide_chunk
from ota_hook.dialect import Channel
from ota_hook.errors import DependencyError
from ota_hook.exhook._codec import IGNORE
from ota_hook.exhook.commands import Commands, rewrite
from ota_hook.exhook.context import DeviceMessage, HookContext
from ota_hook.messages import BadMessage, ChunkRequest, Event, chunk_answer, read_chunk_request
from ota_hook.model import DeviceState, Family, Outcome
from ota_hook.progress import Said

CHUNK_EVENT: Final = "otaChunk"
UNDER_WAY_MAX: Final = 256
"""So many are served at a time; who is left asks again."""
_PATIENCE_S: Final = 1.0
"""The broker holds the device that asked meanwhile, and no other; what comes later is there when it asks again."""


class Chunks:
    """One per process."""

    def __init__(self, context: HookContext, commands: Commands) -> None:
        self._context = context
        self._commands = commands
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: DeviceMessage, identifier: str, event: Event) -> bool:
        """Whether Redis was asked; then the message is answered later."""
        request = read_chunk_request(event.document)
        address, devices = message.address, self._context.devices
        if identifier == address.device:
            devices.load_offered(identifier, partial(self._loaded, message, request, None))
        else:
            devices.load_device(address.device, partial(self._gateway_loaded, message, request, identifier))
        return True

    def _gateway_loaded(
        self, message: DeviceMessage, request: ChunkRequest, child: str, gateway: DeviceState | DependencyError | None
    ) -> None:
        word = ""
        if isinstance(gateway, DependencyError):
            self._context.note_failure(gateway)
        elif gateway is None:
            word = "unknown_gateway"
        elif message.address.device_type not in (None, gateway.device_type):
            word = "type_differs"
        else:
            self._context.devices.load_offered(child, partial(self._loaded, message, request, gateway))
            return
        if word:
            self._context.metrics.chunks[word] += 1
            self._context.note_unused(word, message)
        self._context.finish(message, IGNORE)

    def _loaded(
        self,
        message: DeviceMessage,
        request: ChunkRequest,
        gateway: DeviceState | None,
        device: DeviceState | DependencyError | None,
    ) -> None:
        try:
            if isinstance(device, DependencyError):
                self._context.note_failure(device)
            else:
                topic_type = message.address.device_type if gateway is None else None
                decision = decide_chunk(device, request, self._context.snapshots.current, topic_type=topic_type)
                if isinstance(decision, StaySilent):
                    self._context.metrics.chunks[decision.reason] += 1
                    self._context.note_unused(decision.reason, message, identifier=device.identifier if device else "")
                elif len(self._tasks) >= UNDER_WAY_MAX:
                    self._context.metrics.chunks["busy"] += 1
                elif device is not None:
                    serving = self._serve(message, gateway or device, device.identifier, decision)
                    task = asyncio.get_running_loop().create_task(serving)
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                    return
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        self._context.finish(message, IGNORE)

    async def _serve(self, message: DeviceMessage, speaking: DeviceState, identifier: str, chunk: ServeChunk) -> None:
        answer = IGNORE
        try:
            async with asyncio.timeout(_PATIENCE_S):
                data = await self._context.blocks.read(chunk.firmware, chunk.offset, chunk.size_bytes)
            answer = self._answer(message, speaking.device_type, chunk, data)
            self._note_progress(identifier, chunk)
        except BadMessage as exc:
            self._context.metrics.bad_messages[exc.reason] += 1
        except TimeoutError:
            self._context.metrics.chunks["slow"] += 1
        except DependencyError as exc:
            self._context.metrics.chunks["unreadable"] += 1
            self._context.note_failure(exc)
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        finally:
            self._context.finish(message, answer)

    def _answer(self, message: DeviceMessage, speaking_type: str, chunk: ServeChunk, data: bytes) -> bytes:
        # The bytes carry no device: a gateway gets its children's where it gets its own, and tells them by the id.
        address = message.address._replace(family=Family.DIRECT)
        topic = self._context.options.dialect.answer_topic(address, speaking_type, Channel.OTA_CHUNK)
        if topic is None:
            self._context.metrics.chunks["no_topic"] += 1
            return IGNORE
        self._context.metrics.chunks["served"] += 1
        payload = chunk_answer(data, command_id=chunk.offer.command_ids[-1], offset=chunk.offset)
        qos = min(message.publish.qos, 2)
        if self._context.options.reply == "rewrite":
            return rewrite(topic, payload, qos)
        self._commands.publish(topic, payload, qos)
        return IGNORE

    def _note_progress(self, identifier: str, chunk: ServeChunk) -> None:
        """The first piece and the last one say how far the device is."""
        outcome = None
        if chunk.offset + chunk.size_bytes >= chunk.firmware.package.size_bytes:
            outcome = Outcome.DOWNLOADED
        elif chunk.offset == 0:
            outcome = Outcome.DOWNLOADING
        if outcome is not None:
            said = Said(chunk.offer.command_ids[-1], None, outcome, "")
            self._context.offers.track_offer(identifier, said, at_ms=self._context.clock_ms())

    async def close(self) -> None:
        """Answer what is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_PATIENCE_S)
