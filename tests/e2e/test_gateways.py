"""Gateways and their children, from `ota-hook serve --standin` to simulated gateways that really download for them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiomqtt
import httpx
import pytest

from ota_hook.standin.fleet import (
    ChildSpec,
    DeviceBehaviour,
    FleetOptions,
    GatewayForm,
    GatewaySpec,
    Phase,
    SimulatedFleet,
)
from tests.e2e.service import Service, running, until, upload
from tests.held_ports import free_port

FINAL = {"completed", "cancelled", "failed"}
SILENT = DeviceBehaviour(asks=False, check_interval_s=3600, reboot_s=0.05)
PATHS: dict[GatewayForm, list[tuple[str, ...]]] = {
    GatewayForm.GATEWAY: [("m-1",), ("m-2",), ("a/b%",)],
    GatewayForm.SUB_TREE: [("m-1",), ("m-1", "s-1"), ("m-1", "s-2"), ("m-2",)],
    GatewayForm.SUB_FLAT: [("m-1",), ("m-1", "s-1"), ("m-1", "s-1", "t-1")],
}


@pytest.fixture(scope="module")
def broker_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, broker_port: int) -> Iterator[Service]:
    arguments = ("--standin", "--standin-listen", f"127.0.0.1:{broker_port}")
    with running(Service(tmp_path_factory.mktemp("gateways") / "data", arguments=arguments)) as started:
        yield started


def created(response: httpx.Response, status: int = 201) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document: dict[str, Any] = response.json()
    return document


class Scene:
    """A device type for children, one for their gateways, and a gateway for each form."""

    def __init__(self, operator: httpx.Client, broker_port: int, name: str) -> None:
        self.operator = operator
        self.broker_port = broker_port
        self.child_type, self.hub_type = f"{name}-meter", f"{name}-hub"
        self.gateways = [
            GatewaySpec(
                f"{name}-{form.value}",
                self.hub_type,
                "1.0.0",
                tuple(ChildSpec(path, self.child_type, "1.0.0") for path in paths),
                form,
            )
            for form, paths in PATHS.items()
        ]
        for key in (self.child_type, self.hub_type):
            assert operator.put(f"/device-types/{key}", json={}).status_code in (200, 201)
        for gateway in self.gateways:
            created(operator.post("/devices", json={"identifier": gateway.identifier, "type": self.hub_type}))

    @property
    def children(self) -> list[str]:
        return [gateway.identify(child) for gateway in self.gateways for child in gateway.children]

    def fleet(self, behaviour: DeviceBehaviour) -> SimulatedFleet:
        url = f"mqtt://127.0.0.1:{self.broker_port}"
        return SimulatedFleet(FleetOptions(mqtt_url=url, devices=[], gateways=self.gateways, behaviour=behaviour))

    def release(self, version: str = "1.1.0") -> None:
        created(upload(self.operator, version, os.urandom(50_000), device_type=self.child_type))

    def versions(self) -> dict[str, str]:
        """What the service knows of the children."""
        items = self.operator.get("/devices", params={"type": self.child_type, "limit": 1000}).json()["items"]
        return {item["identifier"]: item["versions"].get("version") for item in items}

    def outcomes(self, identifier: str) -> list[str]:
        return [item["outcome"] for item in self.operator.get("/offers", params={"device": identifier}).json()["items"]]

    async def reported(self, version: str = "1.0.0") -> None:
        """Return when every child said that it runs this."""
        known = dict.fromkeys(self.children, version)
        await asyncio.to_thread(until, lambda: self.versions() == known, seconds=30)

    def start(self, **task: Any) -> str:
        """A run over the children's type; its id."""
        document = {"name": "all meters", "target": {"device_type": self.child_type}, "timeout_seconds": 60, **task}
        task_id = created(self.operator.post("/tasks", json=document))["id"]
        return str(created(self.operator.post(f"/tasks/{task_id}/runs"), 202)["id"])

    async def ended(self, run_id: str) -> dict[str, Any]:
        def is_over() -> bool:
            return self.operator.get(f"/runs/{run_id}").json()["state"] in FINAL

        await asyncio.to_thread(until, is_over, seconds=60)
        return created(self.operator.get(f"/runs/{run_id}"), 200)


