"""One MQTT client of the stand-in: its packets are handled one at a time, each to its end, as in EMQX's client process.

Owns the order of packets, both directions' QoS flows, the in-flight window and the socket. It must not know ExHook or
who gets a message: it asks its `Exchange`. amqtt brings codec, session and CONNECT; its own reader handles a client's
packets side by side and acknowledges a publish before anybody saw it, so both flows are replaced here.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final, Protocol

import structlog
from amqtt.adapters import StreamWriterAdapter
from amqtt.errors import AMQTTError, CodecError, MQTTError, NoDataError
from amqtt.mqtt import packet_class
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.packet import MQTTFixedHeader, MQTTPacket
from amqtt.mqtt.pingreq import PingReqPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.pubcomp import PubcompPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrec import PubrecPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from amqtt.plugins.manager import PluginManager
from amqtt.session import OutgoingApplicationMessage, Session

from ota_hook.exhook import exhook_pb2 as pb
from ota_hook.standin.exhook_client import PublisherCrashError

PACKET_MAX_BYTES: Final = 1024 * 1024
IN_FLIGHT_MAX: Final = 32
AWAITING_RELEASE_MAX: Final = 100
KEEPALIVE_FACTOR: Final = 1.5
_SEND_TIMEOUT_S: Final = 15.0
_AWAITING_RELEASE: Final = "ota_hook.awaiting_release"

_log = structlog.get_logger(__name__)
_Packet = MQTTPacket[Any, Any, Any]


class Delivery(OutgoingApplicationMessage):
    """A message on its way to one subscriber. `origin` is what was routed, with the publisher's id and headers."""

    __slots__ = ("origin", "received")

    def __init__(self, origin: pb.Message, *, qos: int, retain: bool) -> None:
        super().__init__(None, origin.topic, qos, origin.payload, retain)
        self.origin = origin
        self.received = False


class Exchange(Protocol):
    """What a connection needs of the broker."""

    plugins_manager: PluginManager[Any]

    async def publish_from(self, session: Session, packet: PublishPacket) -> None:
        """Hook, retain and deliver. Raises PublisherCrashError."""
        ...

    async def subscribe(self, connection: ClientConnection, packet: SubscribePacket) -> None: ...

    async def unsubscribe(self, connection: ClientConnection, packet: UnsubscribePacket) -> None: ...

    async def notify_delivered(self, session: Session, message: pb.Message) -> None: ...

    async def notify_acked(self, session: Session, message: pb.Message) -> None: ...


class BoundedWriter(StreamWriterAdapter):
    """amqtt's writer, but closing never waits for a peer that does not read."""

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        """Close now. What was written and fits the socket is still sent."""
        if not self.is_closed:
            self.is_closed = True
            if self._writer.transport.get_write_buffer_size():
                self._writer.transport.abort()
            else:
                self._writer.close()


