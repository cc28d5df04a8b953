"""Which ExHook call does what: bytes in, bytes out, whatever listener carries them.

It reads the message and hands it to the part that its topic is for: checks.py, reports.py, questions.py, tracking.py.
It must not know gRPC or Redis. Every call is answered exactly once, whatever happens: the broker holds the publishing
device until then. Nothing here waits: an answer that needs Redis comes in a callback, and the ports keep the budget.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from ota_hook.dialect import Channel
from ota_hook.exhook._codec import IGNORE, read_publish
from ota_hook.exhook.checks import Checks
from ota_hook.exhook.commands import Commands
from ota_hook.exhook.context import DeviceMessage, HookContext, Respond
from ota_hook.exhook.exhook_pb2 import HookSpec, LoadedResponse, ProviderLoadedRequest
from ota_hook.exhook.questions import Questions
from ota_hook.exhook.reports import Reports
from ota_hook.exhook.responses import Responses
from ota_hook.exhook.tracking import Tracking
from ota_hook.messages import BadMessage

PACKAGES: Final = ("emqx.exhook.v1", "emqx.exhook.v2", "emqx.exhook.v3")
SERVICE: Final = "HookProvider"

EMPTY_SUCCESS: Final = b""

_VALUED_METHODS: Final = frozenset({"OnClientAuthenticate", "OnClientAuthorize", "OnClientCheckAcl"})
_NOTIFICATIONS: Final = frozenset(
    {
        "OnProviderUnloaded",
        "OnClientConnect",
        "OnClientConnack",
        "OnClientConnected",
        "OnClientDisconnected",
        "OnClientSubscribe",
        "OnClientUnsubscribe",
        "OnSessionCreated",
        "OnSessionSubscribed",
        "OnSessionUnsubscribed",
        "OnSessionResumed",
        "OnSessionDiscarded",
        "OnSessionTakenover",
        "OnSessionTakenovered",
        "OnSessionTerminated",
        "OnMessageDelivered",
        "OnMessageDropped",
        "OnMessageAcked",
    }
)
METHODS: Final = frozenset({"OnProviderLoaded", "OnMessagePublish"}) | _VALUED_METHODS | _NOTIFICATIONS
"""Every RPC name of the three packages; OnClientCheckAcl and OnSessionTakenovered are v1's."""

_NODE_MAX_CHARS: Final = 256
_PRESENCE_HOOKS: Final = ("client.connected", "session.resumed", "client.disconnected")


class HookProvider:
    """One per process; for one event loop, any number of calls at a time."""

    def __init__(self, context: HookContext) -> None:
        self._context = context
        self._dialect = context.options.dialect
        self._leads = context.options.dialect.leads
        self._by_username = context.options.identity == "username"
        self._payload_bytes = context.options.payload_bytes
        self._calls = context.metrics.calls
        self._commands = Commands(context)
        self._responses = Responses(context, self._commands)
        self._reports = Reports(context, self._responses)
        self._checks = Checks(context, self._commands, self._responses, is_late=self._reports.is_late)
        self._questions = Questions(context, self._commands)
        self._tracking = Tracking(context)
        self._takers: dict[Channel, Callable[[DeviceMessage], bool]] = {
            Channel.ATTRIBUTES: self._reports.take,
            Channel.EVENT_REPORT: self._checks.take,
            Channel.COMMAND_REPLY: self._tracking.take_reply,
            Channel.ATTRIBUTES_GET: self._questions.take,
            Channel.CONNECT: self._tracking.take_children_came,
            Channel.DISCONNECT: self._tracking.take_children_gone,
        }
        """Each says whether Redis was asked; then its reply answers the call."""
        self._followers: dict[str, Callable[[bytes], None]] = {
            "OnMessageAcked": self._tracking.acked,
            "OnMessageDropped": self._tracking.dropped,
            "OnClientConnected": self._tracking.come,
            "OnSessionResumed": self._tracking.come,
            "OnClientDisconnected": self._tracking.gone,
        }

    # ---- calls

    def take(self, method: str, request: bytes, respond: Respond, call: object = None) -> bytes | None:
        """Take one call; `method` is a name of METHODS, without package.

        Returns the answer where it is there at once. Else None, and `respond(call, answer)` is called once, within the
        budget. Never raises.
        """
        self._calls[method] += 1
        if method == "OnMessagePublish":
            return self._on_publish(request, respond, call)
        if method == "OnProviderLoaded":
            return self._hooks(request)
        if (follow := self._followers.get(method)) is not None:
            self._follow(follow, request)
            return EMPTY_SUCCESS
        # Authentication and authorization are never registered; IGNORE leaves them as the broker decided.
        return IGNORE if method in _VALUED_METHODS else EMPTY_SUCCESS

    async def handle(self, method: str, request: bytes) -> bytes:
        """`take` for listeners that wait."""
        later: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answer = self.take(method, request, lambda _, late: None if later.done() else later.set_result(late))
        return answer if answer is not None else await later

    async def close(self) -> None:
        """Give late reports and commands being published a moment; what is still under way then is dropped."""
        await self._checks.close()
        await self._reports.close()
        await self._commands.close()

    def _hooks(self, request: bytes) -> bytes:
        try:
            broker = ProviderLoadedRequest.FromString(request)
            self._context.log.info("broker_attached", node=broker.meta.node, version=broker.broker.version)
            if self._context.options.presence and broker.meta.node:
                self._context.presence.attach(broker.meta.node[:_NODE_MAX_CHARS], at_ms=self._context.clock_ms())
        except DecodeError:
            self._context.log.warning("broker_attached", problem="its request can't be decoded")
        commands = self._dialect.command_filters
        specs = [
            HookSpec(name="message.publish", topics=self._dialect.topic_filters),
            HookSpec(name="message.acked", topics=commands),
            HookSpec(name="message.dropped", topics=commands),
        ]
        if self._context.options.presence:
            specs += [HookSpec(name=name) for name in _PRESENCE_HOOKS]
        return LoadedResponse(hooks=specs).SerializeToString()

    def _follow(self, follow: Callable[[bytes], None], request: bytes) -> None:
        try:
            follow(request)
        except DecodeError:
            self._context.metrics.bad_messages["not_protobuf"] += 1
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()

    def _on_publish(self, request: bytes, respond: Respond, call: object) -> bytes | None:
        publish = read_publish(request)
        if publish is None:
            self._context.metrics.bad_messages["not_protobuf"] += 1
            return IGNORE
        topic = publish.topic
        if not topic.startswith(self._leads):
            return IGNORE
        clientid, username = publish.clientid, publish.username
        identity = username if self._by_username else clientid
        address = None
        try:
            address = self._dialect.recognise(topic, identity=identity, clientid=clientid, username=username)
            if address is None:
                return IGNORE
            if len(publish.payload) > self._payload_bytes:
                raise BadMessage("too_large")  # noqa: TRY301 - the one way out for what a device did
            message = DeviceMessage(address, publish, respond, call, time.perf_counter())
            take = self._takers.get(address.channel)
            return None if take is not None and take(message) else IGNORE
        except BadMessage as exc:
            self._context.metrics.bad_messages[exc.reason] += 1
            if self._context.sampler.take(exc.reason):
                self._context.log.warning("bad_message", reason=exc.reason, device=identity[:128], topic=topic[:256])
            if address is not None:
                self._responses.refuse(address, exc.reason)
        except Exception:  # noqa: BLE001 - logged there
            self._context.note_fault()
        return IGNORE
