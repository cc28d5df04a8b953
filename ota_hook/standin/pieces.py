"""A package that comes over MQTT in pieces, for devices that can't speak HTTP: asked for one by one, each verified.

Owns how a device reads a piece, as strictly as the protocol is written, and where it goes on after its connection was
cut. It must not know topics.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ota_hook.standin.behaviour import DeviceBehaviour, DeviceProgress
from ota_hook.standin.commands import ID_LIMIT, UpgradeCommand, WireViolationError
from ota_hook.standin.download import Fetched, InstallResult, Received

_HEADER: Final = struct.Struct(">QIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A device takes its firmware in pieces of so many bytes.

    `cuts`: behind these parts of a package, from 0 to 1, it cuts its own connection.
    """

    piece_bytes: int = 16 * 1024
    cuts: Sequence[float] = ()


class Piece(NamedTuple):
    """Some bytes of a firmware, as they came. `command_id` says of which."""

    command_id: int
    offset: int
    data: bytes


class PieceLine(Protocol):
    """What a device that takes pieces needs of its line."""

    async def ask_piece(self, command: UpgradeCommand, offset: int, length: int) -> None:
        """Ask for so many bytes from there on."""
        ...

    async def next_piece(self, timeout_s: float) -> bytes | None:
        """The next piece as it came, None after the timeout."""
        ...

    def cut(self) -> None:
        """Break the connection without a word."""
        ...


def read_piece(payload: bytes) -> Piece | None:
    """The piece; None where its bytes are not those that its crc32 is of. WireViolationError for what is no piece."""
    if len(payload) <= _HEADER.size:
        raise WireViolationError(f"a piece of {len(payload)} bytes")
    command_id, offset, length, crc32 = _HEADER.unpack_from(payload)
    data = payload[_HEADER.size :]
    if not 0 < command_id < ID_LIMIT:
        raise WireViolationError(f"a piece of the command {command_id}")
    if length != len(data):
        raise WireViolationError(f"a piece that says {length} bytes, and has {len(data)}")
    return Piece(command_id, offset, data) if zlib.crc32(data) == crc32 else None


class PieceFetcher:
    """Fetches packages in pieces, on the line that there is just now. What has come outlives the line."""

    def __init__(self, progress: DeviceProgress, behaviour: DeviceBehaviour, pieces: Pieces) -> None:
        self.line: PieceLine | None = None
        self._progress = progress
        self._behaviour = behaviour
        self._pieces = pieces
        self._cuts = list(pieces.cuts)
        self._command: UpgradeCommand | None = None
        self._received = Received()

    @property
    def unfinished(self) -> UpgradeCommand | None:
        """See upgrading.Fetcher."""
        return self._command

    async def fetch(self, command: UpgradeCommand) -> Fetched:
        """See upgrading.Fetcher. The same package goes on where it was; another one begins anew."""
        if self._command is not None and self._command.md5 == command.md5:
            self._progress.resumed_at.append(self._received.count)
        else:
            self._received = Received()
        self._command = command
        try:
            async with asyncio.timeout(self._behaviour.download_timeout_s):
                fetched = await self._fetch_missing(command)
        except TimeoutError:
            fetched = Fetched(InstallResult.DOWNLOAD_FAILED, f"not done in {self._behaviour.download_timeout_s:g} s")
        self._command = None  # an error of the connection passes it by: then it is unfinished
        return fetched

    async def _fetch_missing(self, command: UpgradeCommand) -> Fetched:
        while self._received.count < command.size_bytes:
            offset = self._received.count
            data = await self._fetch_piece(command, offset)
            if data is None:
                return Fetched(InstallResult.DOWNLOAD_FAILED, f"no piece at {offset}")
            self._received.take(data)
        return self._received.verify(command)

    async def _fetch_piece(self, command: UpgradeCommand, offset: int) -> bytes | None:
        """Ask until it comes as it was sent, a bounded number of times."""
        if self.line is None:
            return None
        for attempt in range(self._behaviour.piece_attempts):
            if attempt:
                await asyncio.sleep(self._behaviour.retry_pause_s)
            if self._cuts and offset >= self._cuts[0] * command.size_bytes:
                del self._cuts[0]
                self.line.cut()
                await self.line.next_piece(self._behaviour.piece_timeout_s)  # raises: there is no connection any more
            await self.line.ask_piece(command, offset, self._pieces.piece_bytes)
            data = await self._next_piece(self.line, offset)
            if data is not None:
                return data
        return None

    async def _next_piece(self, line: PieceLine, offset: int) -> bytes | None:
        """The piece that was asked for. One that comes late, for an earlier question, is passed over.

        Its command id is the newest that this firmware was offered under, and the md5 of the whole says whether it is.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._behaviour.piece_timeout_s
        while (left_s := deadline - loop.time()) > 0:
            payload = await line.next_piece(left_s)
            piece = read_piece(payload) if payload is not None else None
            if piece is None:
                return None  # nothing came, or broken: ask again
            if piece.offset == offset:
                if len(piece.data) > self._pieces.piece_bytes:
                    raise WireViolationError(f"a piece of {len(piece.data)} bytes, where fewer were asked for")
                return piece.data
        return None
