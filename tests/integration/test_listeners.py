"""The provider behind real gRPC on both listeners: paths, statuses, bounds, TLS – and where the two differ."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import trustme

from ota_hook.dialect import BUILT_IN_DIALECTS, parse_dialect
from ota_hook.errors import ConfigurationError
from ota_hook.exhook.context import HookContext, HookOptions
from ota_hook.exhook.exhook_pb2 import LoadedResponse, Message, MessagePublishRequest, RequestMeta, ValuedResponse
from ota_hook.exhook.grpcio_listener import GrpcioListener
from ota_hook.exhook.listener import _CROSSING_S, Listener
from ota_hook.exhook.provider import METHODS, HookProvider
from ota_hook.metrics import HookMetrics
from ota_hook.model import DeviceState, ReportedVersion
from ota_hook.ports.device_messages import DeviceDone
from tests.doubles import (
    CountingIds,
    FixedSnapshot,
    MemoryBlocks,
    MemoryChildren,
    MemoryDevices,
    MemoryOffers,
    MemoryPresence,
    make_firmware,
    make_snapshot,
)
from tests.integration.grpc_socket import DATA, END_STREAM, GOAWAY, HEADERS, SocketClient, socket_client
from tests.integration.waiting import eventually
from tests.session_client import Headers, broker_headers, framed

SERVICE = "/emqx.exhook.v2.HookProvider"
PUBLISH = f"{SERVICE}/OnMessagePublish"
MESSAGE_BYTES = 16_000
CHECK = MessagePublishRequest(
    message=Message(topic="event_report/d1", payload=b'{"method":"otaCheck"}', qos=1, headers={"username": "d1"})
).SerializeToString()
REPORT = MessagePublishRequest(
    message=Message(topic="attributes/d1", payload=b'{"version":"1.1"}', qos=1, headers={"username": "d1"})
).SerializeToString()
WHOLE_CHECK = MessagePublishRequest(
    message=Message(
        node="emqx@172.17.0.2",
        id="000634F6C0F1D2B2F4450000082A0001",
        qos=1,
        topic="event_report/d1",
        payload=b'{"method":"otaCheck","params":{"note":"some forty bytes that are nobody\'s business"}}',
        timestamp=900,
        headers={"username": "d1", "protocol": "mqtt", "peerhost": "172.17.0.1", "allow_publish": "true"},
        **{"from": "client-d1"},
    ),
    meta=RequestMeta(node="emqx@172.17.0.2", version="5.8.9", sysdescr="EMQX", cluster_name="emqxcl"),
).SerializeToString()
"""As EMQX sends it: much of it may change and it is still that check."""
IGNORE = b"\x08\x01"

AnyListener = Listener | GrpcioListener
Make = Callable[..., AnyListener]


def make_provider(devices: MemoryDevices | None = None) -> HookProvider:
    versions = {"version": ReportedVersion("1.0", 1)}
    devices = devices or MemoryDevices()
    devices.devices["d1"] = DeviceState(identifier="d1", device_type="tracker", versions=versions)
    context = HookContext(
        options=HookOptions(dialect=parse_dialect("eztcloud", BUILT_IN_DIALECTS["eztcloud"]), http_base="http://h"),
        snapshots=FixedSnapshot(make_snapshot(make_firmware("F", "2.0"))),
        devices=devices,
        children=MemoryChildren(devices),
        offers=MemoryOffers(devices),
        presence=MemoryPresence(),
        blocks=MemoryBlocks(),
        command_ids=CountingIds(),
        publisher=None,
        metrics=HookMetrics(),
        clock_ms=lambda: 1_000,
    )
    return HookProvider(context)


def make_native(provider: HookProvider, *, port: int = 0, **options: Any) -> Listener:
    return Listener(provider, host="127.0.0.1", port=port, **({"message_bytes": MESSAGE_BYTES} | options))


def make_grpcio(provider: HookProvider, *, port: int = 0, **options: Any) -> GrpcioListener:
    return GrpcioListener(provider, listen=f"127.0.0.1:{port}", **({"message_bytes": MESSAGE_BYTES} | options))


@pytest.fixture(params=[make_native, make_grpcio], ids=["native", "grpcio"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@asynccontextmanager
async def serving(listener: AnyListener) -> AsyncIterator[int]:
    """The port."""
    await listener.start()
    try:
        yield listener.port
    finally:
        await listener.stop()


@pytest.fixture
async def channel(make: Make) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(make(make_provider())) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened


async def call(channel: grpc.aio.Channel, path: str, request: bytes = b"") -> bytes:
    answer: bytes = await channel.unary_unary(path, None, None)(request, timeout=5)
    return answer


# ---- the same tests on both


@pytest.mark.both_loops
@pytest.mark.parametrize("package", ["v1", "v2", "v3"])
async def test_every_package_is_served(channel: grpc.aio.Channel, package: str) -> None:
    service = f"/emqx.exhook.{package}.HookProvider"
    loaded = LoadedResponse.FromString(await call(channel, f"{service}/OnProviderLoaded"))
    assert [hook.name for hook in loaded.hooks] == [
        *("message.publish", "message.acked", "message.dropped"),
        *("client.connected", "session.resumed", "client.disconnected"),
    ]
    answer = ValuedResponse.FromString(await call(channel, f"{service}/OnMessagePublish", CHECK))
    assert answer.message.topic == "command_send/d1"


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_every_method_is_served_without_having_seen_the_load(channel: grpc.aio.Channel, method: str) -> None:
    await call(channel, f"{SERVICE}/{method}")


@pytest.mark.parametrize("path", ["/emqx.exhook.v4.HookProvider/OnMessagePublish", f"{SERVICE}/OnCoffeeReady", "/x/y"])
async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, path)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_bound_is_refused_and_the_connection_goes_on(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, PUBLISH, b"x" * (MESSAGE_BYTES + 1))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await call(channel, PUBLISH, CHECK) != IGNORE


@pytest.mark.both_loops
async def test_many_calls_at_once_on_many_connections_are_each_answered(make: Make) -> None:
    async with serving(make(make_provider())) as port:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(4)]
        answers = await asyncio.gather(*(call(channels[number % 4], PUBLISH, CHECK) for number in range(400)))
        commands = {ValuedResponse.FromString(answer).message.payload for answer in answers}
        assert len(commands) == 400  # each has an id of its own
        for opened in channels:
            await opened.close(None)


@pytest.mark.both_loops
async def test_with_mtls_only_a_client_with_a_certificate_is_served(make: Make, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("emqx@example.com")
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem", "tls_client_ca": tmp_path / "ca.pem"}
    server.cert_chain_pems[0].write_to_path(files["tls_cert"])
    server.private_key_pem.write_to_path(files["tls_key"])
    authority.cert_pem.write_to_path(files["tls_client_ca"])
    unknown = stranger.issue_cert("emqx@example.com")
    async with serving(make(make_provider(), **files)) as port:

        def connect(pair: trustme.LeafCert | None) -> grpc.aio.Channel:
            own = (pair.private_key_pem.bytes(), pair.cert_chain_pems[0].bytes()) if pair is not None else (None, None)
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), *own)
            return grpc.aio.secure_channel(f"localhost:{port}", credentials)

        async with connect(client) as opened:
            assert await call(opened, PUBLISH, CHECK) != IGNORE
        for refused in (connect(None), connect(unknown), grpc.aio.insecure_channel(f"127.0.0.1:{port}")):
            async with refused as opened:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call(opened, PUBLISH, CHECK)
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_client_ca"])
async def test_a_tls_file_that_is_not_there_is_a_configuration_error(make: Make, tmp_path: Path, missing: str) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem", "tls_client_ca": tmp_path / "ca.pem"}
    issued.cert_chain_pems[0].write_to_path(files["tls_cert"])
    issued.private_key_pem.write_to_path(files["tls_key"])
    authority.cert_pem.write_to_path(files["tls_client_ca"])
    files[missing].unlink()
    with pytest.raises(ConfigurationError, match="TLS"):
        make(make_provider(), **files)


async def test_a_port_that_is_taken_is_a_configuration_error(make: Make) -> None:
    async with serving(make(make_provider())) as port:
        second = make(make_provider(), port=port)
        with pytest.raises(ConfigurationError, match="can't be bound"):
            await second.start()


# ---- their end


class SlowDevices(MemoryDevices):
    """Redis that answers when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []

    def load_device(self, identifier: str, done: DeviceDone) -> None:
        load = super().load_device
        self.waiting.append(lambda: load(identifier, done))


