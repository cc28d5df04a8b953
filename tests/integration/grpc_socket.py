"""A gRPC client on a plain socket: a test can send what no library would, and sees what comes back as it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from tests.session_client import Answer, Headers, Peer

_ANSWER_S = 5.0


DATA, HEADERS, GOAWAY = 0x0, 0x1, 0x7
END_STREAM = 0x1


class Frame(NamedTuple):
    """One frame of HTTP/2 (RFC 9113, section 4.1)."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


@dataclass
class SocketClient:
    """One connection. `closed` when the server has ended it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Peer
    closed: bool = False

    async def call(self, body: bytes | Iterable[bytes], headers: Headers | None = None, *, end: bool = True) -> Answer:
        """Send one request whose body is `body`, framing and all, and return what was answered."""
        stream_id = self.peer.send(body, headers, end=end)
        self.flush()
        return await self.answer(stream_id)

    async def answer(self, stream_id: int) -> Answer:
        """What the server had to say on that stream, once it ended it or the connection."""
        found = self.peer.answers[stream_id]
        async with asyncio.timeout(_ANSWER_S):
            while not (found.ended or found.reset is not None or self.closed):
                await self.read()
        return found

    async def read(self) -> None:
        data = await self.reader.read(65_536)
        self.closed = not data
        self.peer.feed(data)
        self.flush()

    async def read_frames(self) -> AsyncIterator[Frame]:
        """What comes until the server closes, unparsed: `Peer` hears nothing behind a GOAWAY."""
        data = b""
        async with asyncio.timeout(_ANSWER_S):
            while piece := await self.reader.read(65_536):
                data += piece
                while len(data) >= 9 and len(data) >= 9 + (length := int.from_bytes(data[:3], "big")):
                    yield Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length])
                    data = data[9 + length :]
        self.closed = True

    def flush(self) -> None:
        self.writer.write(self.peer.take())


@asynccontextmanager
async def socket_client(port: int) -> AsyncIterator[SocketClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = SocketClient(reader, writer, Peer())
    client.flush()
    try:
        yield client
    finally:
        writer.close()
