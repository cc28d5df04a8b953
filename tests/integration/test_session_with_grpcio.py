"""The session behind a plain asyncio transport, called by grpcio's client, side by side with grpcio's own server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import pytest

from ota_hook.exhook._session import Call, Session
from tests.session_client import LOADED, PUBLISH, ROUTES

MESSAGE_BYTES = 256 * 1024
OPTIONS = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_concurrent_streams", 2**31 - 1)]
REFUSED = b"refuse me"


class EchoProtocol(asyncio.Protocol):
    """As small as a server on a session can be: it answers with the message, and refuses one."""

    def __init__(self, connections: set[EchoProtocol]) -> None:
        self.session: Session[str] = Session(ROUTES, max_message_bytes=MESSAGE_BYTES)
        self.connections = connections
        self.may_write = True
        self.calls = 0
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.connections.add(self)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        for call in self.session.receive(data):
            self.calls += 1
            self.answer(call)
        self.flush()

    def answer(self, call: Call[str]) -> None:
        if call.message == REFUSED:
            self.session.fail(call, grpc.StatusCode.FAILED_PRECONDITION.value[0], "so be it: 100 %")
        else:
            self.session.respond(call, call.message)

    def pause_writing(self) -> None:
        self.may_write = False
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.may_write = True
        self.transport.resume_reading()
        self.flush()

    def flush(self) -> None:
        while self.may_write and (data := self.session.data_to_send()):
            self.transport.write(data)
        if self.session.closing:
            self.transport.close()


@dataclass
class Service:
    """Where one of the two servers listens."""

    target: str
    connections: set[EchoProtocol] = field(default_factory=set)


@pytest.fixture
async def ours() -> AsyncIterator[Service]:
    connections: set[EchoProtocol] = set()
    server = await asyncio.get_running_loop().create_server(lambda: EchoProtocol(connections), "127.0.0.1", 0)
    yield Service(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connections)
    server.close()
    for connection in list(connections):
        connection.transport.abort()
    await server.wait_closed()


async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    if request == REFUSED:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "so be it: 100 %")
    return request


@pytest.fixture
async def theirs() -> AsyncIterator[Service]:
    server = grpc.aio.server(options=OPTIONS)
    handlers = {path.rsplit("/", 1)[1]: grpc.unary_unary_rpc_method_handler(echo) for path in (PUBLISH, LOADED)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(PUBLISH.strip("/").split("/", maxsplit=1)[0], handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Service(f"127.0.0.1:{port}")
    await server.stop(grace=None)


MakeCall = Callable[[grpc.aio.Channel], Awaitable[bytes]]


def unary(path: str, message: bytes, **options: object) -> MakeCall:
    def make(channel: grpc.aio.Channel) -> Awaitable[bytes]:
        call: Awaitable[bytes] = channel.unary_unary(path, None, None)(message, timeout=10, **options)  # type: ignore[arg-type]
        return call

    return make


async def outcome(service: Service, make: MakeCall) -> tuple[str, bytes | str]:
    """OK and the message, or the status and its text."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        try:
            return "OK", await make(channel)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""


@pytest.mark.parametrize(
    ("make", "status", "same_text"),
    [
        (unary(PUBLISH, b"hello"), "OK", True),
        (unary(LOADED, b""), "OK", True),
        (unary(PUBLISH, bytes(range(256)) * 1000), "OK", True),
        (unary(PUBLISH, REFUSED), "FAILED_PRECONDITION", True),
        (unary("/emqx.exhook.v2.HookProvider/OnCoffeeReady", b"x"), "UNIMPLEMENTED", False),
        (unary("/x", b"x"), "UNIMPLEMENTED", False),
        (unary(PUBLISH, b"x" * (MESSAGE_BYTES + 1)), "RESOURCE_EXHAUSTED", False),
        (unary(PUBLISH, b"x" * MESSAGE_BYTES), "OK", True),
        (unary(PUBLISH, b"hello", metadata=[("x-bin-bin", b"\x00\xff"), ("x", "y" * 5000)]), "OK", True),
    ],
)
async def test_both_servers_answer_alike(
    ours: Service, theirs: Service, make: MakeCall, status: str, *, same_text: bool
) -> None:
    our_outcome, their_outcome = await outcome(ours, make), await outcome(theirs, make)
    assert our_outcome[0] == their_outcome[0] == status
    if same_text:
        assert our_outcome == their_outcome


async def test_a_compressed_message_is_refused_with_a_clear_status(ours: Service) -> None:
    # grpcio's server inflates it; the broker never compresses.
    status, text = await outcome(ours, unary(PUBLISH, b"x" * 10_000, compression=grpc.Compression.Gzip))
    assert status == "UNIMPLEMENTED"
    assert "grpc-encoding" in str(text)


async def test_thousands_of_calls_share_one_connection(ours: Service) -> None:
    async with grpc.aio.insecure_channel(ours.target) as channel:
        method = channel.unary_unary(PUBLISH, None, None)
        for start in range(0, 3000, 300):
            messages = [b"%d" % number * (number % 50) for number in range(start, start + 300)]
            assert await asyncio.gather(*(method(message) for message in messages)) == messages
        (connection,) = ours.connections
        assert connection.calls == 3000
        assert connection.session.buffered_bytes == 0


async def test_large_messages_in_both_directions_share_the_windows(ours: Service) -> None:
    async with grpc.aio.insecure_channel(ours.target) as channel:
        method = channel.unary_unary(PUBLISH, None, None)
        messages = [bytes((number,)) * 200_000 for number in range(20)]
        answers = await asyncio.wait_for(asyncio.gather(*(method(message) for message in messages)), 60)
        assert answers == messages


async def test_a_refused_call_does_not_end_the_connection(ours: Service) -> None:
    async with grpc.aio.insecure_channel(ours.target) as channel:
        for _ in range(3):
            for make in (unary("/x", b"x"), unary(PUBLISH, b"x" * (MESSAGE_BYTES + 1)), unary(PUBLISH, REFUSED)):
                with pytest.raises(grpc.aio.AioRpcError):
                    await make(channel)
            assert await unary(PUBLISH, b"hello")(channel) == b"hello"
        (connection,) = ours.connections
        assert connection.calls == 6


async def test_a_client_moves_to_a_new_connection_after_the_goodbye(ours: Service) -> None:
    async with grpc.aio.insecure_channel(ours.target) as channel:
        assert await unary(PUBLISH, b"one")(channel) == b"one"
        (first,) = ours.connections
        first.session.start_drain()
        first.flush()
        await asyncio.wait_for(first.lost.wait(), 5)  # the client closes it
        assert await unary(PUBLISH, b"two")(channel) == b"two"
        (second,) = ours.connections
        assert (first.calls, second.calls) == (1, 1)


async def test_a_cancelled_call_leaves_nothing_behind(ours: Service) -> None:
    async with grpc.aio.insecure_channel(ours.target) as channel:
        method = channel.unary_unary(PUBLISH, None, None)
        await method(b"first")
        (connection,) = ours.connections
        held: list[Call[str]] = []
        arrived = asyncio.Event()

        def hold(call: Call[str]) -> None:
            held.append(call)
            arrived.set()

        connection.answer = hold  # type: ignore[method-assign]
        cancelled = method(b"second")
        await asyncio.wait_for(arrived.wait(), 5)
        cancelled.cancel()
        del connection.answer
        assert await method(b"third") == b"third"
        assert connection.session.open_calls == 1
        connection.session.respond(held[0], b"too late")
        connection.flush()
        assert await method(b"fourth") == b"fourth"
        assert connection.session.buffered_bytes == 0