async def arrived(devices: SlowDevices, count: int) -> None:
    await eventually(lambda: len(devices.waiting) == count, what="the arrival of the calls")


@pytest.mark.both_loops
async def test_calls_under_way_are_answered_before_the_listener_ends() -> None:
    devices = SlowDevices()
    listener = make_native(make_provider(devices))
    await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as opened:
        calls = [asyncio.ensure_future(call(opened, PUBLISH, CHECK)) for _ in range(20)]
        await arrived(devices, 20)
        ending = asyncio.create_task(listener.stop())
        await asyncio.sleep(0.1)
        assert not any(under_way.done() for under_way in calls)
        for answer in devices.waiting:
            answer()
        assert IGNORE not in await asyncio.gather(*calls)
        await ending


@pytest.mark.both_loops
async def test_a_call_that_crosses_the_goodbye_is_answered() -> None:
    devices = SlowDevices()
    listener = make_native(make_provider(devices))
    await listener.start()
    async with socket_client(listener.port) as client:
        calls = [client.peer.call(CHECK)]
        client.flush()
        await arrived(devices, 1)
        ending = asyncio.create_task(listener.stop())
        await asyncio.sleep(0.05)
        devices.waiting.pop()()
        await eventually(lambda: all(one.session.drained for one in listener.connections), what="the goodbye")
        # It is on its way, or lies here unread.
        calls.append(client.peer.call(CHECK))
        client.flush()
        await arrived(devices, 1)
        await asyncio.sleep(2 * _CROSSING_S)
        devices.waiting.pop()()
        frames = [frame async for frame in client.read_frames()]
        await ending
    kinds = [frame.kind for frame in frames]
    assert kinds.count(GOAWAY) == 1
    for stream_id in calls:
        assert b'"upgrade":true' in b"".join(
            frame.payload for frame in frames if frame.kind == DATA and frame.stream_id == stream_id
        )
        ends = [frame.kind for frame in frames if frame.stream_id == stream_id and frame.flags & END_STREAM]
        assert ends == [HEADERS]
    last = max(index for index, frame in enumerate(frames) if frame.stream_id == calls[0])
    assert last < kinds.index(GOAWAY), "the broker loses calls that are open at the goodbye"