@asynccontextmanager
async def living(fleet: SimulatedFleet) -> AsyncIterator[SimulatedFleet]:
    task = asyncio.create_task(fleet.run())
    try:
        yield fleet
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def hearing(port: int, *filters: str) -> AsyncIterator[list[tuple[str, Any]]]:
    """What others hear on these topics."""
    heard: list[tuple[str, Any]] = []

    async def listen() -> None:
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            heard.append((str(message.topic), json.loads(message.payload)))

    async with aiomqtt.Client("127.0.0.1", port, identifier="bystander") as client:
        await client.subscribe([(topic_filter, 0) for topic_filter in filters])
        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_gateways_upgrade_their_children_by_checks_and_no_child_is_registered_by_hand(
    service: Service, broker_port: int
) -> None:
    with service.operator() as operator:
        scene = Scene(operator, broker_port, "checked")
        scene.release()
        fleet = scene.fleet(DeviceBehaviour(reboot_s=0.05))
        filters = [f"{family}_{name}/#" for family in ("gateway", "sub") for name in ("connect", "attributes")]
        async with hearing(broker_port, *filters) as heard:
            report = await fleet.run()
        assert [device.error for device in fleet.view.devices] == [None] * 13
        assert (report.gateways, report.children, report.upgraded, report.failed) == (3, 10, 10, 0)
        assert report.offers == report.downloads == 10
        await scene.reported("1.1.0")
        assert {tuple(scene.outcomes(child)) for child in scene.children} == {("succeeded",)}
        # Each gateway said once that all its children are there, and reported for all of them in one message.
        first = dict(reversed(heard))
        for gateway in scene.gateways:
            family, identifier = gateway.form.family, gateway.identifier
            assert len(first[f"{family}connect/{identifier}"]) == len(gateway.children)
            assert json.dumps(first[f"{family}attributes/{identifier}"]).count('"version"') == len(gateway.children)


async def test_a_push_to_the_childrens_type_reaches_each_in_the_form_that_it_used_last(
    service: Service, broker_port: int
) -> None:
    with service.operator() as operator:
        scene = Scene(operator, broker_port, "pushed")
        async with living(scene.fleet(SILENT)) as fleet, hearing(broker_port, "+/+") as heard:
            await scene.reported()
            scene.release()
            assert sum(device.offers for device in fleet.view.devices) == 0
            done = await scene.ended(scene.start())
            assert (done["state"], done["counters"]) == ("completed", {"succeeded": 10})
            assert {device.version for device in fleet.view.devices if "/" in device.identifier} == {"1.1.0"}
            assert [device.error for device in fleet.view.devices] == [None] * 13
        sent = [
            (topic, document["device"]) for topic, document in heard if "command_send" in topic and document["command"]
        ]
        expected = [
            (f"{gateway.form.family}command_send/{gateway.identifier}", gateway.form.name_child(child.path))
            for gateway in scene.gateways
            for child in gateway.children
        ]
        assert sorted(sent, key=str) == sorted(expected, key=str)


async def test_a_gateway_that_was_away_gets_its_childrens_commands_when_it_is_back(
    service: Service, broker_port: int
) -> None:
    with service.operator() as operator:
        scene = Scene(operator, broker_port, "away")
        async with living(scene.fleet(SILENT)):
            await scene.reported()
        scene.release()
        run_id = scene.start()

        def is_sent() -> bool:
            counters = operator.get(f"/runs/{run_id}").json()["counters"]
            return bool(counters == {"offered": 10})

        await asyncio.to_thread(until, is_sent, seconds=30)
        async with living(scene.fleet(SILENT)) as fleet:
            done = await scene.ended(run_id)
            assert (done["state"], done["counters"]) == ("completed", {"succeeded": 10})
            assert sum(device.downloads for device in fleet.view.devices) == 10
        devices = operator.get(f"/runs/{run_id}/devices", params={"limit": 1000}).json()["items"]
        assert sorted(device["identifier"] for device in devices) == sorted(scene.children)