class ClientConnection(BrokerProtocolHandler):
    """A connected client, from CONNACK to the end of its socket. `ended` is set when all of its traces are gone."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange.plugins_manager)
        self._exchange = exchange
        self._close_reason: str | None = None
        self._window_open = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def attached_session(self) -> Session:
        if self.session is None:
            raise AMQTTError("not attached")
        return self.session

    async def serve(self) -> str:
        """Handle packets until the connection ends; returns the reason in EMQX's words (`normal` for a DISCONNECT)."""
        sender = asyncio.create_task(self._send_queued())
        try:
            reason = await self._read_packets()
        except PublisherCrashError as exc:
            _log.warning("publisher_crashed", client_id=self.attached_session.client_id, answered_topic=str(exc))
            reason = "crashed"
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self.close("closed")
        return reason

    def close(self, reason: str) -> None:
        """End the connection; `serve` returns once the packet at hand is done."""
        self._close_reason = self._close_reason or reason
        if isinstance(self.writer, BoundedWriter):
            self.writer.abort()

    async def stop(self) -> None:
        """amqtt's word for the same, used at shutdown and when a session expires."""
        self.close("shutdown")

    async def _read_packets(self) -> str:
        keep_alive = self.attached_session.keep_alive
        patience_s = keep_alive * KEEPALIVE_FACTOR if keep_alive else None
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    packet = await self._read_packet()
            except TimeoutError:
                return "keepalive_timeout"
            except NoDataError:
                return self._close_reason or "tcp_closed"
            except (AMQTTError, MQTTError, CodecError, ValueError, struct.error):
                return "frame_error"
            if isinstance(packet, DisconnectPacket):
                return "normal"
            if not await self._handle_packet(packet):
                return "protocol_error"

    async def _read_packet(self) -> _Packet:
        if self.reader is None:
            raise NoDataError
        header = await MQTTFixedHeader.from_stream(self.reader)
        if header is None:
            raise NoDataError
        if header.remaining_length > PACKET_MAX_BYTES:
            raise MQTTError("packet too large")
        return await packet_class(header).from_stream(self.reader, fixed_header=header)

    async def _handle_packet(self, packet: _Packet) -> bool:
        """Handle one packet to its end; False where the protocol does not allow it."""
        match packet:
            case PublishPacket():
                return await self._receive_publish(packet)
            case PubrelPacket():
                self._awaiting_release().discard(packet.packet_id)
                await self._send_packet(PubcompPacket.build(packet.packet_id))
            case PubackPacket():
                await self._settle(packet.packet_id, qos=1)
            case PubrecPacket():
                await self._settle(packet.packet_id, qos=2)
                await self._send_packet(PubrelPacket.build(packet.packet_id))
            case PubcompPacket():
                self._forget(packet.packet_id)
            case SubscribePacket():
                await self._exchange.subscribe(self, packet)
            case UnsubscribePacket():
                await self._exchange.unsubscribe(self, packet)
            case PingReqPacket():
                await self._send_packet(PingRespPacket.build())
            case _:
                return False
        return True

    async def _receive_publish(self, packet: PublishPacket) -> bool:
        """Publish first, acknowledge then: the publisher's PUBACK or PUBREC waits for the hook's answer."""
        packet_id, session = packet.packet_id, self.attached_session
        if packet.qos == 0 or packet_id is None:
            await self._exchange.publish_from(session, packet)
        elif packet.qos == 1:
            await self._exchange.publish_from(session, packet)
            await self._send_packet(PubackPacket.build(packet_id))
        elif packet.qos == 2:
            awaiting = self._awaiting_release()
            if packet_id not in awaiting:
                if len(awaiting) >= AWAITING_RELEASE_MAX:
                    return False
                await self._exchange.publish_from(session, packet)
                awaiting.add(packet_id)
            await self._send_packet(PubrecPacket.build(packet_id))
        else:
            return False
        return True

    def _awaiting_release(self) -> set[int]:
        """Packet ids of QoS 2 publishes that were taken and not released; they live as long as the session."""
        awaiting: set[int] = self.attached_session.attributes.setdefault(_AWAITING_RELEASE, set())
        return awaiting

    async def _send_queued(self) -> None:
        """Send what is in flight still, then what is queued, at most `IN_FLIGHT_MAX` of it unacknowledged."""
        session = self.attached_session
        try:
            for packet_id, delivery in list(session.inflight_out.items()):
                if isinstance(delivery, Delivery) and delivery.received:
                    await self._send_packet(PubrelPacket.build(packet_id))
                else:
                    await self._send_packet(delivery.build_publish_packet(dup=True))
            while True:
                while len(session.inflight_out) >= IN_FLIGHT_MAX:
                    self._window_open.clear()
                    await self._window_open.wait()
                await self._send_delivery(await session.retained_messages.get())
        except Exception as exc:  # noqa: BLE001 - whatever a delivery does, it ends this subscriber, not the broker
            _log.warning("subscriber_crashed", client_id=session.client_id, reason=repr(exc))
            self.close("crashed")

    async def _send_delivery(self, delivery: object) -> None:
        if not isinstance(delivery, Delivery):
            return
        session = self.attached_session
        if delivery.qos:
            # In flight before anything is awaited: from here on a lost connection does not lose it.
            delivery.packet_id = session.next_packet_id
            session.inflight_out[delivery.packet_id] = delivery
        await self._exchange.notify_delivered(session, delivery.origin)
        await self._send_packet(delivery.build_publish_packet())

    async def _settle(self, packet_id: int, *, qos: int) -> None:
        """The consumer took it: PUBACK ends a QoS 1 delivery, PUBREC says of a QoS 2 one that it arrived."""
        delivery = self.attached_session.inflight_out.get(packet_id)
        if not isinstance(delivery, Delivery) or delivery.qos != qos or delivery.received:
            return
        delivery.received = True
        if qos == 1:
            self._forget(packet_id)
        await self._exchange.notify_acked(self.attached_session, delivery.origin)

    def _forget(self, packet_id: int) -> None:
        self.attached_session.inflight_out.pop(packet_id, None)
        self._window_open.set()

    async def _send_packet(self, packet: _Packet) -> None:
        """Write one packet. A peer that does not read for `_SEND_TIMEOUT_S` loses its connection, nobody else waits."""
        if self.writer is None:
            return
        try:
            async with self._write_lock, asyncio.timeout(_SEND_TIMEOUT_S):
                await packet.to_stream(self.writer)
        except (TimeoutError, ConnectionError) as exc:
            self.close("send_timeout" if isinstance(exc, TimeoutError) else "tcp_closed")