@pytest.mark.both_loops
async def test_an_idle_connection_is_told_goodbye_and_closed() -> None:
    listener = make_native(make_provider())
    await listener.start()
    async with socket_client(listener.port) as client:
        assert (await client.call(framed(CHECK))).status == 0
        began = asyncio.get_running_loop().time()
        ending = asyncio.create_task(listener.stop())
        kinds = [frame.kind async for frame in client.read_frames()]
        assert GOAWAY in kinds
        await ending
        assert asyncio.get_running_loop().time() - began < _CROSSING_S + 2


@pytest.mark.both_loops
async def test_a_call_that_nobody_answers_does_not_hold_the_end_up_for_ever() -> None:
    devices = SlowDevices()
    listener = make_native(make_provider(devices))
    await listener.start()
    async with socket_client(listener.port) as client:
        client.peer.call(CHECK)  # Redis never answers, and nothing keeps a budget here
        client.flush()
        await arrived(devices, 1)
        with structlog.testing.capture_logs() as said:
            await listener.stop(drain_seconds=0.3)
        assert [line["count"] for line in said if line["event"] == "connections_cut"] == [1]
        await eventually(lambda: not listener.connections, what="the cut")
        devices.waiting.pop()()  # nobody is there any more


# ---- byte by byte

Outcome = tuple[object, object, bytes]
"""HTTP status, gRPC status (or `reset` and its code), message."""


async def outcome(client: SocketClient, body: bytes | list[bytes], headers: Headers | None = None) -> Outcome:
    answer = await client.call(body, headers)
    if answer.reset is not None:
        return None, f"reset {answer.reset}", b""
    return answer.headers[":status"], answer.status, answer.message if answer.body else b""