async def test_a_gateway_whose_connection_is_cut_goes_on_with_its_children(service: Service, broker_port: int) -> None:
    with service.operator() as operator:
        scene = Scene(operator, broker_port, "taken")
        async with living(scene.fleet(SILENT)) as fleet:
            await scene.reported()
            for gateway in scene.gateways:
                # The broker ends the older of two connections with one client id.
                async with aiomqtt.Client("127.0.0.1", broker_port, identifier=gateway.identifier):
                    pass
            await asyncio.to_thread(until, lambda: fleet.view.count_phases()[Phase.CURRENT] < 13, seconds=10)
            scene.release()
            done = await scene.ended(scene.start())
            assert done["counters"] == {"succeeded": 10}
            assert fleet.report().failed == 0


async def test_who_publishes_on_a_gateways_topics_and_is_not_it_changes_nothing(
    service: Service, broker_port: int
) -> None:
    with service.operator() as operator:
        scene = Scene(operator, broker_port, "forged")
        async with living(scene.fleet(SILENT)):
            await scene.reported()
        scene.release()

        def known() -> list[Any]:
            everything = [*scene.children, *(gateway.identifier for gateway in scene.gateways)]
            devices = [operator.get(f"/devices/{quote(name, safe='')}").json() for name in everything]
            return [devices, [scene.outcomes(name) for name in everything], scene.versions()]

        before = known()
        gateway = scene.gateways[0].identifier
        forged = {
            "gateway_attributes": {"m-1": {"version": "1.1.0"}},
            "sub_attributes": [{"device": ["m-1"], "attributes": {"version": "1.1.0"}}],
            "gateway_connect": {"device": "m-9", "product": scene.child_type},
            "gateway_event_report": {"device": "m-1", "event": {"method": "otaCheck"}},
            "sub_event_report": {"device": ["m-1"], "event": {"method": "otaCheck"}},
            "gateway_command_reply": {"device": "m-1", "command": {"params": {"ota_result": -1}}},
            "gateway_attributes_get": {"device": "m-1", "get": {"keys": []}},
        }
        async with (
            hearing(broker_port, "#") as heard,
            aiomqtt.Client("127.0.0.1", broker_port, username="mallory", identifier="mallory") as mallory,
        ):
            for name, document in forged.items():
                await mallory.publish(f"{name}/{gateway}", json.dumps(document), qos=1)
            await mallory.publish("the/end", "{}", qos=1)
            await asyncio.to_thread(until, lambda: ("the/end", {}) in heard, seconds=10)
        assert heard[:-1] == [(f"{name}/{gateway}", document) for name, document in forged.items()]
        assert known() == before


async def test_a_gateway_that_nobody_registered_fails_and_so_do_its_children(
    service: Service, broker_port: int
) -> None:
    with service.operator() as operator:
        scene = Scene(operator, broker_port, "unknown")
        for gateway in scene.gateways:
            assert operator.delete(f"/devices/{gateway.identifier}").status_code == 204
        fleet = scene.fleet(DeviceBehaviour(check_attempts=2, answer_timeout_s=0.2))
        report = await asyncio.wait_for(fleet.run(), 20)
        assert (report.devices, report.failed) == (13, 13)
        first, child = fleet.view.devices[:2]
        assert first.error == "no answer to 2 checks"
        assert child.error == f"its gateway {first.identifier} failed: no answer to 2 checks"
        assert scene.versions() == {}
