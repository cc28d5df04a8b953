"""The stand-in broker against the measured facts of EMQX: a scripted provider on real gRPC, real MQTT clients."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import aiomqtt
import pytest
import uvloop

from ota_hook.errors import ConfigurationError
from ota_hook.exhook import exhook_pb2 as pb
from ota_hook.standin.broker import StandinBroker
from ota_hook.standin.exhook_client import topic_matches
from tests.integration.scripted_provider import (
    DEADLINE_S,
    IGNORE,
    ScriptedProvider,
    client_of,
    next_message,
    rewrite,
    running,
    until,
)

# ---- without a provider ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("published", "subscribed", "received"), [(2, 1, 1), (0, 1, 0), (1, 2, 1), (2, 2, 2)])
async def test_a_message_arrives_at_the_lower_of_both_qos(published: int, subscribed: int, received: int) -> None:
    async with running(None) as broker, client_of(broker, "a") as a, client_of(broker, "b") as b:
        await b.subscribe("t/+", qos=subscribed)
        await a.publish("t/1", b"x", qos=published)
        message = await next_message(b)
        assert (str(message.topic), message.payload, message.qos, message.retain) == ("t/1", b"x", received, False)


async def test_a_retained_message_reaches_a_later_subscriber_alone() -> None:
    async with running(None) as broker, client_of(broker, "a") as a, client_of(broker, "b") as b:
        await a.publish("t/1", b"kept", qos=1, retain=True)
        async with client_of(broker, "bystander") as bystander:
            await bystander.subscribe("other")
            await b.subscribe("t/#", qos=1)
            message = await next_message(b)
            assert (message.payload, message.retain) == (b"kept", True)
            await a.publish("other", b"marker")
            assert (await next_message(bystander)).payload == b"marker"


async def test_a_persistent_session_gets_what_it_missed_in_order() -> None:
    async with running(None) as broker, client_of(broker, "a") as a:
        async with client_of(broker, "b", clean_session=False) as b:
            await b.subscribe("t", qos=1)
        for number in range(5):
            await a.publish("t", str(number), qos=1)
        async with client_of(broker, "b", clean_session=False) as b:
            received = [await next_message(b) for _ in range(5)]
    assert [message.payload for message in received] == [b"0", b"1", b"2", b"3", b"4"]
    assert not any(message.retain for message in received)


async def test_a_second_connection_of_a_client_ends_the_first() -> None:
    async with running(None) as broker:
        first = client_of(broker, "a")
        await first.__aenter__()
        await first.subscribe("t")
        async with client_of(broker, "a") as second:
            with pytest.raises(aiomqtt.MqttError):
                await next_message(first)
            await second.subscribe("t")
            await second.publish("t", b"mine")
            assert (await next_message(second)).payload == b"mine"
        await first.__aexit__(None, None, None)


async def test_a_subscriber_that_does_not_read_holds_up_nobody() -> None:
    """It gets at most a window and a queue; the rest is lost to it alone."""
    async with running(None) as broker, client_of(broker, "a") as a, client_of(broker, "b") as b:
        reader, writer = await raw_client(broker, "stalled")
        writer.write(bytes.fromhex("82 08 0001 0003") + b"t/#" + b"\x01")
        await reader.readexactly(4 + 5)  # CONNACK and SUBACK; it reads no more and acknowledges nothing
        await b.subscribe("t/1", qos=1)
        for number in range(40):
            await a.publish("t/1", bytes(200_000), qos=1)
            message = await next_message(b)
            assert len(bytes(message.payload)) == 200_000, number
        writer.transport.abort()


async def raw_client(broker: StandinBroker, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client without a library: CONNECT, clean session, no keep-alive. It has not read anything yet."""
    address = urlsplit(broker.mqtt_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1024)
    identifier = name.encode()
    body = bytes.fromhex("0004 4d515454 04 02 0000") + len(identifier).to_bytes(2, "big") + identifier
    writer.write(bytes([0x10, len(body)]) + body)
    return reader, writer


