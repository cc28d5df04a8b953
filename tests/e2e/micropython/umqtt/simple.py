"""The part of MicroPython's `umqtt.simple` that the example needs, for a test on this machine: CPython or MicroPython.

Its own text; the interface is that of micropython-lib. MQTT 3.1.1, QoS 0 and 1, one packet at a time.
"""

import socket
import struct

_POLL_S = 0.001


class MQTTException(Exception):  # noqa: N818 - its name there
    """The broker refused."""


class MQTTClient:
    """A client; `check_msg` looks whether something came, `publish` at qos 1 waits for its acknowledgement."""

    def __init__(self, client_id, server, port=1883, user=None, password=None, keepalive=0):
        self.client_id = client_id
        self.server = server
        self.port = port
        self.user = user
        self.password = password
        self.keepalive = keepalive
        self.pid = 0
        self.sock = None
        self._callback = None
        self._acknowledged = set()

    def set_callback(self, callback):
        self._callback = callback

    def connect(self, clean_session=True):
        """Whether the broker kept a session."""
        self.sock = socket.socket()
        self.sock.connect(socket.getaddrinfo(self.server, self.port)[0][-1])
        flags = (2 if clean_session else 0) | (0xC0 if self.user else 0)
        body = _text("MQTT") + bytes((4, flags)) + struct.pack(">H", self.keepalive) + _text(self.client_id)
        if self.user:
            body += _text(self.user) + _text(self.password)
        self._send(0x10, body)
        kind, answer = self._receive(None)
        if kind != 0x20 or answer[1]:
            raise MQTTException(answer[1])
        return bool(answer[0] & 1)

    def disconnect(self):
        self._send(0xE0, b"")
        self.sock.close()

    def ping(self):
        self._send(0xC0, b"")

    def subscribe(self, topic, qos=0):
        self.pid += 1
        self._send(0x82, struct.pack(">H", self.pid) + _text(topic) + bytes((qos,)))
        self._wait_for(self.pid)

    def publish(self, topic, message, retain=False, qos=0):
        body = _text(topic)
        if qos:
            self.pid += 1
            body += struct.pack(">H", self.pid)
        self._send(0x30 | qos << 1 | int(retain), body + message)
        if qos:
            self._wait_for(self.pid)

    def check_msg(self):
        """Handle one packet, if one is there."""
        packet = self._receive(_POLL_S)
        if packet is not None:
            self._handle(packet)

    def _wait_for(self, pid):
        while pid not in self._acknowledged:
            self._handle(self._receive(None))
        self._acknowledged.remove(pid)

    def _handle(self, packet):
        kind, body = packet
        if kind in (0x40, 0x90):  # PUBACK, SUBACK
            self._acknowledged.add(struct.unpack(">H", body[:2])[0])
        if kind & 0xF0 != 0x30:
            return
        end = 2 + struct.unpack(">H", body[:2])[0]
        topic, rest = body[2:end], body[end:]
        if kind & 6:
            self._send(0x40, rest[:2])
            rest = rest[2:]
        if self._callback is not None:
            self._callback(topic, rest)

    def _send(self, kind, body):
        length, digits = len(body), b""
        while True:
            length, digit = length >> 7, length & 0x7F
            digits += bytes((digit | (0x80 if length else 0),))
            if not length:
                break
        self.sock.sendall(bytes((kind,)) + digits + body)

    def _receive(self, patience_s):
        """One packet, None where none begins in time."""
        link = self.sock
        link.settimeout(patience_s)
        try:
            first = link.recv(1)
        except OSError as exc:
            if patience_s is not None and (type(exc).__name__ == "TimeoutError" or exc.args[0] in (11, 110)):
                return None
            raise
        finally:
            link.settimeout(None)
        if not first:
            raise OSError(-1)
        length, shift = 0, 0
        while True:
            digit = self._read(1)[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                return first[0], self._read(length)

    def _read(self, count):
        data = b""
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise OSError(-1)
            data += more
        return data


def _text(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">H", len(data)) + data
