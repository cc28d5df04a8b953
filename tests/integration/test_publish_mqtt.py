"""The publisher against a real broker over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import pytest

from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.ports import Publisher
from ota_hook.publish.mqtt import MqttPublisher
from ota_hook.standin.broker import StandinBroker

DEADLINE_S = 10.0


@asynccontextmanager
async def broker_on(port: int = 0) -> AsyncIterator[StandinBroker]:
    broker = StandinBroker(host="127.0.0.1", port=port, exhook=None)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@asynccontextmanager
async def publisher_to(url: str, *, connected: bool = True, **options: Any) -> AsyncIterator[MqttPublisher]:
    publisher = MqttPublisher(url, reconnect_min_s=0.02, reconnect_max_s=0.1, **options)
    await publisher.start()
    try:
        if connected:
            async with asyncio.timeout(DEADLINE_S):
                await publisher.wait_connected()
        yield publisher
    finally:
        await publisher.stop()


def port_of(broker: StandinBroker) -> int:
    return urlsplit(broker.mqtt_url).port or 0


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_command_arrives_as_it_was_published(qos: int) -> None:
    async with (
        broker_on() as broker,
        publisher_to(broker.mqtt_url) as publisher,
        aiomqtt.Client("127.0.0.1", port_of(broker)) as device,
    ):
        port: Publisher = publisher
        await device.subscribe("command_send/a", qos=1)
        await port.publish("command_send/a", '{"command_name":"OTA升级"}'.encode(), qos=qos)
        async with asyncio.timeout(DEADLINE_S):
            message = await anext(device.messages)
        assert (message.payload, message.qos) == ('{"command_name":"OTA升级"}'.encode(), qos)


async def test_many_publishes_at_once_all_arrive_through_few_slots() -> None:
    async with (
        broker_on() as broker,
        publisher_to(broker.mqtt_url, in_flight_max=4) as publisher,
        aiomqtt.Client("127.0.0.1", port_of(broker)) as device,
    ):
        await device.subscribe("t", qos=1)
        await asyncio.gather(*(publisher.publish("t", str(number).encode(), qos=1) for number in range(200)))
        async with asyncio.timeout(DEADLINE_S):
            received = {bytes((await anext(device.messages)).payload) for _ in range(200)}
        assert received == {str(number).encode() for number in range(200)}


async def test_without_a_broker_a_publish_fails_at_once_and_names_it_without_its_password() -> None:
    async with broker_on() as broker:
        port = port_of(broker)
    async with publisher_to(f"mqtt://user:secret@127.0.0.1:{port}", connected=False) as publisher:
        with pytest.raises(DependencyError, match=f"127.0.0.1:{port}") as caught:
            await publisher.publish("t", b"", qos=1)
        assert "secret" not in str(caught.value)
        assert not publisher.connected


async def test_a_broker_that_comes_back_is_used_again() -> None:
    async with broker_on() as broker:
        port = port_of(broker)
        async with publisher_to(broker.mqtt_url) as publisher:
            await publisher.publish("t", b"", qos=1)
            await broker.stop()
            async with asyncio.timeout(DEADLINE_S):
                while publisher.connected:  # noqa: ASYNC110 - the loss raises no event here
                    await asyncio.sleep(0.005)
            with pytest.raises(DependencyError):
                await publisher.publish("t", b"", qos=1)
            async with broker_on(port):
                async with asyncio.timeout(DEADLINE_S):
                    await publisher.wait_connected()
                await publisher.publish("t", b"", qos=1)


@asynccontextmanager
async def silent_broker() -> AsyncIterator[tuple[int, asyncio.Event, list[asyncio.StreamWriter]]]:
    """Accepts CONNECT and then answers nothing; the event is set when a publish came."""
    published = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        _, length = await reader.readexactly(2)
        await reader.readexactly(length)
        writer.write(bytes.fromhex("20020000"))
        await reader.readexactly(1)
        published.set()
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], published, writers
        for writer in writers:
            writer.transport.abort()


async def test_a_broker_that_does_not_acknowledge_is_an_error_after_the_timeout() -> None:
    async with (
        silent_broker() as (port, _, _),
        publisher_to(f"mqtt://127.0.0.1:{port}", ack_timeout_s=0.1, in_flight_max=1) as publisher,
    ):
        results = await asyncio.gather(
            publisher.publish("t", b"", qos=1), publisher.publish("t", b"", qos=1), return_exceptions=True
        )
        assert [type(result) for result in results] == [DependencyError, DependencyError]


async def test_a_connection_whose_places_are_all_taken_by_lost_publishes_is_replaced() -> None:
    async with (
        silent_broker() as (port, _, writers),
        publisher_to(f"mqtt://127.0.0.1:{port}", ack_timeout_s=0.05, in_flight_max=2) as publisher,
    ):
        async with asyncio.timeout(DEADLINE_S):
            while len(writers) < 2:
                with pytest.raises(DependencyError):
                    await publisher.publish("t", b"", qos=1)
                await publisher.wait_connected()


async def test_a_connection_lost_under_a_publish_is_an_error_before_the_timeout() -> None:
    async with (
        silent_broker() as (port, published, writers),
        publisher_to(f"mqtt://127.0.0.1:{port}", ack_timeout_s=60) as publisher,
    ):
        publishing = asyncio.create_task(publisher.publish("t", b"", qos=1))
        async with asyncio.timeout(DEADLINE_S):
            await published.wait()
            writers[0].transport.abort()
            with pytest.raises(DependencyError, match="lost"):
                await publishing


@pytest.mark.parametrize("url", ["", "127.0.0.1:1883", "http://host", "mqtt://", "mqtt://host:port", "mqtt://h/topic"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="mqtt://HOST"):
        MqttPublisher(url)
