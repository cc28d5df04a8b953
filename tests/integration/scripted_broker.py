"""An MQTT broker that does what a test says, on a real socket: it looks at every packet and need not answer."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

ACCEPTED = bytes.fromhex("20020000")
_ACKNOWLEDGEMENT = {1: b"\x40\x02", 2: b"\x50\x02"}


@dataclass
class Client:
    """One connection to the broker; packets without their header. `unacknowledged` are packet ids."""

    writer: asyncio.StreamWriter
    connect: bytes = b""
    topics: list[str] = field(default_factory=list)
    unacknowledged: list[bytes] = field(default_factory=list)
    most_unacknowledged: int = 0
    pings: int = 0

    def abort(self) -> None:
        self.writer.transport.abort()

    def acknowledge(self) -> None:
        """Acknowledge all that has come at qos 1."""
        self.writer.write(b"".join(_ACKNOWLEDGEMENT[1] + packet_id for packet_id in self.unacknowledged))
        self.unacknowledged.clear()


@dataclass
class ScriptedBroker:
    """`acknowledging` and `answering_pings` may change while it runs. `changed` is notified of every packet."""

    connack: bytes = ACCEPTED
    acknowledging: bool = True
    answering_pings: bool = True
    port: int = 0
    clients: list[Client] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def topics(self) -> list[str]:
        """Of all publishes that came."""
        return [topic for client in self.clients for topic in client.topics]

    async def until_published(self, count: int) -> None:
        """Return when so many publishes have come."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.topics) >= count)

    @asynccontextmanager
    async def run(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedBroker]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for client in self.clients:
                client.abort()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(writer)
        self.clients.append(client)
        try:
            while True:
                kind, body = await _read_packet(reader)
                self._answer(client, kind, body)
                async with self.changed:
                    self.changed.notify_all()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    def _answer(self, client: Client, kind: int, body: bytes) -> None:
        match kind >> 4:
            case 1:
                client.connect = body
                client.writer.write(self.connack)
            case 3:
                self._take_publish(client, kind >> 1 & 3, body)
            case 6 if self.acknowledging:
                client.writer.write(b"\x70\x02" + body)
            case 12:
                client.pings += 1
                if self.answering_pings:
                    client.writer.write(b"\xd0\x00")

    def _take_publish(self, client: Client, qos: int, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2])
        client.topics.append(body[2:end].decode())
        if qos and self.acknowledging:
            client.writer.write(_ACKNOWLEDGEMENT[qos] + body[end : end + 2])
        elif qos:
            client.unacknowledged.append(body[end : end + 2])
            client.most_unacknowledged = max(client.most_unacknowledged, len(client.unacknowledged))


async def _read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0]
    size = shift = 0
    while True:
        (byte,) = await reader.readexactly(1)
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return kind, await reader.readexactly(size)