async def test_the_broker_stops_while_clients_that_do_not_speak_mqtt_hang_on() -> None:
    async with asyncio.timeout(DEADLINE_S):
        async with running(None) as broker:
            address = urlsplit(broker.mqtt_url)
            silent, _ = streams = await asyncio.open_connection(address.hostname, address.port)
            garbled, writer = more_streams = await asyncio.open_connection(address.hostname, address.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            async with client_of(broker, "a") as proper:
                await proper.publish("t", b"", qos=1)
        assert await silent.read() == b""
        with suppress(ConnectionError):
            assert await garbled.read() == b""
        for _, writer in (streams, more_streams):
            writer.close()


async def test_a_taken_port_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            await StandinBroker(host="127.0.0.1", port=port, exhook=None).start()


# ---- what the provider is asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["v2", "v3"])
async def test_a_publish_is_shown_as_emqx_shows_it(package: str) -> None:
    provider = ScriptedProvider()
    async with running(provider, package=package) as broker, client_of(broker, "id-1", username="user-1") as device:
        await device.publish("event_report/user-1", b"\x00\xff", qos=1)
    assert [path for path, _ in provider.calls] == [
        f"/emqx.exhook.{package}.HookProvider/{rpc}"
        for rpc in ("OnProviderLoaded", "OnMessagePublish", "OnProviderUnloaded")
    ]
    (request,) = provider.publishes
    message = request.message
    assert (message.topic, message.payload, message.qos) == ("event_report/user-1", b"\x00\xff", 1)
    assert getattr(message, "from") == "id-1"
    assert dict(message.headers) == {
        "username": "user-1",
        "protocol": "mqtt",
        "peerhost": "127.0.0.1",
        "allow_publish": "true",
    }
    assert len(message.id) == 32
    assert int(message.id, 16) > 0
    assert message.timestamp > 1_700_000_000_000
    assert request.meta.node == message.node != ""
    assert request.meta.cluster_name == "emqxcl"
    assert "not EMQX" in request.meta.sysdescr


async def test_only_topics_under_the_filters_are_shown() -> None:
    provider = ScriptedProvider({"message.publish": ["event_report/+", "attributes/#"]})
    async with running(provider) as broker, client_of(broker, "a") as device:
        for topic in ("event_report/a", "event_report/a/b", "event_report", "attributes", "attributes/a/b", "other"):
            await device.publish(topic, b"", qos=1)
    assert [request.message.topic for request in provider.publishes] == [
        "event_report/a",
        "attributes",
        "attributes/a/b",
    ]


async def test_a_hook_without_filters_sees_everything_but_sys() -> None:
    provider = ScriptedProvider({"message.publish": []})
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.publish("$SYS/brokers", b"", qos=1)
        await device.publish("anything/at/all", b"", qos=1)
    assert [request.message.topic for request in provider.publishes] == ["anything/at/all"]


async def test_a_provider_that_registers_no_publish_hook_is_not_asked() -> None:
    provider = ScriptedProvider({})
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.subscribe("event_report/a")
        await device.publish("event_report/a", b"x", qos=1)
        assert (await next_message(device)).payload == b"x"
    assert provider.publishes == []


async def test_clients_are_spread_over_the_pool_and_stay_on_their_connection() -> None:
    provider = ScriptedProvider()
    peers_of: dict[str, set[str]] = {}
    async with running(provider, pool_size=3) as broker:
        for round_number in range(2):
            for number in range(12):
                name = f"device-{number}"
                provider.peers.clear()
                async with client_of(broker, name) as device:
                    await device.publish(f"event_report/{name}", str(round_number), qos=1)
                peers_of.setdefault(name, set()).update(provider.peers)
    assert all(len(peers) == 1 for peers in peers_of.values())
    assert len(set.union(*peers_of.values())) == 3


async def test_a_will_is_shown_with_empty_headers_and_can_be_rewritten() -> None:
    provider = ScriptedProvider({"message.publish": ["wills/+"]}, rewrite("taken", b"over", 1))
    will = aiomqtt.Will("wills/a", b"gone", qos=1)
    async with running(provider) as broker, client_of(broker, "b") as watcher:
        await watcher.subscribe("#", qos=1)
        device = client_of(broker, "a", will=will)
        await device.__aenter__()
        device._client._sock_close()  # the socket alone, without DISCONNECT
        message = await next_message(watcher)
        assert (str(message.topic), message.payload) == ("taken", b"over")
    (request,) = provider.publishes
    assert dict(request.message.headers) == {}
    assert getattr(request.message, "from") == "a"


async def test_a_clean_disconnect_publishes_no_will() -> None:
    provider = ScriptedProvider({"message.publish": []})
    async with running(provider) as broker:
        async with client_of(broker, "a", will=aiomqtt.Will("wills/a", b"gone")):
            pass
        async with client_of(broker, "b") as other:
            await other.publish("after", b"", qos=1)
    assert [request.message.topic for request in provider.publishes] == ["after"]


# ---- what is made of the answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pb.ValuedResponse.CONTINUE, pb.ValuedResponse.STOP_AND_RETURN])
async def test_a_rewrite_reaches_the_publisher_under_the_new_topic(kind: pb.ValuedResponse.ResponsedType) -> None:
    async def respond(request: pb.MessagePublishRequest) -> pb.ValuedResponse:
        message = pb.Message(topic="command_send/a", payload=b"new", qos=1, id="X", node="X", timestamp=1)
        return pb.ValuedResponse(type=kind, message=message)

    provider = ScriptedProvider(respond=respond)
    async with running(provider) as broker, client_of(broker, "a") as device, client_of(broker, "b") as other:
        await device.subscribe("command_send/a", qos=2)
        await other.subscribe("event_report/#", qos=1)
        await device.publish("event_report/a", b"old", qos=0)
        message = await next_message(device)
        assert (str(message.topic), message.payload, message.qos) == ("command_send/a", b"new", 1)
        await device.publish("event_report", b"marker")  # outside the filter: the first that `other` gets
        assert (await next_message(other)).payload == b"marker"


@pytest.mark.parametrize(("answered", "delivered"), [(0, 0), (1, 1), (2, 2), (3, 2), (200, 2)])
async def test_the_answer_sets_the_qos_and_above_two_is_two(answered: int, delivered: int) -> None:
    provider = ScriptedProvider(respond=rewrite("command_send/a", b"", answered))
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.subscribe("command_send/a", qos=2)
        await device.publish("event_report/a", b"", qos=1)
        assert (await next_message(device)).qos == delivered


async def test_ignore_leaves_the_message_alone() -> None:
    async def respond(request: pb.MessagePublishRequest) -> pb.ValuedResponse:
        return pb.ValuedResponse(type=pb.ValuedResponse.IGNORE, message=pb.Message(topic="elsewhere"))

    provider = ScriptedProvider(respond=respond)
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.subscribe("#", qos=1)
        await device.publish("event_report/a", b"mine", qos=1)
        message = await next_message(device)
        assert (str(message.topic), message.payload) == ("event_report/a", b"mine")


async def test_a_message_that_may_not_be_published_is_acknowledged_and_dropped() -> None:
    provider = ScriptedProvider(respond=rewrite("event_report/a", b"", 1, allow_publish="false"))
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.subscribe("#", qos=1)
        await device.publish("event_report/a", b"", qos=1, timeout=DEADLINE_S)  # returns with the PUBACK
        await device.publish("marker", b"", qos=1)
        assert str((await next_message(device)).topic) == "marker"


async def test_a_rewritten_message_is_not_hooked_again() -> None:
    provider = ScriptedProvider({"message.publish": []}, rewrite("event_report/again", b"", 1))
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.subscribe("event_report/again", qos=1)
        await device.publish("event_report/a", b"", qos=1)
        await next_message(device)
    assert len(provider.publishes) == 1


async def test_the_retainer_keeps_the_original() -> None:
    provider = ScriptedProvider(respond=rewrite("command_send/a", b"new", 1))
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.publish("event_report/a", b"old", qos=1, retain=True)
        await device.subscribe("#", qos=1)
        message = await next_message(device)
        assert (str(message.topic), message.payload, message.retain) == ("event_report/a", b"old", True)


@pytest.mark.parametrize("topic", ["command_send/+", "#"])
async def test_a_wildcard_in_the_answer_drops_the_publishers_connection(topic: str) -> None:
    provider = ScriptedProvider(respond=rewrite(topic, b"", 1))
    async with running(provider) as broker, client_of(broker, "b") as other:
        device = client_of(broker, "a")
        await device.__aenter__()
        async with asyncio.timeout(DEADLINE_S):
            publishing = asyncio.create_task(device.publish("event_report/a", b"", qos=1, timeout=DEADLINE_S))
            with pytest.raises(aiomqtt.MqttError):
                await anext(device.messages)
        assert not publishing.done()  # no PUBACK came
        publishing.cancel()
        await device.__aexit__(None, None, None)
        await other.publish("still/here", b"", qos=1)


async def test_a_topic_too_long_for_mqtt_drops_the_subscriber_alone() -> None:
    provider = ScriptedProvider(respond=rewrite("t/" + "x" * 65_534, b"", 1))
    async with running(provider) as broker, client_of(broker, "a") as device:
        subscriber = client_of(broker, "b")
        await subscriber.__aenter__()
        await subscriber.subscribe("t/#", qos=1)
        await device.publish("event_report/a", b"", qos=1)
        with pytest.raises(aiomqtt.MqttError):
            await next_message(subscriber)
        await subscriber.__aexit__(None, None, None)
        await device.publish("still/here", b"", qos=1)


# ---- order and time -------------------------------------------------------------------------------------------------


class Gate:
    """Answers that wait until they are let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting: list[str] = []

    async def respond(self, request: pb.MessagePublishRequest) -> pb.ValuedResponse:
        self.waiting.append(request.message.payload.decode())
        await self.open.wait()
        return IGNORE


@pytest.mark.parametrize("qos", [1, 2])
async def test_the_acknowledgement_waits_for_the_answer(qos: int) -> None:
    gate = Gate()
    provider = ScriptedProvider(respond=gate.respond)
    async with running(provider) as broker:
        reader, writer = await raw_client(broker, "a")
        assert await reader.readexactly(4) == bytes.fromhex("20020000")
        writer.write(
            bytes([0x30 | qos << 1, 20]) + bytes.fromhex("000e") + b"event_report/a" + bytes.fromhex("0007 78 78")
        )
        await until(lambda: gate.waiting)
        async with client_of(broker, "b") as other:  # a whole other conversation goes by
            await other.publish("x", b"", qos=1)
        answer = asyncio.create_task(reader.readexactly(4))
        await asyncio.sleep(0)
        assert not answer.done()
        gate.open.set()
        async with asyncio.timeout(DEADLINE_S):
            assert await answer == bytes([0x40 if qos == 1 else 0x50, 2, 0, 7])
        if qos == 2:
            writer.write(bytes.fromhex("6202 0007"))
            assert await reader.readexactly(4) == bytes.fromhex("7002 0007")
        writer.close()


async def test_one_client_has_one_publish_at_the_provider_and_others_go_by() -> None:
    gate = Gate()
    provider = ScriptedProvider(respond=gate.respond)
    async with (
        running(provider) as broker,
        client_of(broker, "a") as a,
        client_of(broker, "b") as b,
        asyncio.TaskGroup() as tasks,
    ):
        for payload in ("a1", "a2", "a3"):
            tasks.create_task(a.publish("event_report/a", payload, qos=1))
        await until(lambda: gate.waiting == ["a1"])
        tasks.create_task(b.publish("event_report/b", "b1", qos=1))
        await until(lambda: len(gate.waiting) == 2)
        assert gate.waiting == ["a1", "b1"]
        gate.open.set()
    assert [payload for payload in gate.waiting if payload.startswith("a")] == ["a1", "a2", "a3"]


async def test_a_subscription_before_a_publish_of_the_same_client_counts_for_it() -> None:
    async with running(None) as broker:
        reader, writer = await raw_client(broker, "a")
        subscribe = bytes.fromhex("8206 0001 0001") + b"t\x00"
        writer.write(subscribe + bytes.fromhex("3004 0001") + b"tx")  # in one segment, no waiting for the SUBACK
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.readexactly(4 + 5 + 6) == (
                bytes.fromhex("20020000 9003000100") + bytes.fromhex("3004 0001") + b"tx"
            )
        writer.close()


# ---- a provider in trouble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failed_action", ["ignore", "deny"])
async def test_after_a_timeout_the_publish_passes_unmodified(failed_action: str) -> None:
    """Either way: `deny` ends the chain of servers, it does not drop a publish."""
    gate = Gate()
    provider = ScriptedProvider(respond=gate.respond)
    async with (
        running(provider, request_timeout_s=0.2, failed_action=failed_action) as broker,
        client_of(broker, "a") as device,
    ):
        await device.subscribe("#", qos=1)
        began = asyncio.get_running_loop().time()
        await device.publish("event_report/a", b"x", qos=1)
        assert asyncio.get_running_loop().time() - began >= 0.19
        assert (await next_message(device)).payload == b"x"
        gate.open.set()


async def test_an_error_status_passes_at_once() -> None:
    async def respond(request: pb.MessagePublishRequest) -> pb.ValuedResponse:
        raise RuntimeError("a provider's fault")

    provider = ScriptedProvider(respond=respond)
    async with running(provider) as broker, client_of(broker, "a") as device:
        await device.subscribe("#", qos=1)
        began = asyncio.get_running_loop().time()
        await device.publish("event_report/a", b"x", qos=1)
        assert (await next_message(device)).payload == b"x"
        assert asyncio.get_running_loop().time() - began < DEADLINE_S / 2


async def test_an_absent_provider_is_loaded_when_it_appears() -> None:
    provider = ScriptedProvider(respond=rewrite("command_send/a", b"new", 0))
    await provider.start()
    await provider.stop()  # its port is free again, and known
    async with running(provider, auto_reconnect_s=0.05) as broker, client_of(broker, "a") as device:
        await device.subscribe("#", qos=1)
        await device.publish("event_report/a", b"old", qos=1)
        assert (await next_message(device)).payload == b"old"
        await provider.start()
        async with asyncio.timeout(DEADLINE_S):
            await broker.wait_loaded()
        await device.publish("event_report/a", b"old", qos=1)
        assert (await next_message(device)).payload == b"new"


async def test_one_unknown_hook_name_fails_the_whole_load() -> None:
    provider = ScriptedProvider({"message.publish": [], "message.published": []})
    async with running(provider, auto_reconnect_s=0.05) as broker, client_of(broker, "a") as device:
        await until(lambda: len(provider.requests("OnProviderLoaded")) >= 2)
        await device.publish("event_report/a", b"", qos=1)
    assert provider.publishes == []


async def test_after_a_restart_the_old_hook_list_stays_and_nothing_is_loaded_again() -> None:
    provider = ScriptedProvider()
    async with running(provider, auto_reconnect_s=0.05) as broker, client_of(broker, "a") as device:
        await device.publish("event_report/a", b"1", qos=1)
        await provider.stop()
        await device.publish("event_report/a", b"2", qos=1)  # passes, seen by nobody
        provider.hooks = {"message.publish": ["other/+"]}
        await provider.start()
        await device.publish("event_report/a", b"3", qos=1)  # the very next call is answered
        await device.publish("other/a", b"4", qos=1)
    assert [request.message.payload for request in provider.publishes] == [b"1", b"3"]
    assert len(provider.requests("OnProviderLoaded")) == 1


class CutLine:
    """A relay before the provider whose connections can be cut, as when a machine dies: nobody says goodbye."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
        sink.close()


@pytest.mark.alone
async def test_a_call_in_flight_when_the_provider_dies_waits_its_timeout_and_passes() -> None:
    gate = Gate()
    provider = ScriptedProvider(respond=gate.respond)
    await provider.start()
    line = CutLine(provider.port)
    await line.start()
    async with (
        running(provider, url=f"127.0.0.1:{line.port}", request_timeout_s=0.5) as broker,
        client_of(broker, "a") as device,
    ):
        await device.subscribe("#", qos=1)
        began = asyncio.get_running_loop().time()
        publishing = asyncio.create_task(device.publish("event_report/a", b"1", qos=1))
        await until(lambda: gate.waiting)
        line.cut()
        await publishing
        assert asyncio.get_running_loop().time() - began >= 0.45
        assert (await next_message(device)).payload == b"1"
        began = asyncio.get_running_loop().time()
        await device.publish("event_report/a", b"2", qos=1)  # the next finds nobody and passes at once
        assert asyncio.get_running_loop().time() - began < 0.4
        assert (await next_message(device)).payload == b"2"
        gate.open.set()


# ---- notifications --------------------------------------------------------------------------------------------------


async def test_registered_notifications_tell_of_delivery_and_presence() -> None:
    names = (
        "client.connected",
        "client.disconnected",
        "session.subscribed",
        "session.resumed",
        "message.delivered",
        "message.acked",
        "message.dropped",
    )
    provider = ScriptedProvider(
        {name: ["command_send/+"] if name.startswith("message.") else [] for name in names}
        | {"message.publish": ["event_report/+"]},
        rewrite("command_send/a", b"command", 1),
    )
    async with running(provider) as broker:
        async with client_of(broker, "a", clean_session=False) as device:
            await device.subscribe("command_send/a", qos=1)
            await device.publish("event_report/a", b"", qos=1)
            await next_message(device)
            await until(lambda: provider.requests("OnMessageAcked"))
        async with client_of(broker, "a", clean_session=False) as device:
            await device.unsubscribe("command_send/a")
            await device.publish("command_send/a", b"nobody's", qos=1)
            await device.publish("not/filtered", b"", qos=1)
    (checked,) = provider.publishes
    subscribed = pb.SessionSubscribedRequest.FromString(*provider.requests("OnSessionSubscribed"))
    assert (subscribed.topic, subscribed.subopts.qos, subscribed.clientinfo.clientid) == ("command_send/a", 1, "a")
    delivered = pb.MessageDeliveredRequest.FromString(*provider.requests("OnMessageDelivered"))
    acked = pb.MessageAckedRequest.FromString(*provider.requests("OnMessageAcked"))
    assert delivered.message.id == acked.message.id == checked.message.id
    assert (acked.clientinfo.username, acked.message.topic) == ("a", "command_send/a")
    dropped = pb.MessageDroppedRequest.FromString(*provider.requests("OnMessageDropped"))
    assert (dropped.message.payload, dropped.reason) == (b"nobody's", "no_subscribers")
    assert len(provider.requests("OnClientConnected")) == 2
    assert len(provider.requests("OnSessionResumed")) == 1
    reasons = [pb.ClientDisconnectedRequest.FromString(raw).reason for raw in provider.requests("OnClientDisconnected")]
    assert reasons[0] == "normal"


def test_the_stand_in_runs_under_uvloop() -> None:
    async def scenario() -> bytes:
        provider = ScriptedProvider(respond=rewrite("command_send/a", b"new", 1))
        async with running(provider) as broker, client_of(broker, "a") as device:
            await device.subscribe("command_send/a", qos=1)
            await device.publish("event_report/a", b"old", qos=1)
            return bytes((await next_message(device)).payload)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == b"new"


@pytest.mark.parametrize(
    ("a_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/", False),
        ("a/+", "a/b", True),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("+/+", "/a", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a", True),
        ("#", "$SYS/a", False),
        ("+/a", "$SYS/a", False),
        ("$SYS/#", "$SYS/a", True),
    ],
)
def test_filters_match_as_mqtt_says(a_filter: str, topic: str, matches: bool) -> None:
    assert topic_matches(a_filter, topic) is matches
