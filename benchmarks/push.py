"""A push to a fleet: planned, and its commands published through a real broker.

    python -m benchmarks.push [--devices 1000000] [--firmware 100] [--workers 1]

A Redis of its own, a fleet in it of which one device in ten runs an old version, mosquitto, and worker processes. A run
of a task for the whole type is made; looked at is when it was planned, when every command had left, and what that cost.
Before the figures are printed each command must have arrived at a subscriber, once, at a device that has something
newer, with an id of its own, and the run's counters must say the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import orjson
from ulid import ULID

from benchmarks.broker_calls import device_name
from benchmarks.deployment import OFFER_EVERY, TYPE, OwnRedis, populate, run_redis
from benchmarks.publish import run_mosquitto
from benchmarks.surroundings import SERVER_CORE, Usage, describe, farewell, on_core, say
from ota_hook.model import Outcome
from ota_hook.state.connection import connect_redis
from ota_hook.state.format import open_layout
from ota_hook.state.runs import RedisRuns
from ota_hook.state.tasks import RedisTasks
from ota_hook.task import Run, RunHead, Task
from tests.e2e.service import clean_environment

PREFIX = "push"
GOAL_PLAN_S = 15
GOAL_RSS_MB = 400
GOAL_PER_SECOND = 8_000
_WITHIN_S = 300.0
_PUBLISH = 3
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One `ota-hook worker`."""

    pid: int

    @property
    def peak_rss_mb(self) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@contextlib.contextmanager
def run_worker(redis: OwnRedis, folder: Path, mqtt_port: int, number: int) -> Iterator[Worker]:
    environ = clean_environment(
        OTA_HOOK_DATA_DIR=str(folder / "data"),
        OTA_HOOK_REDIS_URL=redis.url,
        OTA_HOOK_REDIS_PREFIX=PREFIX,
        OTA_HOOK_PUBLIC_URL="http://ota.example.com",
        OTA_HOOK_MQTT_URL=f"mqtt://127.0.0.1:{mqtt_port}",
    )
    log_path = folder / f"worker-{number}.log"
    with log_path.open("wb") as log:
        command = on_core(SERVER_CORE, [sys.executable, "-m", "ota_hook", "worker"])
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)  # noqa: S603
    try:
        deadline = time.monotonic() + _START_S
        while b"broker_connected" not in log_path.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The worker did not start:\n{log_path.read_text()}")
            time.sleep(0.05)
        yield Worker(process.pid)
    finally:
        process.terminate()
        process.wait(60)


