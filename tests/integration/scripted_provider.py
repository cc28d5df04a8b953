"""A scripted ExHook provider on a real gRPC server, and the stand-in broker that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import grpc

from ota_hook.exhook import exhook_pb2 as pb
from ota_hook.standin.broker import ExhookOptions, StandinBroker

Responder = Callable[[pb.MessagePublishRequest], Awaitable[pb.ValuedResponse]]
Hooks = dict[str, list[str]]
DEADLINE_S = 10.0
IGNORE = pb.ValuedResponse(type=pb.ValuedResponse.IGNORE)
ALL_EVENTS: Hooks = {"message.publish": ["event_report/+"]}


async def ignore(request: pb.MessagePublishRequest) -> pb.ValuedResponse:
    return IGNORE


def rewrite(topic: str, payload: bytes, qos: int, **headers: str) -> Responder:
    async def respond(request: pb.MessagePublishRequest) -> pb.ValuedResponse:
        message = pb.Message(topic=topic, payload=payload, qos=qos, headers=headers)
        return pb.ValuedResponse(type=pb.ValuedResponse.STOP_AND_RETURN, message=message)

    return respond


class ScriptedProvider:
    """A real gRPC server that keeps each call's path and bytes and answers publishes by script."""

    def __init__(self, hooks: Hooks | None = None, respond: Responder = ignore) -> None:
        self.hooks = ALL_EVENTS if hooks is None else hooks
        self.respond = respond
        self.calls: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.peers: set[str] = set()
        self.arrived = asyncio.Event()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def publishes(self) -> list[pb.MessagePublishRequest]:
        return [pb.MessagePublishRequest.FromString(raw) for raw in self.requests("OnMessagePublish")]

    def requests(self, rpc: str) -> list[bytes]:
        return [raw for path, raw in self.calls if path.endswith("/" + rpc)]

    async def start(self) -> None:
        # Without SO_REUSEPORT a second server on the port would be accepted, and a test that forgot one would pass.
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_AnyMethod(self),))
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace=None)

    async def answer(self, path: str, raw: bytes, context: Any) -> bytes:
        self.calls.append((path, raw))
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())
        self.arrived.set()
        match path.rsplit("/", 1)[1]:
            case "OnProviderLoaded":
                specs = [pb.HookSpec(name=name, topics=topics) for name, topics in self.hooks.items()]
                return pb.LoadedResponse(hooks=specs).SerializeToString()
            case "OnMessagePublish":
                return (await self.respond(pb.MessagePublishRequest.FromString(raw))).SerializeToString()
        return pb.EmptySuccess().SerializeToString()


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[type-arg] # the class takes none
    def __init__(self, provider: ScriptedProvider) -> None:
        self._provider = provider

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method

        async def answer(raw: bytes, context: Any) -> bytes:
            return await self._provider.answer(path, raw, context)

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def running(provider: ScriptedProvider | None, **options: Any) -> AsyncIterator[StandinBroker]:
    """A broker that asks `provider`, which is started here unless it runs; both are stopped."""
    exhook = None
    if provider is not None:
        if not provider.port:
            await provider.start()
        exhook = replace(ExhookOptions(url=provider.url, request_timeout_s=DEADLINE_S), **options)
    broker = StandinBroker(host="127.0.0.1", port=0, exhook=exhook)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()
        if provider is not None:
            await provider.stop()


def client_of(broker: StandinBroker, name: str, **options: Any) -> aiomqtt.Client:
    address = urlsplit(broker.mqtt_url)
    options = {"identifier": name, "username": name, **options}
    return aiomqtt.Client(address.hostname or "", address.port or 0, **options)


async def next_message(client: aiomqtt.Client) -> aiomqtt.Message:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(client.messages)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens elsewhere and raises no event
            await asyncio.sleep(0.005)