@pytest.fixture
async def both() -> AsyncIterator[Callable[..., Awaitable[tuple[Outcome, Outcome]]]]:
    """Makes the same call to both, on one connection each as long as it lasts."""
    async with (
        serving(make_native(make_provider())) as native,
        serving(make_grpcio(make_provider())) as grpcio,
        socket_client(native) as to_native,
        socket_client(grpcio) as to_grpcio,
    ):

        async def ask(body: bytes | list[bytes], headers: Headers | None = None) -> tuple[Outcome, Outcome]:
            first, second = await asyncio.gather(outcome(to_native, body, headers), outcome(to_grpcio, body, headers))
            return first, second

        yield ask


Ask = Callable[..., Awaitable[tuple[Outcome, Outcome]]]

ALIKE: dict[str, tuple[bytes | list[bytes], Headers | None]] = {
    "a check": (framed(CHECK), None),
    "a report": (framed(REPORT), None),
    "a message of no bytes": (framed(b""), None),
    "a message that is no protobuf": (framed(b"\xff" * 20), None),
    "a check, byte by byte": ([bytes((byte,)) for byte in framed(CHECK)], None),
    "the longest message": (framed(b"x" * MESSAGE_BYTES), None),
    "a longer message": (framed(b"x" * (MESSAGE_BYTES + 1)), None),
    "a message that says it is 4 GiB": (framed(b"x", length=2**32 - 1), None),
    "an unknown method": (framed(CHECK), broker_headers(f"{SERVICE}/OnCoffeeReady")),
    "an unknown package": (framed(CHECK), broker_headers("/emqx.exhook.v4.HookProvider/OnMessagePublish")),
    "a method without service": (framed(CHECK), broker_headers("/OnMessagePublish")),
    "a path of nothing but a slash": (framed(CHECK), broker_headers("/")),
    "a path with a query": (framed(CHECK), broker_headers(f"{PUBLISH}?x=1")),
    "v1": (framed(CHECK), broker_headers(PUBLISH.replace("v2", "v1"))),
    "v3": (framed(CHECK), broker_headers(PUBLISH.replace("v2", "v3"))),
    "the compressed flag without an encoding": (framed(CHECK, flag=1), None),
    "gzip announced and not used": (framed(CHECK), broker_headers(grpc_encoding="gzip")),
    "no encoding announced": (framed(CHECK), broker_headers(grpc_encoding=None)),
    "application/grpc": (framed(CHECK), broker_headers(content_type="application/grpc")),
    "application/grpc+json": (framed(CHECK), broker_headers(content_type="application/grpc+json")),
    "no grpc-timeout": (framed(CHECK), broker_headers(grpc_timeout=None)),
    "the scheme https": (framed(CHECK), broker_headers(_scheme="https")),
    "headers of 60 kB": (framed(CHECK), [*broker_headers(), ("x", "v" * 60_000)]),
}


@pytest.mark.parametrize("name", ALIKE)
async def test_both_listeners_answer_alike(both: Ask, name: str) -> None:
    native, grpcio = await both(*ALIKE[name])
    assert native == grpcio
    native, grpcio = await both(framed(CHECK))  # and their connections go on
    assert native == grpcio
    assert native[:2] == ("200", 0)


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_both_listeners_answer_every_method_alike_whatever_it_is_sent(both: Ask, method: str) -> None:
    for request in (b"", CHECK, b"\xff\xff\xff"):
        native, grpcio = await both(framed(request), broker_headers(f"{SERVICE}/{method}"))
        assert native == grpcio
        assert native[:2] == ("200", 0)


async def test_both_listeners_answer_every_truncated_and_mangled_message_alike(both: Ask) -> None:
    rng = random.Random(20_250_618)
    messages = [said[:length] for said in (WHOLE_CHECK, REPORT) for length in range(len(said))]
    for _ in range(400):
        mangled = bytearray(rng.choice((WHOLE_CHECK, WHOLE_CHECK, REPORT)))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(mangled))
            if rng.random() < 0.7:
                mangled[at] = rng.randrange(256)
            else:
                mangled[at:at] = rng.randbytes(rng.randint(1, 5))
        messages.append(bytes(mangled))
    answers = set()
    for message in messages:
        native, grpcio = await both(framed(message))
        assert native == grpcio, message
        answers.add(native[2])
    assert len(answers) > 10  # among them are offers


