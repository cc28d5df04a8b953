"""Firmware over MQTT, from `ota-hook serve --standin` to a simulated device that can't speak HTTP."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator

import aiomqtt
import pytest

from ota_hook.standin.fleet import DeviceBehaviour, DeviceSpec, FleetOptions, Pieces, SimulatedFleet
from tests.e2e.service import Service, running, until, upload
from tests.held_ports import free_port

PACKAGE = os.urandom(150_000)
PIECE = 16 * 1024
NAME = "no-http-1"


@pytest.fixture(scope="module")
def broker_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, broker_port: int) -> Iterator[Service]:
    arguments = ("--standin", "--standin-listen", f"127.0.0.1:{broker_port}")
    with running(Service(tmp_path_factory.mktemp("chunks") / "data", arguments=arguments)) as started:
        yield started


async def test_a_device_whose_connection_is_cut_goes_on_at_its_offset_and_succeeds(
    service: Service, broker_port: int
) -> None:
    with service.operator() as operator:
        assert operator.put("/device-types/no-http", json={}).status_code == 201
        assert operator.post("/devices", json={"identifier": NAME, "type": "no-http"}).status_code == 201
        assert upload(operator, "2.0.0", PACKAGE, device_type="no-http").status_code == 201
        fleet = SimulatedFleet(
            FleetOptions(
                mqtt_url=f"mqtt://127.0.0.1:{broker_port}",
                devices=[DeviceSpec(NAME, "no-http", "1.0.0", Pieces(piece_bytes=PIECE, cuts=(0.5,)))],
                behaviour=DeviceBehaviour(reboot_s=0.05, retry_pause_s=0.05),
            )
        )
        heard: list[bytes] = []

        async def listen(client: aiomqtt.Client) -> None:
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                heard.append(message.payload)

        async with aiomqtt.Client("127.0.0.1", broker_port, identifier="bystander") as bystander:
            await bystander.subscribe(f"ota_chunk/{NAME}", qos=1)
            listening = asyncio.create_task(listen(bystander))
            report = await fleet.run()
            await asyncio.to_thread(until, lambda: sum(map(len, heard)) >= len(PACKAGE), seconds=10)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

        (device,) = fleet.view.devices
        assert (device.version, device.error, report.offers, report.upgraded) == ("2.0.0", None, 1, 1)
        cut_at = 5 * PIECE  # where the first piece behind the half begins
        assert device.resumed_at == [cut_at]
        pieces = [(struct.unpack_from(">QI", payload)[1], payload[20:]) for payload in heard]
        assert b"".join(dict(pieces).values()) == PACKAGE
        # Nothing that was there was asked for again.
        assert [offset for offset, _ in pieces] == list(range(0, len(PACKAGE), PIECE))

        (offer,) = operator.get("/offers", params={"device": NAME}).json()["items"]
        assert (offer["version"], offer["outcome"]) == ("2.0.0", "succeeded")
        assert operator.get(f"/devices/{NAME}").json()["versions"] == {"version": "2.0.0"}