class Subscriber(asyncio.Protocol):
    """Everything that was published to a device: kept as it came and read afterwards, for Redis is on its core."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._bytes = 0
        self.subscribed = asyncio.Event()
        self.device_by_id: dict[int, str] = {}
        self.messages = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        filter_ = b"command_send/+"
        subscribe = b"\x00\x01" + len(filter_).to_bytes(2, "big") + filter_ + b"\x00"
        connect = b"\x00\x04MQTT\x04\x02\x00\x00\x00\x05bench"
        cast("asyncio.WriteTransport", transport).write(
            b"\x10" + bytes([len(connect)]) + connect + b"\x82" + bytes([len(subscribe)]) + subscribe
        )

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._bytes += len(data)
        self.subscribed.set()

    async def settle(self) -> None:
        """Return when nothing more comes, and read what came."""
        before = -1
        while before != self._bytes:
            before = self._bytes
            await asyncio.sleep(0.5)
        data, at = b"".join(self._pieces), 0
        while at < len(data):
            kind, size, shift = data[at] >> 4, 0, 0
            while True:
                at += 1
                size |= (data[at] & 0x7F) << shift
                shift += 7
                if not data[at] & 0x80:
                    break
            packet = data[at + 1 : at + 1 + size]
            at += 1 + size
            if kind == _PUBLISH:
                topic_end = 2 + int.from_bytes(packet[:2], "big")
                self.messages += 1
                command = orjson.loads(packet[topic_end:])
                self.device_by_id[command["id"]] = packet[2:topic_end].decode().removeprefix("command_send/")

    def check(self, devices: int) -> None:
        wanted = {device_name(index) for index in range(0, devices, OFFER_EVERY)}
        if (self.messages, len(self.device_by_id)) != (len(wanted), len(wanted)):
            sys.exit(f"{self.messages} commands with {len(self.device_by_id)} ids arrived; {len(wanted)} were to")
        if set(self.device_by_id.values()) != wanted:
            sys.exit("commands arrived at other devices than those that have something newer")


async def measure(options: argparse.Namespace, folder: Path, redis: OwnRedis, mqtt_port: int) -> None:
    await populate(redis, prefix=PREFIX, devices=options.devices, firmware=options.firmware)
    client = connect_redis(redis.url)
    keys = await open_layout(client, prefix=PREFIX)
    tasks, runs = RedisTasks(client, keys), RedisRuns(client, keys)
    # Nobody answers: a run that may stop itself would wait for results behind its first devices.
    task = Task(id=str(ULID()), name="everyone", device_type=TYPE, stop_percent=None)
    await tasks.put_task(task, expected=b"", due_at_ms=None)
    stored = await tasks.load_task(task.id)
    wanted = len(range(0, options.devices, OFFER_EVERY))
    subscriber = Subscriber()
    link, _ = await asyncio.get_running_loop().create_connection(lambda: subscriber, "127.0.0.1", mqtt_port)
    await subscriber.subscribed.wait()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(run_worker(redis, folder, mqtt_port, number)) for number in range(options.workers)
        ]
        before = [Usage.of(worker.pid) for worker in workers], Usage.of(redis.pid)
        began = time.monotonic()
        head = RunHead(id=str(ULID()), task=task, created_at_ms=time.time_ns() // 1_000_000)
        await tasks.create_run(head, expected=stored.stored if stored else b"", now_ms=head.created_at_ms)

        async def until(what: str, reached: object) -> tuple[Run, float]:
            while time.monotonic() - began < _WITHIN_S:
                run = await runs.load_run(head.id)
                if run is not None and callable(reached) and reached(run):
                    return run, time.monotonic() - began
                await asyncio.sleep(0.05)
            sys.exit(f"{what}: not within {_WITHIN_S:g} s: {await runs.load_run(head.id)}")

        planned, plan_s = await until("planned", lambda run: run.is_planned)
        planning = sum((Usage.of(w.pid) - b).cpu for w, b in zip(workers, before[0], strict=True))
        sent, sent_s = await until("sent", lambda run: run.counters.get(Outcome.OFFERED, 0) == wanted)
        cpu = sum((Usage.of(w.pid) - b).cpu for w, b in zip(workers, before[0], strict=True))
        redis_cpu = (Usage.of(redis.pid) - before[1]).cpu
        rss_mb = max(worker.peak_rss_mb for worker in workers)
    await subscriber.settle()
    link.close()
    await client.aclose()
    subscriber.check(options.devices)
    if planned.total != wanted or dict(sent.counters) != {Outcome.OFFERED: wanted}:
        sys.exit(f"the run's counters are {sent.counters}, and it should be {wanted} offered")
    sending_s = sent_s - plan_s
    say(f"  planned in       {plan_s:8.2f} s    {options.devices / plan_s:12,.0f} devices/s   goal ≤ {GOAL_PLAN_S} s")
    rate = wanted / sending_s
    say(f"  published in     {sending_s:8.2f} s    {rate:12,.0f} messages/s  goal ≥ {GOAL_PER_SECOND:,}/s a worker")
    say(f"  worker CPU       {planning:8.2f} s to plan, {(cpu - planning) / wanted * 1e6:6.1f} µs a command")
    say(f"  Redis CPU        {redis_cpu:8.2f} s in all")
    say(f"  worker peak RSS  {rss_mb:8.1f} MB   goal ≤ {GOAL_RSS_MB} MB")
    say(f"  commands         {wanted:8,} of {options.devices:,} devices, each once, to who has something newer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--firmware", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    describe("push")
    say(
        f"{options.devices:,} devices (one in {OFFER_EVERY} runs an old version), {options.firmware} firmware,"
        f" {options.workers} worker(s) on one core; Redis, mosquitto and this script on the other"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with run_redis(folder) as redis, run_mosquitto(folder) as mqtt_port:
            asyncio.run(measure(options, folder, redis, mqtt_port))
    farewell()


if __name__ == "__main__":
    main()
