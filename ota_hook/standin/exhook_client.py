"""The broker's half of ExHook: loads a provider's hooks and asks it about publishes, as EMQX was measured to do.

Owns the pool of gRPC channels, the hook list and what is applied of an answer. It must not know MQTT connections,
sessions or delivery; broker.py calls it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from ota_hook.exhook import exhook_pb2 as pb

MESSAGE_PUBLISH: Final = "message.publish"

NOTIFICATIONS: Final[Mapping[str, str]] = {
    "client.connected": "OnClientConnected",
    "client.disconnected": "OnClientDisconnected",
    "session.resumed": "OnSessionResumed",
    "session.subscribed": "OnSessionSubscribed",
    "message.delivered": "OnMessageDelivered",
    "message.acked": "OnMessageAcked",
    "message.dropped": "OnMessageDropped",
}
"""The hooks that the stand-in can notify of, each with its RPC."""

_KNOWN_HOOKS: Final = frozenset(NOTIFICATIONS) | {
    MESSAGE_PUBLISH,
    "client.connect",
    "client.connack",
    "client.authenticate",
    "client.authorize",
    "client.subscribe",
    "client.unsubscribe",
    "session.created",
    "session.unsubscribed",
    "session.discarded",
    "session.takenover",
    "session.terminated",
}
_IMITATED_VERSION: Final = {"v2": "5.8.9", "v3": "6.0.0"}
_CHANNEL_OPTIONS: Final = (
    # grpcio would share one connection among channels to the same address; EMQX has one per pool worker.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.primary_user_agent", "ota-hook-standin"),
)

_STATE_LAG_S: Final = 0.2
"""A channel's state follows so much after its calls failed, at worst."""

_log = structlog.get_logger(__name__)
_Response = TypeVar("_Response", bound=Message)


class PublisherCrashError(Exception):
    """The answer names a topic with `+` or `#`: on the real broker the publisher's connection crashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhookOptions:
    """Where the provider is and how the broker treats it; names and defaults (but one) are EMQX's.

    `failed_action` is `ignore` as recommended, not EMQX's `deny`. For a publish both let it pass unmodified, `deny`
    also ends the chain of servers – and there is one server here. `url` is HOST:PORT, plain HTTP/2.
    """

    url: str = "127.0.0.1:9000"
    package: Literal["v2", "v3"] = "v2"
    pool_size: int = 8
    request_timeout_s: float = 5.0
    failed_action: Literal["ignore", "deny"] = "ignore"
    auto_reconnect_s: float = 60.0


class ExhookClient:
    """Calls one provider. Every method returns; a provider that is absent, silent or wrong is logged and passed by."""

    def __init__(self, options: ExhookOptions, *, node: str) -> None:
        self._options = options
        self._pool = [_PoolWorker(options) for _ in range(options.pool_size)]
        self._hooks: Mapping[str, tuple[str, ...]] = {}
        self._loading: asyncio.Task[None] | None = None
        self._failing = False
        self.loaded = asyncio.Event()
        self.node = node
        self.meta = pb.RequestMeta(
            node=node,
            version=_IMITATED_VERSION[options.package],
            sysdescr="ota-hook stand-in broker, not EMQX",
            cluster_name="emqxcl",
        )

    async def start(self) -> None:
        """Load the hook list; where that fails, try again each `auto_reconnect_s` seconds until it works or `stop`."""
        if not await self._load():
            self._loading = asyncio.create_task(self._load_later())

    async def stop(self) -> None:
        """Say goodbye to a provider that was loaded, and close the connections."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if self.loaded.is_set():
            await self._call("", "OnProviderUnloaded", pb.ProviderUnloadedRequest(meta=self.meta), pb.EmptySuccess)
        for worker in self._pool:
            await worker.channel.close(grace=None)

    def wants(self, hook: str, topic: str | None = None) -> bool:
        """Whether the provider registered `hook`, for `topic` where the hook has topic filters."""
        filters = self._hooks.get(hook)
        if filters is None:
            return False
        if topic is None or not filters:
            return True
        return not topic.startswith("$SYS/") and any(topic_matches(a_filter, topic) for a_filter in filters)

    async def ask_publish(self, message: pb.Message) -> pb.Message:
        """The message to route: `message` itself, or with the answer's topic, payload, qos and `allow_publish`.

        Raises PublisherCrashError for an answer that crashes the publisher's connection on the real broker.
        """
        if not self.wants(MESSAGE_PUBLISH, message.topic):
            return message
        request = pb.MessagePublishRequest(message=message, meta=self.meta)
        client_id = getattr(message, "from")
        answer = await self._call(client_id, "OnMessagePublish", request, pb.ValuedResponse)
        if answer is None or answer.type == pb.ValuedResponse.IGNORE:
            return message
        if answer.WhichOneof("value") != "message":
            _log.warning("exhook_answer_without_message", topic=message.topic)
            return message
        return _apply(answer.message, message)

    async def notify(self, hook: str, client_id: str, request: Message) -> None:
        """Tell the provider; returns when it answered, or did not within the timeout. Ask `wants` before."""
        await self._call(client_id, NOTIFICATIONS[hook], request, pb.EmptySuccess)

    async def _load(self) -> bool:
        broker = pb.BrokerInfo(
            version=self.meta.version, sysdescr=self.meta.sysdescr, uptime=0, datetime="1970-01-01T00:00:00Z"
        )
        request = pb.ProviderLoadedRequest(broker=broker, meta=self.meta)
        answer = await self._call("", "OnProviderLoaded", request, pb.LoadedResponse)
        if answer is None:
            return False
        unknown = sorted({spec.name for spec in answer.hooks} - _KNOWN_HOOKS)
        if unknown:
            _log.error("exhook_unknown_hooks", hooks=unknown)
            return False
        self._hooks = {spec.name: tuple(spec.topics) for spec in answer.hooks}
        unimitated = sorted(set(self._hooks) - set(NOTIFICATIONS) - {MESSAGE_PUBLISH})
        if unimitated:
            _log.warning("exhook_hooks_not_imitated", hooks=unimitated)
        self.loaded.set()
        _log.info("exhook_loaded", server=self._options.url, hooks=sorted(self._hooks))
        return True

    async def _load_later(self) -> None:
        while True:
            await asyncio.sleep(self._options.auto_reconnect_s)
            if await self._load():
                return

    async def _call(self, client_id: str, rpc: str, request: Message, response: type[_Response]) -> _Response | None:
        """The provider's answer, None where there is none within the timeout."""
        # One client, one worker, as long as the pool lives: EMQX hashes too, with another function.
        worker = self._pool[zlib.crc32(client_id.encode()) % len(self._pool)]
        try:
            answer = response.FromString(await worker.call(rpc, request.SerializeToString()))
        except (grpc.aio.AioRpcError, DecodeError, OSError) as exc:  # TimeoutError is an OSError
            self._note_failure(rpc, exc)
            return None
        if self._failing:
            self._failing = False
            _log.info("exhook_answers_again", server=self._options.url)
        return answer

    def _note_failure(self, rpc: str, exc: Exception) -> None:
        """Log the first failure of a row; each publish would log one otherwise."""
        if not self._failing:
            self._failing = True
            reason = exc.code().name if isinstance(exc, grpc.aio.AioRpcError) else type(exc).__name__
            _log.warning("exhook_call_failed", server=self._options.url, rpc=rpc, reason=reason)


