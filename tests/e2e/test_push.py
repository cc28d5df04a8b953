"""Pushes, from `ota-hook serve --standin` to devices that never ask."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ota_hook.standin.fleet import DeviceBehaviour, DeviceSpec, FleetOptions, SimulatedFleet
from tests.e2e.operator import Operator
from tests.e2e.service import Service, running, until, upload
from tests.held_ports import free_port

DEVICES = 20
FINAL = {"completed", "cancelled", "failed"}


@pytest.fixture(scope="module")
def broker_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, broker_port: int) -> Iterator[Service]:
    arguments = ("--standin", "--standin-listen", f"127.0.0.1:{broker_port}")
    with running(Service(tmp_path_factory.mktemp("push") / "data", arguments=arguments)) as started:
        yield started


def silent_fleet(broker_port: int, device_type: str, names: list[str]) -> SimulatedFleet:
    return SimulatedFleet(
        FleetOptions(
            mqtt_url=f"mqtt://127.0.0.1:{broker_port}",
            devices=[DeviceSpec(name, device_type, "1.0.0") for name in names],
            behaviour=DeviceBehaviour(asks=False, check_interval_s=3600, reboot_s=0.05),
        )
    )


def created(response: httpx.Response, status: int = 201) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document: dict[str, Any] = response.json()
    return document


def prepare(operator: httpx.Client, device_type: str, names: list[str]) -> str:
    """A type, its devices and a task for all of them; the task's id."""
    assert operator.put(f"/device-types/{device_type}", json={}).status_code in (200, 201)
    for name in names:
        assert operator.put(f"/devices/{name}", json={"type": device_type}).status_code == 201
    task = {"name": "winter release", "target": {"device_type": device_type}, "timeout_seconds": 60}
    return str(created(operator.post("/tasks", json=task))["id"])


def release(operator: httpx.Client, device_type: str, version: str = "1.1.0") -> None:
    created(upload(operator, version, os.urandom(50_000), device_type=device_type))


async def reported(operator: httpx.Client, device_type: str, count: int) -> None:
    """Return when so many devices of the type said what they run."""

    def is_known() -> bool:
        found = operator.get(f"/device-types/{device_type}/versions").json()
        return bool(sum(entry["devices"] for entry in found["versions"]) == count)

    await asyncio.to_thread(until, is_known, seconds=30)


async def ended(operator: httpx.Client, run_id: str) -> dict[str, Any]:
    """The run once it is over, as its events tell."""
    loop = asyncio.get_running_loop()

    def follow() -> dict[str, Any]:
        with operator.stream("GET", f"/runs/{run_id}/events") as events:
            for line in events.iter_lines():
                if line.startswith("data: "):
                    run: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    assert sum(run["counters"].values()) == run["total"]
                    if run["state"] in FINAL:
                        return run
        raise AssertionError("the stream ended before the run")

    return await asyncio.wait_for(loop.run_in_executor(None, follow), 60)


async def test_devices_that_never_ask_are_upgraded_by_a_run(service: Service, broker_port: int) -> None:
    names = [f"silent-{n}" for n in range(DEVICES)]
    with service.operator() as operator:
        task_id = prepare(operator, "silent", names)
        fleet = silent_fleet(broker_port, "silent", names)
        living = asyncio.create_task(fleet.run())
        await reported(operator, "silent", DEVICES)
        release(operator, "silent")
        assert {device.offers for device in fleet.view.devices} == {0}

        run = created(operator.post(f"/tasks/{task_id}/runs"), 202)
        done = await ended(operator, run["id"])
        assert (done["state"], done["total"], done["counters"]) == ("completed", DEVICES, {"succeeded": DEVICES})
        assert fleet.view.count_versions() == {"1.1.0": DEVICES}
        assert {(device.offers, device.downloads) for device in fleet.view.devices} == {(1, 1)}
        devices = operator.get(f"/runs/{run['id']}/devices", params={"limit": 1000}).json()["items"]
        assert sorted(device["identifier"] for device in devices) == sorted(names)
        assert len({device["command_id"] for device in devices}) == DEVICES

        # Nothing is newer any more: nobody is sent anything.
        again = await ended(operator, created(operator.post(f"/tasks/{task_id}/runs"), 202)["id"])
        assert (again["state"], again["total"]) == ("completed", 0)
        assert {device.offers for device in fleet.view.devices} == {1}
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


async def test_who_is_connected_is_shown_as_online(service: Service, broker_port: int, tmp_path: Path) -> None:
    outside = Operator(service, tmp_path)
    with service.operator() as operator:
        prepare(operator, "shown", ["shown-1", "shown-2"])

        def listed(*options: str) -> list[str]:
            return [entry["identifier"] for entry in outside.ask("devices", "list", "--type", "shown", *options)]

        def is_online() -> bool:
            return bool(operator.get("/devices/shown-1").json()["online"])

        assert sorted(await asyncio.to_thread(listed, "--offline")) == ["shown-1", "shown-2"]
        living = asyncio.create_task(silent_fleet(broker_port, "shown", ["shown-1"]).run())
        await asyncio.to_thread(until, is_online, seconds=30)
        assert await asyncio.to_thread(listed, "--online") == ["shown-1"]
        assert await asyncio.to_thread(listed, "--offline") == ["shown-2"]
        shown = await asyncio.to_thread(outside.run, "devices", "show", "shown-1")
        assert re.search(r"online\s+yes", shown.stdout)
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
        await asyncio.to_thread(until, lambda: not is_online(), seconds=30)


