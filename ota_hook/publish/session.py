"""One MQTT 3.1.1 connection that only publishes, sans I/O: calls and bytes in, bytes and acknowledgements out.

Owns packets, packet ids and what is in flight. It must not know sockets, clocks or what is published. The numbers of
sections are those of the standard (OASIS, 2014).
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

Token = TypeVar("Token")

_CONNECT: Final = 0x10
_CONNACK: Final = 0x20
_PUBLISH: Final = 0x30
_PUBACK: Final = 0x40
_PUBREC: Final = 0x50
_PUBREL: Final = 0x62
_PUBCOMP: Final = 0x70
_PINGRESP: Final = 0xD0
_SIZES: Final = {_CONNACK: 4, _PUBACK: 4, _PUBREC: 4, _PUBCOMP: 4, _PINGRESP: 2}
"""What a broker may send to one that subscribed to nothing, in bytes; and PUBLISH, which some brokers force on all."""

_CLEAN_SESSION: Final = 0x02
_HAS_PASSWORD: Final = 0x40
_HAS_USERNAME: Final = 0x80
_PACKET_IDS: Final = 65_535
_LONGEST_BODY: Final = 268_435_455
_LENGTH_BYTES: Final = 4
_REFUSALS: Final = {  # 3.2.2.3
    1: "it does not speak MQTT 3.1.1",
    2: "the client id is not allowed",
    3: "it is not available",
    4: "the user name or password is wrong",
    5: "not authorized",
}


class SessionError(Exception):
    """The broker refused the connection, or sent what MQTT does not allow here. Close it."""


class PublishSession(Generic[Token]):
    """Bytes to send gather until `take_output`. A `Token` is the caller's name for a publish."""

    def __init__(self) -> None:
        self.accepted = False
        self._in_flight: dict[int, Token] = {}
        self._at_qos_2: set[int] = set()
        self._last_id = 0
        self._output: list[bytes] = []
        self._unread = b""
        self._bytes_to_skip = 0

    @property
    def in_flight(self) -> int:
        """How many publishes at qos 1 and 2 are not acknowledged."""
        return len(self._in_flight)

    @property
    def in_flight_at_qos_2(self) -> int:
        return len(self._at_qos_2)

    @property
    def oldest(self) -> Token | None:
        """Of those in flight, the one that was sent first."""
        return next(iter(self._in_flight.values()), None)

    def take_output(self) -> bytes:
        """What to send now."""
        output, self._output = b"".join(self._output), []
        return output

    def drain(self) -> list[Token]:
        """Forget what is in flight, and return it: the connection is gone."""
        tokens = list(self._in_flight.values())
        self._in_flight.clear()
        self._at_qos_2.clear()
        return tokens

    # ---- calls in

    def connect(self, *, client_id: str, username: str | None, password: str | None, keepalive_s: int) -> None:
        """Must come first. The session on the broker begins and ends with this connection."""
        flags = _CLEAN_SESSION
        fields = [_text(client_id)]
        if username is not None:
            flags |= _HAS_USERNAME
            fields.append(_text(username))
            if password is not None:  # 3.1.2.9: none without a user name
                flags |= _HAS_PASSWORD
                fields.append(_text(password))
        body = b"".join((_text("MQTT"), bytes((4, flags)), keepalive_s.to_bytes(2), *fields))
        self._output += (bytes((_CONNECT,)), _length(len(body)), body)

    def publish(self, topic: bytes, payload: bytes, qos: int, token: Token) -> None:
        """Send a message. At qos 1 and 2 `receive` returns the token; at qos 0 nobody answers."""
        size = 2 + len(topic) + len(payload)
        if not qos:
            self._output.append(b"%c%b%b%b%b" % (_PUBLISH, _length(size), len(topic).to_bytes(2), topic, payload))
            return
        packet_id = self._last_id % _PACKET_IDS + 1
        while packet_id in self._in_flight:
            packet_id = packet_id % _PACKET_IDS + 1
        self._last_id = packet_id
        self._in_flight[packet_id] = token
        if qos == 2:
            self._at_qos_2.add(packet_id)
        self._output.append(
            b"%c%b%b%b%b%b"
            % (
                _PUBLISH | qos << 1,
                _length(size + 2),
                len(topic).to_bytes(2),
                topic,
                packet_id.to_bytes(2),
                payload,
            )
        )

    def ping(self) -> None:
        self._output.append(b"\xc0\x00")

    def disconnect(self) -> None:
        self._output.append(b"\xe0\x00")

    # ---- bytes in

    def receive(self, data: bytes) -> list[Token]:
        """The publishes that these bytes acknowledge finally. Raises SessionError."""
        if self._bytes_to_skip:
            skipped = min(self._bytes_to_skip, len(data))
            self._bytes_to_skip -= skipped
            data = data[skipped:]
        data = self._unread + data
        acknowledged: list[Token] = []
        at, end = 0, len(data)
        while end - at >= 2:
            kind = data[at]
            if kind & 0xF0 == _PUBLISH:
                size = _packet_size(data, at)
                if size is None:
                    break
                at += size  # some brokers subscribe every client to something: not read, not kept, not acknowledged
                continue
            if data[at + 1] + 2 != _SIZES.get(kind):
                raise SessionError("the broker sent what is no answer to a publisher")
            if end - at < _SIZES[kind]:
                break
            self._take(kind, data, at, acknowledged)
            at += _SIZES[kind]
        self._unread = data[at:]
        self._bytes_to_skip += max(0, at - end)
        return acknowledged

    def _take(self, kind: int, data: bytes, at: int, acknowledged: list[Token]) -> None:
        if self.accepted == (kind == _CONNACK):
            raise SessionError("the broker's answers are out of order")
        if kind == _CONNACK:
            code = data[at + 3]
            if code:
                raise SessionError(f"the broker refused it: {_REFUSALS.get(code, f'code {code}')}")
            self.accepted = True
        elif kind != _PINGRESP:
            packet_id = data[at + 2] << 8 | data[at + 3]
            if packet_id not in self._in_flight or (kind == _PUBACK) == (packet_id in self._at_qos_2):
                raise SessionError("the broker acknowledged what was not sent")
            if kind == _PUBREC:
                self._output.append(bytes((_PUBREL, 2)) + packet_id.to_bytes(2))
            else:
                self._at_qos_2.discard(packet_id)
                acknowledged.append(self._in_flight.pop(packet_id))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2) + encoded


def _length(size: int) -> bytes:
    """2.2.3: seven bits a byte, the lowest first."""
    if size < 0x80:
        return bytes((size,))
    if size < 0x4000:
        return bytes((size & 0x7F | 0x80, size >> 7))
    if size > _LONGEST_BODY:
        raise ValueError("no MQTT packet can be so long")
    return bytes((size & 0x7F | 0x80,)) + _length(size >> 7)


def _packet_size(data: bytes, at: int) -> int | None:
    """The bytes of the packet at `at` with its header; None where the length has not arrived whole."""
    size = 0
    for number, byte in enumerate(data[at + 1 : at + 1 + _LENGTH_BYTES]):
        size |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return size + number + 2
    if len(data) - at > _LENGTH_BYTES:
        raise SessionError("the broker sent a packet of impossible length")
    return None
