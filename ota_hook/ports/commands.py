"""What a command needs: an id that nobody else has, and the way to the broker.

Owns publishing and the ids. Must not know what commands say, or what carries them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ota_hook.errors import DependencyError


class CommandIds(Protocol):
    def next_id(self) -> int:
        """A positive integer below 2^53, unique in the deployment. DependencyError where none is left in stock."""
        ...


class CommandIdBlocks(Protocol):
    async def take_block(self, count: int) -> int:
        """The first of `count` command ids that nobody else has (at most 8,192). DependencyError."""
        ...


class Message(NamedTuple):
    """What is published: a command's text, to one device's topic."""

    topic: str
    payload: bytes
    qos: int


class Publisher(Protocol):
    """Publishes to the broker. What one caller publishes to one topic arrives in that order."""

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish one command; returns when the broker took it (qos 1: its ack). Raises DependencyError."""
        ...

    async def publish_many(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        """Publish some hundred or thousand at once, far cheaper than one by one; returns when each has its result.

        The results stand in the order of the messages: None where the broker took it. Nothing is sent a second time;
        where an error has `maybe_written` the broker may have taken the message all the same.
        """
        ...