QUICK = "300m"
"""A grpc-timeout for what one of them never answers."""

DIFFERENT: dict[str, tuple[bytes | list[bytes], Headers | None, Outcome, Outcome]] = {
    "no message": (b"", broker_headers(grpc_timeout=QUICK), ("200", 12, b""), ("200", 4, b"")),
    "the end within the message": (
        framed(CHECK)[:-3],
        broker_headers(grpc_timeout=QUICK),
        ("200", 13, b""),
        ("200", 4, b""),
    ),
    "the end within the prefix": (b"\0\0\0", broker_headers(grpc_timeout=QUICK), ("200", 13, b""), ("200", 4, b"")),
    "a second message": (framed(CHECK) + framed(CHECK), None, ("200", 12, b""), ("200", 0, b"offer")),
    "bytes behind the message": (framed(CHECK) + b"\0\0", None, ("200", 12, b""), ("200", 0, b"offer")),
    "a message compressed with gzip": (
        framed(CHECK, flag=1),
        broker_headers(grpc_encoding="gzip"),
        ("200", 12, b""),
        ("200", 13, b""),  # it is not really gzip; grpcio would read one that is
    ),
    "an encoding that grpcio does not know": (
        framed(CHECK),
        broker_headers(grpc_encoding="zstd"),
        ("200", 0, b"offer"),
        ("200", 13, b""),
    ),
    "a flag other than 0 and 1": (framed(CHECK, flag=2), None, ("200", 13, b""), ("200", 0, IGNORE)),
    "a content-type other than gRPC's, or none": (
        framed(CHECK),
        broker_headers(content_type="text/plain"),
        ("415", 3, b""),
        ("200", 0, b"offer"),
    ),
    "a method other than POST": (
        framed(CHECK),
        broker_headers(_method="GET"),
        ("405", 13, b""),
        (None, "reset 2", b""),
    ),
    "no `te: trailers`": (framed(CHECK), broker_headers(te=None), ("200", 0, b"offer"), (None, "reset 2", b"")),
    "a grpc-timeout that can't be read": (
        framed(CHECK),
        broker_headers(grpc_timeout="soon"),
        ("200", 0, b"offer"),
        ("200", 13, b""),
    ),
    "a path without a slash in front": (
        framed(CHECK),
        broker_headers("x"),
        (None, "reset 1", b""),
        ("200", 12, b""),
    ),
    "headers over 64 KiB": (
        framed(CHECK),
        [*broker_headers(), ("x", "v" * 70_000)],
        ("200", 8, b""),
        ("200", 0, b"offer"),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
async def test_where_the_listeners_differ_they_differ_as_written(both: Ask, name: str) -> None:
    body, headers, expected_of_native, expected_of_grpcio = DIFFERENT[name]
    native, grpcio = await both(body, headers)
    assert _in_words(native) == expected_of_native
    assert _in_words(grpcio) == expected_of_grpcio
    native, _ = await both(framed(CHECK))  # and the connection goes on
    assert native[:2] == ("200", 0)


def _in_words(found: Outcome) -> Outcome:
    http, status, message = found
    is_offer = len(message) > len(IGNORE) and b'"upgrade":true' in message
    return http, status, b"offer" if is_offer else message


def test_the_table_of_differences_is_the_one_that_is_tested() -> None:
    text = next((Path(__file__).parents[2] / "docs" / "adr").glob("*-native-transport-beside-grpcio.md")).read_text()
    rows = [[cell.strip() for cell in row] for row in re.findall(r"(?m)^\| (.+?) \| (.+?) \| (.+?) \| .+ \|$", text)]
    table = {request: (native, grpcio) for request, native, grpcio in rows if request not in {"request", "---"}}
    assert table == {name: (_cell(case[2]), _cell(case[3])) for name, case in DIFFERENT.items()}


def _cell(found: Outcome) -> str:
    http, status, message = found
    if isinstance(status, str):
        return f"stream {status}"
    names = {0: "answered", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 8: "RESOURCE_EXHAUSTED"}
    name = (names | {12: "UNIMPLEMENTED", 13: "INTERNAL"})[int(str(status))]
    if message == IGNORE:
        name += " with IGNORE"
    return name if http == "200" else f"{name}, HTTP {http}"
