"""A run over a fleet of which some fail, are silent or away, while workers are killed and Redis restarts.

As many devices as OTA_HOOK_TEST_PUSH_DEVICES says, else few enough for every run of the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import orjson
import pytest

from ota_hook.rollout.sender import BATCH
from tests.e2e.service import COMMAND, Service, clean_environment, running, upload
from tests.held_ports import free_port
from tests.redis_process import redis_process

pytestmark = pytest.mark.alone

DEVICES = int(os.environ.get("OTA_HOOK_TEST_PUSH_DEVICES", "200"))
TIMEOUT_S = 10
ROUND_S = 0.5
WITHIN_S = 120 + DEVICES * 0.15
RATE_PER_MINUTE = DEVICES * 6
"""So that the run is under way for a while: there is something to take over."""


class Fleet:
    """Devices on real MQTT connections, and what each was sent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.copies: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._connecting = asyncio.Semaphore(50)
        self._tasks: list[asyncio.Task[None]] = []

    async def power_on(self, names: list[str], answer: str) -> None:
        """Return when they are connected. `answer`: `upgrade`, `fail` or `silent`."""
        ready = [asyncio.Event() for _ in names]
        self._tasks += [
            asyncio.create_task(self._live(name, answer, event)) for name, event in zip(names, ready, strict=True)
        ]
        for event in ready:
            await asyncio.wait_for(event.wait(), 120)

    async def _live(self, name: str, answer: str, ready: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with self._connecting:
                    client = aiomqtt.Client("127.0.0.1", self._port, username=name, identifier=name, timeout=60)
                    await client.__aenter__()
                try:
                    await client.subscribe(f"command_send/{name}", qos=1, timeout=60)
                    ready.set()
                    async for message in client.messages:
                        assert isinstance(message.payload, bytes)
                        await self._obey(client, name, answer, orjson.loads(message.payload))
                finally:
                    with contextlib.suppress(aiomqtt.MqttError):
                        await client.__aexit__(None, None, None)
            await asyncio.sleep(0.5)

    async def _obey(self, client: aiomqtt.Client, name: str, answer: str, command: dict[str, Any]) -> None:
        assert command["params"]["upgrade"] is True
        self.copies[name][command["id"]] += 1
        if answer == "upgrade":
            payload = orjson.dumps({"version": command["params"]["version"]})
            await client.publish(f"attributes/{name}", payload, qos=1, timeout=60)
        elif answer == "fail":
            reply = {"method": "otaUpgrade", "params": {"ota_result": -4}, "id": command["id"]}
            await client.publish(f"command_reply/{name}", orjson.dumps(reply), qos=1, timeout=60)

    async def power_off(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def fleet_on(port: int) -> AsyncIterator[Fleet]:
    fleet = Fleet(port)
    try:
        yield fleet
    finally:
        await fleet.power_off()


def start_worker(folder: Path, redis_url: str, broker_port: int, number: int) -> subprocess.Popen[bytes]:
    environ = clean_environment(
        OTA_HOOK_DATA_DIR=str(folder / "data"),
        OTA_HOOK_REDIS_URL=redis_url,
        OTA_HOOK_MQTT_URL=f"mqtt://127.0.0.1:{broker_port}",
        OTA_HOOK_PUBLIC_URL="http://127.0.0.1:1",
    )
    with (folder / f"worker-{number}.log").open("ab") as log:
        return subprocess.Popen([*COMMAND, "worker"], env=environ, stdout=log, stderr=log)


def run_of(operator: httpx.Client, run_id: str) -> dict[str, Any]:
    answer = operator.get(f"/runs/{run_id}")
    if answer.status_code != 200:
        return {"state": "", "counters": {}}
    run: dict[str, Any] = answer.json()
    assert sum(run["counters"].values()) == run["total"]
    return run


async def until_run(operator: httpx.Client, run_id: str, holds: Any) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN_S
    while True:
        run = await asyncio.to_thread(run_of, operator, run_id)
        if holds(run):
            return run
        assert loop.time() < deadline, orjson.dumps(run).decode()
        await asyncio.sleep(ROUND_S)


def outcomes_of(operator: httpx.Client, run_id: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with operator.stream("GET", f"/runs/{run_id}/devices", headers={"Accept": "application/x-ndjson"}) as lines:
        for line in lines.iter_lines():
            device = orjson.loads(line)
            assert device["identifier"] not in found
            found[device["identifier"]] = device
    return found


@pytest.mark.timeout(WITHIN_S * 4)
async def test_every_device_ends_in_the_one_outcome_that_is_true(tmp_path: Path) -> None:
    names = [f"p{number:05}" for number in range(DEVICES)]
    share = DEVICES // 20
    failing, silent, away = names[:share], names[share : 2 * share], names[2 * share : 3 * share]
    good = names[3 * share :]
    broker_port = free_port()
    with redis_process(tmp_path, "--appendonly", "yes") as redis:
        service = Service(
            tmp_path / "data",
            arguments=("--standin", "--standin-listen", f"127.0.0.1:{broker_port}"),
            environ={"OTA_HOOK_REDIS_URL": redis.url, "OTA_HOOK_STOP_PERCENT": "90"},
        )
        with running(service), service.operator() as operator:
            workers = [start_worker(tmp_path, redis.url, broker_port, number) for number in range(2)]
            try:
                assert operator.put("/device-types/tracker", json={}).status_code == 201
                devices = "".join(
                    f'{{"identifier":"{name}","type":"tracker","versions":{{"version":"1.0.0"}}}}\n' for name in names
                )
                ndjson = {"Content-Type": "application/x-ndjson"}
                assert operator.post("/devices-import", content=devices, headers=ndjson).json()["created"] == DEVICES
                assert upload(operator, "1.1.0", device_type="tracker").status_code == 201
                task = {
                    "name": "all",
                    "target": {"device_type": "tracker"},
                    "timeout_seconds": TIMEOUT_S,
                    "rate_per_minute": RATE_PER_MINUTE,
                }
                task_id = operator.post("/tasks", json=task).json()["id"]
                async with fleet_on(broker_port) as fleet:
                    await fleet.power_on(good, "upgrade")
                    await fleet.power_on(failing, "fail")
                    await fleet.power_on(silent, "silent")
                    run_id = operator.post(f"/tasks/{task_id}/runs").json()["id"]

                    await until_run(operator, run_id, lambda run: run["counters"].get("succeeded", 0) > DEVICES // 10)
                    for worker in workers:  # two of three: the third is the service's own
                        worker.kill()
                    await until_run(operator, run_id, lambda run: run["counters"].get("succeeded", 0) > DEVICES // 3)
                    await asyncio.to_thread(redis.kill)
                    await asyncio.sleep(1)
                    await asyncio.to_thread(redis.start)
                    await until_run(operator, run_id, lambda run: run["state"] and "planned" not in run["counters"])
                    await asyncio.sleep(TIMEOUT_S / 2)
                    await fleet.power_on(away, "upgrade")

                    run = await until_run(operator, run_id, lambda run: run["state"] == "completed")
                outcomes = await asyncio.to_thread(outcomes_of, operator, run_id)
                expected = dict.fromkeys((*good, *away), "succeeded")
                expected |= dict.fromkeys(failing, "failed") | dict.fromkeys(silent, "timed_out")
                wrong = {
                    name: (device["outcome"], device["code"], expected[name], dict(fleet.copies[name]))
                    for name, device in outcomes.items()
                    if device["outcome"] != expected[name]
                }
                assert wrong == {}
                assert run["counters"] == Counter(expected.values())
                assert {device["code"] for device in outcomes.values() if device["outcome"] == "failed"} == {
                    "flash_failed"
                }
                # One id per device; and a second copy only of what was under way at a kill or the restart.
                ids = {name: set(copies) for name, copies in fleet.copies.items()}
                assert all(len(found) == 1 for found in ids.values()), {n: i for n, i in ids.items() if len(i) > 1}
                assert {name: {outcomes[name]["command_id"]} for name in ids} == ids
                twice = [name for name, copies in fleet.copies.items() if sum(copies.values()) > 1]
                assert len(twice) <= 3 * BATCH, twice
            finally:
                for worker in workers:
                    worker.kill()
                    worker.wait(10)
