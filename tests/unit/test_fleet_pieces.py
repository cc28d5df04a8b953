"""A device that takes its firmware in pieces: it asks again, verifies, and goes on where it was cut."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import zlib
from dataclasses import replace

import pytest

from ota_hook.standin.behaviour import DeviceBehaviour, DeviceProgress
from ota_hook.standin.commands import UpgradeCommand, WireViolationError
from ota_hook.standin.download import Fetched, InstallResult
from ota_hook.standin.pieces import Piece, PieceFetcher, Pieces, read_piece

DATA = bytes(range(256)) * 10
COMMAND = UpgradeCommand(
    id=7,
    module="main",
    version="2.0",
    url="http://h/f.bin",
    size_bytes=len(DATA),
    md5=hashlib.md5(DATA, usedforsecurity=False).hexdigest(),
)
QUICK = DeviceBehaviour(retry_pause_s=0, piece_timeout_s=1.0, piece_attempts=3)
PIECES = Pieces(piece_bytes=1000)


def packed(offset: int, data: bytes, *, command_id: int = 7, crc32: int | None = None) -> bytes:
    return struct.pack(">QIII", command_id, offset, len(data), zlib.crc32(data) if crc32 is None else crc32) + data


class LostError(Exception):
    """The connection is cut."""


class Line:
    """Answers with pieces of `data`. `spoilt`: what comes instead of the next ones; None is silence."""

    def __init__(self, data: bytes = DATA, spoilt: tuple[bytes | None, ...] = ()) -> None:
        self.data = data
        self.spoilt = list(spoilt)
        self.asked: list[int] = []
        self.is_cut = False
        self.waiting: list[bytes | None] = []

    async def ask_piece(self, command: UpgradeCommand, offset: int, length: int) -> None:
        assert (command.version, length) == ("2.0", 1000)
        self.asked.append(offset)
        right = packed(offset, self.data[offset : offset + length])
        self.waiting.append(self.spoilt.pop(0) if self.spoilt else right)

    async def next_piece(self, timeout_s: float) -> bytes | None:
        if self.is_cut:
            raise LostError
        return self.waiting.pop(0) if self.waiting else None

    def cut(self) -> None:
        self.is_cut = True


def fetcher_on(line: Line, pieces: Pieces = PIECES) -> PieceFetcher:
    progress = DeviceProgress(identifier="d", device_type="t", version="1.0")
    fetcher = PieceFetcher(progress, QUICK, pieces)
    fetcher.line = line
    return fetcher


def test_a_piece_is_read_behind_its_header() -> None:
    assert read_piece(packed(5, b"abc")) == Piece(7, 5, b"abc")
    assert read_piece(packed(5, b"abc", crc32=1)) is None


@pytest.mark.parametrize(
    "payload", [b"", packed(0, b""), packed(0, b"abc")[:-1], packed(0, b"abc") + b"d", packed(0, b"a", command_id=0)]
)
def test_what_is_no_piece_is_against_the_protocol(payload: bytes) -> None:
    with pytest.raises(WireViolationError):
        read_piece(payload)


async def test_a_package_is_asked_for_piece_by_piece() -> None:
    line = Line()
    assert await fetcher_on(line).fetch(COMMAND) == Fetched(InstallResult.OK)
    assert line.asked == [0, 1000, 2000]


@pytest.mark.parametrize("spoilt", [None, packed(0, b"x" * 1000, crc32=1), packed(500, b"late")])
async def test_a_piece_that_is_lost_broken_or_another_is_asked_for_again(spoilt: bytes | None) -> None:
    line = Line(spoilt=(spoilt,))
    assert await fetcher_on(line).fetch(COMMAND) == Fetched(InstallResult.OK)
    assert line.asked == [0, 0, 1000, 2000]


async def test_a_piece_that_never_comes_is_given_up() -> None:
    line = Line(spoilt=(None,) * 9)
    fetcher = fetcher_on(line)
    assert await fetcher.fetch(COMMAND) == Fetched(InstallResult.DOWNLOAD_FAILED, "no piece at 0")
    assert line.asked == [0, 0, 0]
    assert fetcher.unfinished is None


async def test_a_piece_that_is_longer_than_was_asked_for_is_against_the_protocol() -> None:
    with pytest.raises(WireViolationError, match="1001"):
        await fetcher_on(Line(spoilt=(packed(0, b"x" * 1001),))).fetch(COMMAND)


async def test_pieces_that_make_another_whole_are_not_installed() -> None:
    result, _ = await fetcher_on(Line(data=DATA[::-1])).fetch(COMMAND)
    assert result is InstallResult.DIGEST_DIFFERS


async def test_after_a_cut_the_same_package_goes_on_where_it_was() -> None:
    line = Line()
    fetcher = fetcher_on(line, replace(PIECES, cuts=(0.5,)))
    with pytest.raises(LostError):
        await fetcher.fetch(COMMAND)
    assert (line.asked, fetcher.unfinished) == ([0, 1000], COMMAND)
    fetcher.line = again = Line()
    assert await fetcher.fetch(COMMAND) == Fetched(InstallResult.OK)
    assert again.asked == [2000]
    assert fetcher._progress.resumed_at == [2000]
    assert fetcher.unfinished is None


async def test_after_a_cut_another_package_begins_anew() -> None:
    fetcher = fetcher_on(Line(), replace(PIECES, cuts=(0.0,)))
    with pytest.raises(LostError):
        await fetcher.fetch(replace(COMMAND, md5="0" * 32))
    fetcher.line = again = Line()
    assert await fetcher.fetch(COMMAND) == Fetched(InstallResult.OK)
    assert again.asked == [0, 1000, 2000]


async def test_a_package_that_takes_too_long_is_given_up() -> None:
    class Slow(Line):
        async def next_piece(self, timeout_s: float) -> bytes | None:
            await asyncio.Event().wait()
            return None

    fetcher = PieceFetcher(
        DeviceProgress(identifier="d", device_type="t", version="1.0"), replace(QUICK, download_timeout_s=0.01), PIECES
    )
    fetcher.line = Slow()
    assert await fetcher.fetch(COMMAND) == Fetched(InstallResult.DOWNLOAD_FAILED, "not done in 0.01 s")