class _PoolWorker:
    """One connection of the pool."""

    def __init__(self, options: ExhookOptions) -> None:
        self._options = options
        self._calls: dict[str, Callable[..., Any]] = {}
        self.channel = self._open()

    def _open(self) -> grpc.aio.Channel:
        self._calls = {}
        return grpc.aio.insecure_channel(self._options.url, options=_CHANNEL_OPTIONS)

    async def call(self, rpc: str, request: bytes) -> bytes:
        """The answer's bytes. Raises AioRpcError or TimeoutError, ConnectionError where nobody is there."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.request_timeout_s
        async with asyncio.timeout_at(deadline):
            channel = await self._connect()
        if rpc not in self._calls:
            path = f"/emqx.exhook.{self._options.package}.HookProvider/{rpc}"
            self._calls[rpc] = channel.unary_unary(path, request_serializer=None, response_deserializer=None)
        try:
            answer: bytes = await self._calls[rpc](request, timeout=max(0.0, deadline - loop.time()))
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.UNAVAILABLE and await _is_lost(channel):
                # Measured: a call in flight when the server dies waits out its timeout; a status passes at once.
                await asyncio.sleep(max(0.0, deadline - loop.time()))
            raise
        return answer

    async def _connect(self) -> grpc.aio.Channel:
        """The channel, connected. A failed one is replaced: EMQX's next call connects anew, grpcio would back off."""
        if self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self.channel = self._open()  # the old one closes when its last call let go of it
        channel = self.channel
        while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise ConnectionError(self._options.url)
            await channel.wait_for_state_change(state)
        return channel


async def _is_lost(channel: grpc.aio.Channel) -> bool:
    """Whether a call failed with its connection. A status of the server's leaves the channel ready."""
    ready = grpc.ChannelConnectivity.READY
    with suppress(TimeoutError):
        async with asyncio.timeout(_STATE_LAG_S):
            await channel.wait_for_state_change(ready)
    return channel.get_state() is not ready


def _apply(answer: pb.Message, message: pb.Message) -> pb.Message:
    if "+" in answer.topic or "#" in answer.topic:
        raise PublisherCrashError(answer.topic)
    routed = pb.Message()
    routed.CopyFrom(message)
    routed.topic, routed.payload, routed.qos = answer.topic, answer.payload, answer.qos
    if answer.headers.get("allow_publish") in ("true", "false"):
        routed.headers["allow_publish"] = answer.headers["allow_publish"]
    return routed


def topic_matches(a_filter: str, topic: str) -> bool:
    """MQTT topic filter matching; a wildcard in front does not match a topic that begins with `$`."""
    if topic.startswith("$") and a_filter.startswith(("+", "#")):
        return False
    return _levels_match(a_filter.split("/"), topic.split("/"))


def _levels_match(wanted: Iterable[str], levels: list[str]) -> bool:
    depth = 0
    for level in wanted:
        if level == "#":
            return True
        if depth >= len(levels) or level not in ("+", levels[depth]):
            return False
        depth += 1
    return depth == len(levels)
