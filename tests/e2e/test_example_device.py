"""The example device of docs/devices.md against a running service: under CPython, and MicroPython where it is there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import aiomqtt
import httpx
import pytest

from tests.e2e.service import Service, running, until, upload
from tests.held_ports import free_port

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ROOT / "tests" / "e2e" / "micropython" / "live_once.py"
PACKAGE: Final = os.urandom(30_000)
INTERPRETERS: Final = [sys.executable, *filter(None, [shutil.which("micropython")])]


@pytest.fixture(scope="module")
def broker_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, broker_port: int) -> Iterator[Service]:
    arguments = ("--standin", "--standin-listen", f"127.0.0.1:{broker_port}")
    with running(Service(tmp_path_factory.mktemp("example") / "data", arguments=arguments)) as started:
        with started.operator() as operator:
            assert operator.put("/device-types/board", json={}).status_code == 201
            assert upload(operator, "2.0.0", PACKAGE, device_type="board").status_code == 201
        yield started


class Board:
    """A device of the example: its flash is a folder, and each life a process."""

    def __init__(self, operator: httpx.Client, broker_port: int, name: str, flash: Path, interpreter: str) -> None:
        self.operator = operator
        self.name = name
        self.flash = flash
        self.command = [
            interpreter,
            str(PROGRAM),
            name,
            str(broker_port),
            str(flash),
            str(ROOT / "examples/micropython"),
        ]
        assert operator.post("/devices", json={"identifier": name, "type": "board"}).status_code == 201

    def power_on(self, way: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.command, way], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def live(self, way: str) -> str:
        """Its last word."""
        process = self.power_on(way)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output.strip()

    @property
    def version(self) -> str:
        return str(self.operator.get(f"/devices/{self.name}").json()["versions"]["version"])

    @property
    def offer(self) -> tuple[str, str | None]:
        """Outcome and code of the newest."""
        offer = self.operator.get("/offers", params={"device": self.name}).json()["items"][0]
        return offer["outcome"], offer["code"]

    def part(self) -> int:
        part = self.flash / "firmware.part"
        return part.stat().st_size if part.exists() else 0


@pytest.mark.parametrize("interpreter", INTERPRETERS, ids=lambda path: Path(path).name)
@pytest.mark.parametrize("way", ["over-http", "over-mqtt"])
def test_the_example_upgrades_and_proves_it(
    service: Service, broker_port: int, tmp_path: Path, way: str, interpreter: str
) -> None:
    with service.operator() as operator:
        board = Board(operator, broker_port, f"{way}-{Path(interpreter).name}", tmp_path, interpreter)
        assert board.live(way) == "rebooting"
        until(lambda: board.offer == ("installing", None), seconds=10)  # its reply said so
        assert board.version == "1.0.0"
        assert board.live(way) == "current"
        assert (board.version, board.offer) == ("2.0.0", ("succeeded", None))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["version.txt"]


@pytest.mark.parametrize("is_right", [True, False])
def test_a_download_over_http_goes_on_where_it_ended_and_is_verified_as_a_whole(
    service: Service, broker_port: int, tmp_path: Path, is_right: bool
) -> None:
    with service.operator() as operator:
        board = Board(operator, broker_port, f"resumed-{is_right}", tmp_path, sys.executable)
        (tmp_path / "version.txt").write_text("2.0.0")
        assert board.live("over-http") == "current"
        (tmp_path / "version.txt").unlink()
        (firmware,) = operator.get("/firmware", params={"device_type": "board"}).json()["items"]
        keys = ("module", "version", "url", "size", "md5")
        params = {"upgrade": True, **{key: firmware[key] for key in keys}}
        (tmp_path / "firmware.json").write_text(json.dumps({"method": "otaUpgrade", "params": params, "id": 1}))
        (tmp_path / "firmware.part").write_bytes(PACKAGE[:10_000] if is_right else bytes(10_000))
        assert board.live("over-http") == ("rebooting" if is_right else "current")
        assert (tmp_path / "version.txt").exists() == is_right
        assert board.part() == 0


async def test_a_board_that_loses_power_in_the_middle_goes_on_with_the_piece_that_it_lacks(
    service: Service, broker_port: int, tmp_path: Path
) -> None:
    offsets: list[int] = []

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            offsets.append(struct.unpack_from(">QI", message.payload)[1])

    with service.operator() as operator:
        board = Board(operator, broker_port, "powerless", tmp_path, sys.executable)
        async with aiomqtt.Client("127.0.0.1", broker_port, identifier="bystander") as bystander:
            await bystander.subscribe(f"ota_chunk/{board.name}", qos=1)
            listening = asyncio.create_task(listen(bystander))
            process = board.power_on("over-mqtt")
            await asyncio.to_thread(until, lambda: board.part() > 10_000, seconds=30)
            process.kill()
            await asyncio.to_thread(process.communicate)
            had = board.part()
            assert had < len(PACKAGE)
            assert await asyncio.to_thread(board.live, "over-mqtt") == "rebooting"
            await asyncio.to_thread(until, lambda: len(PACKAGE) - 1_000 in offsets, seconds=10)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        assert await asyncio.to_thread(board.live, "over-mqtt") == "current"
        assert (board.version, board.offer) == ("2.0.0", ("succeeded", None))
        # It went back once: to the end of what was on its flash, never to the beginning.
        assert [second for first, second in pairwise(offsets) if second <= first] == [had]
