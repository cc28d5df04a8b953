"""What one call to publish hands over, and its results as they come. Must not know how messages travel."""

from __future__ import annotations

import asyncio
from typing import Final

from ota_hook.dialect import is_publishable
from ota_hook.errors import DependencyError
from ota_hook.ports.commands import Message

_PAYLOAD_MAX_BYTES: Final = 256 * 1000 * 1000
"""A little less than what MQTT's packets can hold; brokers take far less (EMQX 1 MiB)."""


class Batch:
    """The results of a call's messages; each is settled once, in any order."""

    def __init__(self, size: int) -> None:
        self._results: list[DependencyError | None] = [None] * size
        self._left = size
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not size:
            self._done.set_result(None)

    @property
    def abandoned(self) -> bool:
        """Whether the caller was cancelled: what was not sent yet need not be."""
        return self._done.cancelled()

    def settle(self, place: int, error: DependencyError | None) -> None:
        self._results[place] = error
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)

    async def results(self) -> list[DependencyError | None]:
        """Wait for all of them; they are in the order of the messages."""
        await self._done
        return self._results


def find_fault(message: Message) -> DependencyError | None:
    """Why no broker would take the message, or would rather end the connection."""
    topic, payload, qos = message
    if not is_publishable(topic) or not (topic.isascii() or _is_text(topic)):
        return DependencyError(f"Nothing can be published to the topic {topic[:200]!r}.")
    if len(payload) > _PAYLOAD_MAX_BYTES:
        return DependencyError("No MQTT message can be so long.")
    if not 0 <= qos <= 2:
        return DependencyError(f"There is no qos {qos}.")
    return None


def _is_text(topic: str) -> bool:
    try:
        topic.encode()
    except UnicodeEncodeError:
        return False
    return True
