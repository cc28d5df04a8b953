"""The stand-in for EMQX: amqtt's broker with ExHook in the way of every publish. For development, tests and the demo.

Owns sessions, who gets a message, and when the provider is asked (EXHOOK facts: before the acknowledgement, after the
retainer, in the publisher's turn). It must not know devices, firmware or topics' meanings. MQTT 3.1.1; anyone may
connect under any username; No-Local, MQTT 5 properties and reason codes need a real broker.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import structlog
from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, WriterAdapter
from amqtt.broker import Broker, Server
from amqtt.contexts import BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError, BrokerError, CodecError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from amqtt.session import Session
from amqtt.utils import gen_client_id
from google.protobuf.message import Message

from ota_hook.errors import ConfigurationError
from ota_hook.exhook import exhook_pb2 as pb
from ota_hook.standin.connection import BoundedWriter, ClientConnection, Delivery
from ota_hook.standin.exhook_client import ExhookClient, ExhookOptions, PublisherCrashError, topic_matches

__all__ = ["ExhookOptions", "StandinBroker"]

_QUEUED_PER_SESSION: Final = 1000
_RETAINED_MAX: Final = 10_000
_CONNECT_TIMEOUT_S: Final = 15.0
_STOP_TIMEOUT_S: Final = 1.0
_SESSION_EXPIRY_S: Final = 7200
_REFUSED: Final = 0x80
_LISTENER: Final = "default"

_log = structlog.get_logger(__name__)


class StandinBroker:
    """A broker on `host`:`port` (0: picked by the system) that asks the provider of `exhook`, None: nobody."""

    def __init__(self, *, host: str, port: int, exhook: ExhookOptions | None) -> None:
        self._host = host
        self._port = port
        self._exhook = ExhookClient(exhook, node=f"standin@{host}") if exhook else None
        self._broker: _HookedBroker | None = None

    async def start(self) -> None:
        """Load the provider's hooks (or begin to retry), then listen. ConfigurationError where it can't listen."""
        _quiet_amqtt()
        if self._exhook is not None:
            await self._exhook.start()
        config = BrokerConfig(
            listeners={_LISTENER: ListenerConfig(bind=f"{self._host}:{self._port}")},
            plugins={},
            session_expiry_interval=_SESSION_EXPIRY_S,
        )
        broker = _HookedBroker(config, self._exhook)
        try:
            await broker.start()
        except BrokerError as exc:
            if self._exhook is not None:
                await self._exhook.stop()
            raise ConfigurationError(
                f"The stand-in broker can't listen on {self._host}:{self._port}.", mend="Choose another port."
            ) from exc
        self._broker = broker
        self._port = broker.port
        note = "a stand-in for development, not EMQX: MQTT 3.1.1 alone"
        _log.warning("standin_broker_started", url=self.mqtt_url, note=note)

    async def stop(self) -> None:
        """Close every connection and say goodbye to the provider. May be called twice."""
        broker, self._broker = self._broker, None
        if broker is None:
            return
        await broker.shutdown()
        if self._exhook is not None:
            await self._exhook.stop()

    async def wait_loaded(self) -> None:
        """Return when the provider's hooks are loaded; for ever pending without one. Bound it with a timeout."""
        await (self._exhook.loaded if self._exhook else asyncio.Event()).wait()

    @property
    def mqtt_url(self) -> str:
        """`mqtt://HOST:PORT`; the port is known once started."""
        return f"mqtt://{self._host}:{self._port}"


