"""Pieces of packages from a bounded cache, from a folder and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ota_hook.errors import DependencyError
from ota_hook.model import Firmware
from ota_hook.packages.blocks import BLOCK_BYTES, BlockSource, CachedBlocks
from tests.doubles import PACKAGE, make_firmware

DATA = bytes(range(251)) * 1_200  # 301,200 bytes: five blocks, the last one shorter
FIRMWARE = make_firmware("F", "2.0", package=replace(PACKAGE, size_bytes=len(DATA)))


class Loads:
    """A LoadBlock that counts, and waits for `gate`."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: DependencyError | None = None

    async def load(self, firmware: Firmware, offset: int, size_bytes: int) -> bytes:
        self.asked.append(offset // BLOCK_BYTES)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return DATA[offset : offset + size_bytes]


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 1),
        (0, 65_536),
        (1, 65_536),
        (65_535, 2),
        (65_536, 65_536),
        (301_199, 1),
        (301_199, 65_536),
        (262_144, 65_536),
    ],
)
async def test_any_piece_is_what_stands_there(offset: int, size: int) -> None:
    blocks = CachedBlocks(Loads().load)
    assert await blocks.read(FIRMWARE, offset, size) == DATA[offset : offset + size]


async def test_a_block_is_fetched_once_however_many_wait_for_it() -> None:
    loads = Loads()
    loads.gate.clear()
    blocks = CachedBlocks(loads.load)
    readers = [asyncio.create_task(blocks.read(FIRMWARE, number, 10)) for number in range(20)]
    await asyncio.sleep(0)
    readers[0].cancel()
    loads.gate.set()
    results = await asyncio.gather(*readers, return_exceptions=True)
    assert results[1:] == [DATA[number : number + 10] for number in range(1, 20)]
    assert await blocks.read(FIRMWARE, 5, 5) == DATA[5:10]
    assert loads.asked == [0]


async def test_the_blocks_that_were_asked_for_longest_ago_go_first() -> None:
    loads = Loads()
    blocks = CachedBlocks(loads.load, cache_bytes=2 * BLOCK_BYTES)
    for number in (0, 1, 0, 2, 0, 1):
        await blocks.read(FIRMWARE, number * BLOCK_BYTES, 1)
    assert loads.asked == [0, 1, 2, 1]


async def test_a_failure_is_not_kept() -> None:
    loads = Loads()
    loads.error = DependencyError("away.")
    blocks = CachedBlocks(loads.load)
    with pytest.raises(DependencyError):
        await blocks.read(FIRMWARE, 0, 1)
    loads.error = None
    assert await blocks.read(FIRMWARE, 0, 1) == DATA[:1]


async def test_a_package_that_became_shorter_is_not_served() -> None:
    async def load(firmware: Firmware, offset: int, size_bytes: int) -> bytes:
        return b"short"

    with pytest.raises(DependencyError, match="shorter"):
        await CachedBlocks(load).read(FIRMWARE, 0, 100)


class _Package(BaseHTTPRequestHandler):
    """Serves DATA under `/firmware/F/fw.bin`, and under the names of lies what they say."""

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        _, _, name, _ = self.path.split("/")
        if name == "G":
            self.send_error(404)
            return
        part = DATA[first : last + 1]
        self.send_response(206)
        shift = 1 if name == "other-place" else 0
        if name != "no-place":
            self.send_header("Content-Range", f"bytes {first + shift}-{last + shift}/{len(DATA)}")
        if name == "packed":
            self.send_header("Content-Encoding", "gzip")
        if name not in {"longer", "endless"}:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if name == "longer":
            part += b"x"
        with contextlib.suppress(OSError):  # who asked is gone
            self.wfile.write(part if name != "endless" else part[:-1])
            while name == "endless" and not self.server.done.wait(0.01):  # type: ignore[attr-defined]
                self.wfile.write(b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def package_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Package) as server:
        server.done = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.done.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


async def test_the_folder_is_read_first_and_what_is_not_there_comes_over_http(
    tmp_path: Path, package_server: str
) -> None:
    source = BlockSource(tmp_path, lambda firmware: f"{package_server}/firmware/{firmware.id}/fw.bin")
    try:
        assert await source.load(FIRMWARE, 1_000, 500) == DATA[1_000:1_500]
        (tmp_path / "F").write_bytes(b"x" * 2_000)
        assert await source.load(FIRMWARE, 1_000, 500) == b"x" * 500
        with pytest.raises(DependencyError, match="404"):
            await source.load(replace(FIRMWARE, id="G"), 0, 5)
    finally:
        await source.close()


@pytest.mark.parametrize("lie", ["other-place", "no-place", "packed", "longer", "endless"])
async def test_what_a_server_says_that_is_not_the_part_that_was_asked_for_is_not_served(
    tmp_path: Path, package_server: str, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ota_hook.packages.blocks._HTTP_S", 0.2 if lie == "endless" else 5.0)
    source = BlockSource(tmp_path, lambda firmware: f"{package_server}/firmware/{firmware.id}/fw.bin")
    try:
        with pytest.raises(DependencyError, match="a part" if lie == "endless" else "than was asked for"):
            await asyncio.wait_for(source.load(replace(FIRMWARE, id=lie), 1_000, 500), 4)
    finally:
        await source.close()


async def test_a_server_that_is_away_is_a_dependency_error(tmp_path: Path) -> None:
    for address in (lambda _: "http://127.0.0.1:1/x", lambda _: None):
        source = BlockSource(tmp_path, address)
        with pytest.raises(DependencyError):
            await source.load(FIRMWARE, 0, 5)
        await source.close()