async def test_a_run_is_watched_at_a_terminal(service: Service, broker_port: int, tmp_path: Path) -> None:
    names = ["watched-1", "watched-2"]
    outside = Operator(service, tmp_path, in_process=False)
    with service.operator() as operator:
        task_id = prepare(operator, "watched", [*names, "watched-away"])
        operator.patch("/devices/watched-away", json={"versions": {"version": "1.0.0"}})
        operator.patch(f"/tasks/{task_id}", json={"expires_seconds": 1, "timeout_seconds": 1})
        fleet = silent_fleet(broker_port, "watched", names)
        living = asyncio.create_task(fleet.run())
        await reported(operator, "watched", 3)
        release(operator, "watched")

        chosen = ("task", "run", task_id, "--watch", "--device", "watched-1")
        done = await asyncio.to_thread(outside.run, *chosen)
        assert re.search(r"is completed\. 1 device: 1 succeeded\.", done.stdout)
        rest = await asyncio.to_thread(outside.run, "task", "run", task_id, "--watch", "--json", status=1)
        run = json.loads(rest.stdout)
        assert run["counters"] == {"succeeded": 1, "timed_out": 1}
        shown = await asyncio.to_thread(outside.run, "task", "devices", run["id"], "--outcome", "timed_out")
        assert "watched-away" in shown.stdout
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


async def test_watching_ends_where_a_run_stops_itself(service: Service, broker_port: int, tmp_path: Path) -> None:
    names = [f"bad-{number}" for number in range(5)]
    outside = Operator(service, tmp_path, in_process=False)
    with service.operator() as operator:
        task_id = prepare(operator, "bad", names)
        operator.patch(f"/tasks/{task_id}", json={"stop_after": 1})
        living = asyncio.create_task(silent_fleet(broker_port, "bad", names).run())
        await reported(operator, "bad", len(names))
        firmware = created(upload(operator, "1.1.0", os.urandom(50_000), device_type="bad"))
        package = service.data_dir / "packages" / firmware["id"]
        package.write_bytes(os.urandom(50_000))
        done = await asyncio.to_thread(outside.run, "task", "run", task_id, "--watch", status=1)
        (run,) = operator.get(f"/tasks/{task_id}/runs").json()["items"]
        assert re.search(r"is stopped: \d of \d devices that finished failed or timed out", done.stdout)
        assert f"`ota-hook task resume {run['id']}` goes on with it" in done.stderr
        failed = operator.get(f"/runs/{run['id']}/devices?outcome=failed").json()["items"]
        assert {device["code"] for device in failed} == {"verify_failed"}
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


def test_a_run_says_how_many_are_away(service: Service, tmp_path: Path) -> None:
    outside = Operator(service, tmp_path)
    with service.operator() as operator:
        task_id = prepare(operator, "asleep", ["asleep-1"])
        operator.patch("/devices/asleep-1", json={"versions": {"version": "1.0.0"}})
        release(operator, "asleep")
        run_id = created(operator.post(f"/tasks/{task_id}/runs", json={}), 202)["id"]
        until(lambda: operator.get(f"/runs/{run_id}").json()["away"] == 1, seconds=30)
        assert "1 offered (1 away)" in outside.run("task", "status", run_id).stdout
        assert "1 device without an outcome will be in a moment." in outside.run("task", "cancel", run_id).stdout


def test_a_worker_shows_its_metrics_where_settings_say_so(tmp_path: Path) -> None:
    environ = {
        "OTA_HOOK_MQTT_URL": "mqtt://127.0.0.1:1",
        "OTA_HOOK_WORKER_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
    }
    with running(Service(tmp_path / "data", environ=environ)):
        metrics = httpx.get(f"http://{environ['OTA_HOOK_WORKER_METRICS_LISTEN']}/metrics", trust_env=False).text
    assert "\nota_hook_run_counters_mended 0.0\n" in metrics


def test_without_a_broker_a_run_is_refused_and_a_worker_does_not_start(tmp_path: Path) -> None:
    with running(Service(tmp_path / "data")) as service:
        operator = Operator(service, tmp_path)
        operator.run("types", "put", "tracker")
        task = operator.ask("task", "add", "all", "--type", "tracker")
        assert "OTA_HOOK_MQTT_URL" in operator.refused("task", "run", task["id"])
        outside = Operator(service, tmp_path, in_process=False)
        assert "OTA_HOOK_MQTT_URL" in outside.run("worker", status=2).stderr
