"""The publisher against a real broker over real sockets."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import pytest
import trustme

from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.ports.commands import Message, Publisher
from ota_hook.publish.mqtt import MqttPublisher
from ota_hook.standin.broker import StandinBroker
from tests.held_ports import free_port
from tests.integration.scripted_broker import ScriptedBroker
from tests.integration.waiting import eventually

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
    publisher = MqttPublisher(url, **{"reconnect_min_s": 0.02, "reconnect_max_s": 0.1, **options})
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


@pytest.mark.both_loops
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_command_arrives_as_it_was_published(qos: int) -> None:
    async with (
        broker_on() as broker,
        publisher_to(broker.mqtt_url) as publisher,
        aiomqtt.Client("127.0.0.1", port_of(broker)) as device,
    ):
        port: Publisher = publisher
        await device.subscribe("command_send/a", qos=2)
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


# ---- what the broker does not do


@pytest.mark.both_loops
async def test_a_broker_that_does_not_acknowledge_is_an_error_after_the_timeout_and_its_connection_is_replaced() -> (
    None
):
    async with (
        ScriptedBroker(acknowledging=False).run() as broker,
        publisher_to(broker.url, ack_timeout_s=0.1, in_flight_max=1) as publisher,
    ):
        sent, waiting = await publisher.publish_many([Message("t", b"", 1), Message("t", b"", 1)])
        assert sent is not None
        assert "did not acknowledge" in str(sent)
        assert waiting is not None
        assert (sent.maybe_written, waiting.maybe_written) == (True, False)
        broker.acknowledging = True
        async with asyncio.timeout(DEADLINE_S):
            await publisher.wait_connected()
            await publisher.publish("t", b"", qos=1)
        assert len(broker.clients) == 2


@pytest.mark.both_loops
async def test_a_connection_lost_under_a_publish_is_an_error_before_the_timeout() -> None:
    async with (
        ScriptedBroker(acknowledging=False).run() as broker,
        publisher_to(broker.url, ack_timeout_s=60) as publisher,
    ):
        publishing = asyncio.create_task(publisher.publish("t", b"", qos=1))
        async with asyncio.timeout(DEADLINE_S):
            await broker.until_published(1)
            broker.clients[0].abort()
            with pytest.raises(DependencyError, match="lost") as caught:
                await publishing
        assert caught.value.maybe_written


async def test_who_publishes_again_as_soon_as_the_connection_is_lost_is_told_at_once() -> None:
    async with (
        ScriptedBroker(acknowledging=False).run() as broker,
        publisher_to(broker.url, ack_timeout_s=60, reconnect_min_s=30, reconnect_max_s=30) as publisher,
    ):

        async def publish_twice() -> None:
            with pytest.raises(DependencyError):
                await publisher.publish("t", b"", qos=1)
            with pytest.raises(DependencyError, match="Not connected"):
                await publisher.publish("t", b"", qos=1)

        publishing = asyncio.create_task(publish_twice())
        async with asyncio.timeout(DEADLINE_S):
            await broker.until_published(1)
            broker.clients[0].abort()
            await publishing


async def test_stopping_ends_what_is_under_way() -> None:
    async with (
        ScriptedBroker(acknowledging=False).run() as broker,
        publisher_to(broker.url, ack_timeout_s=60) as publisher,
    ):
        publishing = asyncio.create_task(publisher.publish("t", b"", qos=1))
        async with asyncio.timeout(DEADLINE_S):
            await broker.until_published(1)
            await publisher.stop()
            with pytest.raises(DependencyError):
                await publishing
        assert not publisher.connected


async def test_a_silent_connection_is_pinged_and_stays() -> None:
    async with (
        ScriptedBroker().run() as broker,
        publisher_to(broker.url, ack_timeout_s=5, ping_every_s=0.02) as publisher,
    ):
        await eventually(lambda: broker.clients[0].pings >= 3)
        await publisher.publish("t", b"", qos=1)
        assert len(broker.clients) == 1


async def test_a_connection_whose_pings_stay_unanswered_is_replaced() -> None:
    async with (
        ScriptedBroker(answering_pings=False).run() as broker,
        publisher_to(broker.url, ack_timeout_s=0.05, ping_every_s=0.02),
    ):
        await eventually(lambda: len(broker.clients) >= 2)


async def test_a_broker_that_never_answers_connect_is_tried_again() -> None:
    async with (
        ScriptedBroker(connack=b"").run() as broker,
        publisher_to(broker.url, connected=False, ack_timeout_s=0.05) as publisher,
    ):
        await eventually(lambda: len(broker.clients) >= 2)
        assert not publisher.connected


async def test_a_wrong_password_is_named_where_a_publish_fails() -> None:
    async with (
        ScriptedBroker(connack=bytes.fromhex("20020004")).run() as broker,
        publisher_to(f"mqtt://u:secret@127.0.0.1:{broker.port}", connected=False) as publisher,
    ):
        await eventually(lambda: len(broker.clients) >= 2)
        with pytest.raises(DependencyError, match="user name or password is wrong") as caught:
            await publisher.publish("t", b"", qos=1)
        assert "secret" not in str(caught.value)


async def test_a_broker_that_answers_something_else_than_mqtt_is_not_used() -> None:
    async with (
        ScriptedBroker(connack=b"HTTP/1.1 400 Bad Request\r\n\r\n").run() as broker,
        publisher_to(broker.url, connected=False) as publisher,
    ):
        await eventually(lambda: len(broker.clients) >= 2)
        assert not publisher.connected


# ---- many messages


async def test_of_many_messages_each_has_its_result_in_its_place() -> None:
    async with broker_on() as broker, publisher_to(broker.mqtt_url) as publisher:
        results = await publisher.publish_many(
            [
                Message("a", b"", 1),
                Message("a/+", b"", 1),
                Message("b", b"", 0),
                Message("\ud800", b"", 1),
                Message("c", b"", 3),
                Message("d", b"", 2),
            ]
        )
        assert [result is None for result in results] == [True, False, True, False, False, True]
        assert await publisher.publish_many([]) == []


async def test_no_more_than_the_bound_are_unacknowledged_on_a_connection() -> None:
    async with (
        ScriptedBroker(acknowledging=False).run() as broker,
        publisher_to(broker.url, in_flight_max=7, ack_timeout_s=60) as publisher,
    ):
        publishing = asyncio.create_task(publisher.publish_many([Message("t", b"", 1)] * 50))
        async with asyncio.timeout(DEADLINE_S):
            for count in (7, 14, 21, 28, 35, 42, 49, 50):
                await broker.until_published(count)
                assert len(broker.topics) == count
                broker.clients[0].acknowledge()
            assert await publishing == [None] * 50
        assert broker.clients[0].most_unacknowledged == 7


async def test_what_waits_for_a_place_is_not_sent_for_a_caller_who_left() -> None:
    async with (
        ScriptedBroker(acknowledging=False).run() as broker,
        publisher_to(broker.url, in_flight_max=1, ack_timeout_s=60) as publisher,
    ):
        staying = [asyncio.create_task(publisher.publish("first", b"", qos=1))]
        leaving = asyncio.create_task(publisher.publish("left", b"", qos=1))
        async with asyncio.timeout(DEADLINE_S):
            await broker.until_published(1)
            staying.append(asyncio.create_task(publisher.publish("second", b"", qos=1)))
            leaving.cancel()
            await asyncio.wait((leaving,))
            broker.acknowledging = True
            broker.clients[0].acknowledge()
            await asyncio.gather(*staying)
        assert broker.topics == ["first", "second"]


# ---- several connections


def topics_of(count: int) -> list[Message]:
    return [Message(f"command_send/{number}", b"", 1) for number in range(count)]


def links_of(publisher: MqttPublisher) -> int:
    return sum(connection.link is not None for connection in publisher._connections)


async def test_a_topic_stays_on_its_connection_and_all_connections_are_used() -> None:
    async with (
        ScriptedBroker().run() as broker,
        publisher_to(broker.url, connections=4) as publisher,
    ):
        await eventually(lambda: links_of(publisher) == 4)
        for _ in range(2):
            assert await publisher.publish_many(topics_of(200)) == [None] * 200
        assert all(client.topics for client in broker.clients)
        for client in broker.clients:
            half = len(client.topics) // 2
            assert client.topics[:half] == client.topics[half:]


async def test_messages_to_a_device_arrive_in_order_over_several_connections() -> None:
    async with (
        broker_on() as broker,
        publisher_to(broker.mqtt_url, connections=3, in_flight_max=5) as publisher,
        aiomqtt.Client("127.0.0.1", port_of(broker)) as devices,
    ):
        await devices.subscribe("command_send/+", qos=1)
        messages = [Message(f"command_send/{n % 7}", str(n).encode(), 1) for n in range(210)]
        assert await publisher.publish_many(messages) == [None] * 210
        arrived: dict[str, list[int]] = {}
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(210):
                message = await anext(devices.messages)
                arrived.setdefault(str(message.topic), []).append(int(bytes(message.payload)))
        assert arrived == {f"command_send/{n}": list(range(n, 210, 7)) for n in range(7)}


async def test_while_one_connection_is_away_the_others_serve_all_topics() -> None:
    async with (
        ScriptedBroker().run() as broker,
        publisher_to(broker.url, connections=2, reconnect_min_s=30, reconnect_max_s=30) as publisher,
    ):
        await eventually(lambda: links_of(publisher) == 2)
        broker.clients[0].abort()
        await eventually(lambda: links_of(publisher) == 1)
        assert publisher.connected
        assert await publisher.publish_many(topics_of(50)) == [None] * 50
        broker.clients[1].abort()
        await eventually(lambda: not publisher.connected)


# ---- TLS and passwords


async def test_over_tls_the_broker_gets_user_and_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with (
        ScriptedBroker().run(tls) as broker,
        publisher_to(f"mqtts://us%40er:pass%2Fword@127.0.0.1:{broker.port}", client_id="pusher") as publisher,
    ):
        await publisher.publish("t", b"x" * 300_000, qos=1)
        assert broker.clients[0].connect == (
            b"\x00\x04MQTT\x04\xc2\x00\x3c\x00\x06pusher\x00\x05us@er\x00\x09pass/word"
        )


async def test_a_broker_whose_certificate_nobody_vouches_for_is_not_used() -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with (
        ScriptedBroker().run(tls) as broker,
        publisher_to(f"mqtts://127.0.0.1:{broker.port}", connected=False) as publisher,
    ):
        await eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in publisher._connections[0].trouble)
        assert not broker.clients


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """Its port. It knows the user `pusher` with the password `secret`."""
    port = free_port()
    users, config = folder / "users", folder / "mosquitto.conf"
    users.touch(0o600)
    subprocess.run(["mosquitto_passwd", "-b", "-c", users, "pusher", "secret"], check=True)
    lines = [f"listener {port} 127.0.0.1", f"password_file {users}", "max_queued_messages 0", "user root"]
    config.write_text("\n".join(lines))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["mosquitto", "-c", config], stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs mosquitto (apt-get install mosquitto)")
async def test_mosquitto_takes_every_qos_from_a_user_with_a_password(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as port:
        async with (
            publisher_to(f"mqtt://pusher:secret@127.0.0.1:{port}", connections=2) as publisher,
            aiomqtt.Client("127.0.0.1", port, username="pusher", password="secret") as devices,
        ):
            await devices.subscribe("command_send/+", qos=2)
            messages = [Message(f"command_send/{n}", b"x" * (n * 37), n % 3) for n in range(600)]
            assert await publisher.publish_many(messages) == [None] * 600
            arrived = set()
            async with asyncio.timeout(DEADLINE_S):
                for _ in messages:
                    message = await anext(devices.messages)
                    arrived.add(Message(str(message.topic), bytes(message.payload), message.qos))
            assert arrived == set(messages)
        async with publisher_to(f"mqtt://pusher:wrong@127.0.0.1:{port}", connected=False) as refused:
            await eventually(lambda: "not authorized" in refused._connections[0].trouble)


# ---- addresses


@pytest.mark.parametrize("url", ["", "127.0.0.1:1883", "http://host", "mqtt://", "mqtt://host:port", "mqtt://h/topic"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="mqtt://HOST"):
        MqttPublisher(url)
