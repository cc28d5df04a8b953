"""A direct device's connection to the broker: how it comes to one, again and again, and what it says there.

Owns connecting and topics. It must not know what is said.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final, NamedTuple, Protocol

import aiomqtt

from ota_hook.publish.mqtt import BrokerAddress
from ota_hook.standin.behaviour import DeviceBehaviour, DeviceFailureError, DeviceProgress, Phase

_QUEUED_COMMANDS: Final = 16


class Heard(NamedTuple):
    """One message that came."""

    topic: str
    payload: bytes


class Inbox(Protocol):
    """Where a device's messages come in."""

    async def next_heard(self, timeout_s: float) -> Heard | None:
        """The next one, None after the timeout."""
        ...


class Link:
    """One connection, while it lasts. What is said on it raises MqttError once it is cut."""

    def __init__(self, client: aiomqtt.Client, progress: DeviceProgress, topics: str) -> None:
        self._client = client
        self._progress = progress
        self._topics = topics

    def topic(self, name: str) -> str:
        """The device's topic of that name, as its dialect spells it."""
        return self._topics.format(topic=name, device=self._progress.identifier, device_type=self._progress.device_type)

    async def hear(self, *names: str) -> None:
        """Listen to these topics of its own."""
        await self._client.subscribe([(self.topic(name), 1) for name in names])

    async def say(self, name: str, document: object) -> None:
        """Publish JSON on its own topic; return when the broker has it."""
        await self._client.publish(self.topic(name), json.dumps(document, ensure_ascii=False), qos=1)

    async def next_heard(self, timeout_s: float) -> Heard | None:
        """See Inbox."""
        try:
            async with asyncio.timeout(timeout_s):
                return await anext(self.each_heard())
        except TimeoutError:
            return None

    async def each_heard(self) -> AsyncIterator[Heard]:
        """Every message as it comes."""
        async for message in self._client.messages:
            yield Heard(str(message.topic), bytes(message.payload))

    def cut(self) -> None:
        """Break it as a lost carrier would: without a word to the broker."""
        # What paho calls its socket is public there; aiomqtt has no way to it.
        link = self._client._client.socket()  # noqa: SLF001
        if isinstance(link, socket.socket):
            link.shutdown(socket.SHUT_RDWR)


class Connector:
    """Connects the devices of a fleet: only so many at a time, each so often at most in one life."""

    def __init__(self, broker: BrokerAddress, behaviour: DeviceBehaviour, slots: asyncio.Semaphore) -> None:
        self._broker = broker
        self._behaviour = behaviour
        self._slots = slots

    async def live_once(
        self,
        progress: DeviceProgress,
        be_connected: Callable[[Link], Awaitable[bool]],
        *,
        on_lost: Callable[[], None],
        speaks_for: int = 0,
    ) -> bool:
        """One life, with its reconnects, for itself and so many children. Returns what `be_connected` does."""
        failures = 0
        queued = _QUEUED_COMMANDS + 2 * speaks_for
        while True:
            try:
                async with AsyncExitStack() as stack:
                    async with self._slots:
                        client = await stack.enter_async_context(self._client(progress.identifier, queued))
                    return await be_connected(Link(client, progress, self._behaviour.topics))
            except aiomqtt.MqttError as exc:
                failures += 1
                if failures >= self._behaviour.connect_attempts:
                    raise DeviceFailureError(f"broker: {exc}") from exc
            on_lost()
            await asyncio.sleep(self._behaviour.retry_pause_s)

    def _client(self, identifier: str, queued: int) -> aiomqtt.Client:
        return aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            username=identifier,
            password=self._broker.password,
            identifier=identifier,
            tls_context=self._broker.tls_context(),
            max_queued_incoming_messages=queued,
        )


async def live(
    progress: DeviceProgress,
    behaviour: DeviceBehaviour,
    live_once: Callable[[], Awaitable[bool]],
    enter: Callable[[Phase], None],
) -> None:
    """Life after life, each ended by a reboot into another version, until one ends otherwise.

    Never raises but when cancelled: a failure ends in the phase `failed` with its reason; where a device stays, it
    starts over.
    """
    while True:
        try:
            rebooting = await live_once()
        except DeviceFailureError as exc:
            progress.error = str(exc)
            enter(Phase.FAILED)
            if behaviour.check_interval_s is None:
                return
            await asyncio.sleep(behaviour.check_interval_s)
            continue
        if not rebooting:
            return
        await asyncio.sleep(behaviour.reboot_s)