class _HookedBroker(Broker):
    """amqtt's listeners, sessions, subscription table and retained store; connections, order and fan-out are ours."""

    def __init__(self, config: BrokerConfig, exhook: ExhookClient | None) -> None:
        super().__init__(config)
        self._exhook = exhook
        self._serving: dict[asyncio.Task[Any], BoundedWriter] = {}
        self._wildcard_filters: set[str] = set()
        self._stopping = False

    @property
    def port(self) -> int:
        """The port that the listener is bound to."""
        listener = self._servers[_LISTENER].instance
        return int(next(iter(listener.sockets)).getsockname()[1])

    async def shutdown(self) -> None:
        """Close the listener, then the connections, then what amqtt keeps."""
        self._stopping = True
        for server in self._servers.values():
            server.instance.close()
        for writer in self._serving.values():
            writer.abort()
        tasks = [task for task in self._serving if task is not asyncio.current_task()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_STOP_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await super().shutdown()

    # ---- connections ------------------------------------------------------------------------------------------------

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one socket from CONNECT to its end; amqtt calls this."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        bounded = self._serving[task] = BoundedWriter(writer)
        try:
            await self._client_connected(listener_name, StreamReaderAdapter(reader), bounded)
        except Exception:  # noqa: BLE001 - one client's fault must not reach the listener
            _log.exception("connection_crashed")
        finally:
            bounded.abort()
            del self._serving[task]

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        """Read CONNECT, end an older connection of the same client, and register the new one."""
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, session = await BrokerProtocolHandler.init_from_connect(reader, writer, self.plugins_manager)
        except (TimeoutError, CodecError, ValueError, ConnectionError) as exc:
            raise AMQTTError("no CONNECT") from exc
        client_id = session.client_id = session.client_id or gen_client_id()
        while client_id in self._sessions and self._sessions[client_id][0].transitions.is_connected():
            older = cast("ClientConnection", self._sessions[client_id][1])
            older.close("discarded" if session.clean_session else "takenover")
            await older.ended.wait()  # within the request timeout: a packet at hand is finished first
        if session.clean_session:
            await self._delete_session(client_id)
        elif client_id in self._sessions:
            session = _resume(self._sessions[client_id][0], session)
        connection = ClientConnection(self)
        connection.attach(session, reader, writer)
        session.transitions.connect()
        self._sessions[client_id] = (session, connection)
        return connection, session

    async def _handle_client_session(  # noqa: PLR0917 - amqtt's signature
        self,
        reader: ReaderAdapter,
        writer: WriterAdapter,
        client_session: Session,
        handler: BrokerProtocolHandler,
        server: Server,
        listener_name: str,
    ) -> None:
        connection = cast("ClientConnection", handler)
        reason = "internal_error"
        try:
            await connection.mqtt_connack_authorize(authorize=True)
            await self._notify_connected(client_session)
            reason = await connection.serve()
        finally:
            try:
                await self._end_connection(client_session, connection, reason)
            finally:
                connection.ended.set()

    async def _end_connection(self, session: Session, connection: ClientConnection, reason: str) -> None:
        try:
            if not self._stopping:
                if reason != "normal" and session.will_flag:
                    await self._publish_will(session)
                await self._notify(
                    "client.disconnected",
                    session.client_id,
                    lambda meta: pb.ClientDisconnectedRequest(
                        clientinfo=self._client_info(session), reason=reason, meta=meta
                    ),
                )
        finally:
            session.transitions.disconnect()
            if session.clean_session and self._sessions.get(session.client_id or "", (None, None))[1] is connection:
                await self._delete_session(session.client_id or "")

    # ---- publishing -------------------------------------------------------------------------------------------------

    async def publish_from(self, session: Session, packet: PublishPacket) -> None:
        """A client's publish, to its end. Raises PublisherCrashError where EMQX's connection would crash."""
        message = self._message(session, packet.topic_name or "", packet.data or b"", packet.qos or 0)
        headers = {
            "username": session.username,
            "protocol": "mqtt",
            "peerhost": session.remote_address,
            "allow_publish": "true",
        }
        message.headers.update({name: value for name, value in headers.items() if value is not None})
        await self._publish(message, retain=packet.retain_flag)

    async def _publish(self, message: pb.Message, *, retain: bool) -> None:
        if message.topic.startswith("$SYS/"):
            return  # EMQX's default ACL denies it to clients; the packet is acknowledged all the same
        if retain:  # before the hook, with the original
            await self.retain_message(None, message.topic, message.payload, message.qos)
        routed = await self._exhook.ask_publish(message) if self._exhook else message
        if routed.headers.get("allow_publish") == "false":
            return
        if not self._fan_out(routed):
            await self._notify(
                "message.dropped",
                getattr(routed, "from"),
                lambda meta: pb.MessageDroppedRequest(message=routed, reason="no_subscribers", meta=meta),
                routed.topic,
            )

    async def _publish_will(self, session: Session) -> None:
        topic, payload = session.will_topic, session.will_message
        if topic is None or payload is None:
            return
        message = self._message(session, topic, bytes(payload), session.will_qos or 0)
        try:
            await self._publish(message, retain=bool(session.will_retain))
        except PublisherCrashError as exc:
            _log.warning("will_crashed", client_id=session.client_id, answered_topic=str(exc))

    def _message(self, session: Session, topic: str, payload: bytes, qos: int) -> pb.Message:
        sender: dict[str, Any] = {"from": session.client_id}  # a keyword of the language, so not one here
        return pb.Message(
            node=self._node,
            id=uuid.uuid4().hex.upper(),
            qos=qos,
            topic=topic,
            payload=payload,
            timestamp=time.time_ns() // 1_000_000,
            **sender,
        )

    def _fan_out(self, message: pb.Message) -> int:
        """Queue the message for each matching subscription; returns how many there are. Waits for nobody.

        An answer's qos may be above 2; what was granted never is, so neither is what is delivered.
        """
        subscriptions = list(self._matching_subscriptions(message.topic))
        for session, granted in subscriptions:
            self._enqueue(session, Delivery(message, qos=min(message.qos, granted), retain=False))
        return len(subscriptions)

    def _matching_subscriptions(self, topic: str) -> Iterator[tuple[Session, int]]:
        yield from self._subscriptions.get(topic, ())
        for a_filter in self._wildcard_filters:
            if topic_matches(a_filter, topic):
                yield from self._subscriptions.get(a_filter, ())

    def _enqueue(self, session: Session, delivery: Delivery) -> None:
        """The session's queue is bounded: a full one loses its oldest message, which no hook is told (as in EMQX)."""
        if session.clean_session and not session.transitions.is_connected():
            return
        queue = session.retained_messages  # amqtt's queue for absent sessions; here it serves connected ones too
        if queue.qsize() >= _QUEUED_PER_SESSION:
            queue.get_nowait()
        queue.put_nowait(delivery)

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        """Keep, replace or (empty data) clear; a new topic beyond `_RETAINED_MAX` is not kept."""
        if data and topic_name not in self._retained_messages and len(self._retained_messages) >= _RETAINED_MAX:
            _log.warning("retained_store_full", topic=topic_name)
            return
        await super().retain_message(source_session, topic_name, data, qos)

    # ---- subscriptions ----------------------------------------------------------------------------------------------

    async def subscribe(self, connection: ClientConnection, packet: SubscribePacket) -> None:
        """Take each filter, tell the hook, acknowledge, then send what is retained under it."""
        session = connection.attached_session
        wanted = packet.payload.topics if packet.payload else []
        codes = [await self.add_subscription(subscription, session) for subscription in wanted]
        granted = [(topic, code) for (topic, _), code in zip(wanted, codes, strict=True) if code != _REFUSED]
        for topic, qos in granted:
            await self._notify_subscribed(session, topic, qos)
        await connection.mqtt_acknowledge_subscription(_packet_id(packet), codes)
        for a_filter, qos in granted:
            self._enqueue_retained(session, a_filter, qos)

    async def unsubscribe(self, connection: ClientConnection, packet: UnsubscribePacket) -> None:
        """Forget each filter and acknowledge."""
        for a_filter in packet.payload.topics if packet.payload else []:
            self._del_subscription(a_filter, connection.attached_session)
        await connection.mqtt_acknowledge_unsubscription(_packet_id(packet))

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """The granted QoS, or 0x80. Subscribing again replaces, as the standard says."""
        a_filter, qos = subscription
        if not a_filter or a_filter.startswith("$share/") or qos > 2:
            return _REFUSED
        self._del_subscription(a_filter, session)
        granted = await super().add_subscription(subscription, session)
        if granted != _REFUSED and ("+" in a_filter or "#" in a_filter):
            self._wildcard_filters.add(a_filter)
        return granted

    def _del_subscription(self, a_filter: str, session: Session) -> int:
        deleted = super()._del_subscription(a_filter, session)
        if not self._subscriptions.get(a_filter):
            self._wildcard_filters.discard(a_filter)
        return deleted

    def _enqueue_retained(self, session: Session, a_filter: str, granted: int) -> None:
        for retained in list(self._retained_messages.values()):
            if topic_matches(a_filter, retained.topic):
                message = self._message(session, retained.topic, bytes(retained.data), retained.qos or 0)
                self._enqueue(session, Delivery(message, qos=min(message.qos, granted), retain=True))

    # ---- notifications ----------------------------------------------------------------------------------------------

    async def _notify_connected(self, session: Session) -> None:
        info = self._client_info(session)
        await self._notify(
            "client.connected", session.client_id, lambda meta: pb.ClientConnectedRequest(clientinfo=info, meta=meta)
        )
        if session.parent:
            await self._notify(
                "session.resumed", session.client_id, lambda meta: pb.SessionResumedRequest(clientinfo=info, meta=meta)
            )

    async def _notify_subscribed(self, session: Session, a_filter: str, qos: int) -> None:
        await self._notify(
            "session.subscribed",
            session.client_id,
            lambda meta: pb.SessionSubscribedRequest(
                clientinfo=self._client_info(session), topic=a_filter, subopts=pb.SubOpts(qos=qos), meta=meta
            ),
        )

    async def notify_delivered(self, session: Session, message: pb.Message) -> None:
        """`message.delivered`, before the packet goes to the consumer."""
        await self._notify(
            "message.delivered",
            session.client_id,
            lambda meta: pb.MessageDeliveredRequest(clientinfo=self._client_info(session), message=message, meta=meta),
            message.topic,
        )

    async def notify_acked(self, session: Session, message: pb.Message) -> None:
        """`message.acked` with the consumer's clientinfo and the publisher's message id."""
        await self._notify(
            "message.acked",
            session.client_id,
            lambda meta: pb.MessageAckedRequest(clientinfo=self._client_info(session), message=message, meta=meta),
            message.topic,
        )

    async def _notify(
        self,
        hook: str,
        client_id: str | None,
        build: Callable[[pb.RequestMeta], Message],
        topic: str | None = None,
    ) -> None:
        """Build and send the notification, if the provider wants it."""
        if self._exhook is not None and self._exhook.wants(hook, topic):
            await self._exhook.notify(hook, client_id or "", build(self._exhook.meta))

    def _client_info(self, session: Session) -> pb.ClientInfo:
        return pb.ClientInfo(
            node=self._node,
            clientid=session.client_id,
            username=session.username,
            peerhost=session.remote_address,
            sockport=self.port,
            protocol="mqtt",
            anonymous=True,
            peerport=session.remote_port,
        )

    @property
    def _node(self) -> str:
        return self._exhook.node if self._exhook else "standin@127.0.0.1"


def _resume(kept: Session, fresh: Session) -> Session:
    """The kept session with what the new CONNECT brought; its subscriptions, queue and in-flight messages live on."""
    for name in (
        "will_flag",
        "will_message",
        "will_topic",
        "will_qos",
        "will_retain",
        "keep_alive",
        "username",
        "password",
        "remote_address",
        "remote_port",
        "clean_session",
    ):
        setattr(kept, name, getattr(fresh, name))
    kept.parent = 1
    return kept


def _packet_id(packet: SubscribePacket | UnsubscribePacket) -> int:
    if packet.variable_header is None:
        raise AMQTTError("no packet id")
    return packet.variable_header.packet_id


def _quiet_amqtt() -> None:
    """amqtt logs each connection and each peer's slip; keep that for whoever sets the level."""
    for name in ("amqtt", "transitions"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
