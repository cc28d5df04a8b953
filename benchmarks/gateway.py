"""What a gateway's message costs per child, beside the same of a direct device, with everything real.

    python -m benchmarks.gateway [--gateways 100] [--children 500] [--rounds 3]

A Redis of its own with gateways, their children and as many direct devices, mosquitto, and `ota-hook hook` with one
worker on a core of its own. Measured one behind the other, in turns: reports that change nothing and reports of a new
version, from direct devices and from gateways for all their children in one message; checks of direct devices, of one
child a message, and of all children of a gateway in one message (the first answer rewrites it, the others are published
to mosquitto; one check in ten is answered with an offer). Before the figures are printed answers and what is stored are
held against what they must be, and how many commands Redis was asked for by each message is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from benchmarks.broker_calls import CHECK, device_name, publish_request
from benchmarks.deployment import (
    LATEST,
    OFFER_EVERY,
    TYPE,
    Hook,
    OwnRedis,
    broker_of,
    populate,
    run_hook,
    run_redis,
    version_of,
)
from benchmarks.load import Generator, Seen, compile_c
from benchmarks.publish import run_mosquitto
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, Usage, describe, farewell, say
from ota_hook.exhook.exhook_pb2 import ValuedResponse
from ota_hook.identifiers import child_identifier
from ota_hook.model import ReportedVersion
from ota_hook.state.connection import connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.format import open_layout
from ota_hook.state.keys import Keys, as_bytes
from ota_hook.state.records import pack_device

PREFIX = "gateway"
_GATEWAY_STREAMS = 2
"""Messages under way of gateways: each keeps Redis and the worker for milliseconds."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Gateways, children, and as many direct devices."""

    gateways: int
    children: int

    @property
    def count(self) -> int:
        return self.gateways * self.children

    def gateway(self, number: int) -> str:
        return f"GW_{number:06d}"

    def address(self, number: int) -> str:
        return f"ADDR{number:04d}"

    def child(self, index: int) -> str:
        gateway, number = divmod(index, self.children)
        identifier = child_identifier(self.gateway(gateway), (self.address(number),))
        assert identifier is not None  # noqa: S101 - names of ours
        return identifier


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of message: how many devices each is about, what makes its bodies in a round, and the command of Redis
    that each should ask for once.
    """

    name: str
    devices_each: int
    bodies: Callable[[int], Iterator[bytes]]
    asks: str
    streams: tuple[int, int] = (8, 32)

    @property
    def is_check(self) -> bool:
        return self.name.startswith("check")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one load, per device that it was about."""

    seen: Seen
    devices: int
    worker_us: float
    redis_us: float
    asked_each: float

    def describe(self, load: Load) -> str:
        return (
            f"  {load.name:38} worker {self.worker_us:6.2f} µs  Redis {self.redis_us:5.2f} µs a device"
            f"  {self.devices / self.seen.seconds:9,.0f} devices/s  p99 {self.seen.p99_us / 1000:6.2f} ms"
            f"  {load.asks} a message {self.asked_each:5.2f}  unanswered {self.seen.ignore if load.is_check else 0}"
        )


def write_children(redis: OwnRedis, keys: Keys, fleet: Fleet) -> None:
    """Gateways and children, in buckets; the child of a number runs what the direct device of that number runs."""
    with Redis(port=redis.port) as client:
        for gateway in range(fleet.gateways):
            name = fleet.gateway(gateway)
            fields = {as_bytes(name): pack_device(TYPE, {"version": ReportedVersion(LATEST, 1)})}
            for number in range(fleet.children):
                index = gateway * fleet.children + number
                packed = pack_device(TYPE, {"version": ReportedVersion(version_of(index), 1)})
                fields[as_bytes(fleet.child(index))] = packed
            client.hset(keys.devices(keys.bucket_of(name)), mapping=fields)


def reports_of(fleet: Fleet) -> list[Load]:
    """Each beside what it is compared with. The version of a round is new to all, then it is what they run."""

    def direct(version: Callable[[int], str]) -> Iterator[bytes]:
        for index in range(fleet.count):
            name = device_name(index)
            payload = json.dumps({"version": version(index)}).encode()
            yield publish_request(f"attributes/{name}", payload, username=name)

    def gateways(version: Callable[[int], str]) -> Iterator[bytes]:
        for gateway in range(fleet.gateways):
            name, first = fleet.gateway(gateway), gateway * fleet.children
            said = {fleet.address(n): {"version": version(first + n)} for n in range(fleet.children)}
            yield publish_request(f"gateway_attributes/{name}", json.dumps(said).encode(), username=name)

    each, few = fleet.children, (_GATEWAY_STREAMS, 1)
    return [
        Load("report, new version, direct", 1, lambda n: direct(lambda _: version_in(n)), "evalsha"),
        Load(
            f"report, new version, {each} a message", each, lambda n: gateways(lambda _: version_in(n)), "evalsha", few
        ),
        Load("report, unchanged, direct", 1, lambda n: direct(lambda _: version_in(n)), "evalsha"),
        Load(f"report, unchanged, {each} a message", each, lambda n: gateways(lambda _: version_in(n)), "evalsha", few),
    ]


def version_in(number: int) -> str:
    return f"{number + 3}.0"


def checks_of(fleet: Fleet) -> list[Load]:
    """Each beside what it is compared with."""
    event = json.loads(CHECK)

    def direct(_: int) -> Iterator[bytes]:
        for index in range(fleet.count):
            name = device_name(index)
            yield publish_request(f"event_report/{name}", CHECK, username=name)

    def one_child(_: int) -> Iterator[bytes]:
        for index in range(fleet.count):
            gateway, number = divmod(index, fleet.children)
            name = fleet.gateway(gateway)
            payload = json.dumps({"device": fleet.address(number), "event": event}).encode()
            yield publish_request(f"gateway_event_report/{name}", payload, username=name)

    def gateways(_: int) -> Iterator[bytes]:
        for gateway in range(fleet.gateways):
            name = fleet.gateway(gateway)
            said = [{"device": fleet.address(number), "event": event} for number in range(fleet.children)]
            yield publish_request(f"gateway_event_report/{name}", json.dumps(said).encode(), username=name)

    each = fleet.children
    return [
        Load("check, direct", 1, direct, "hget"),
        Load("check, one child a message", 1, one_child, "hmget"),
        Load(f"check, {each} a message", each, gateways, "hmget", (_GATEWAY_STREAMS, 1)),
    ]


def write_bodies(path: Path, bodies: Iterator[bytes]) -> int:
    count = 0
    with path.open("wb") as file:
        for body in bodies:
            file.write(len(body).to_bytes(4, "big") + body)
            count += 1
    return count


def measure(hook: Hook, redis: OwnRedis, load: Load, path: Path, program: Path) -> Measured:
    """Send every body once."""
    calls = len_of(path)
    generator = Generator(program, *load.streams)
    worker, used, before = Usage.of(hook.pid), Usage.of(redis.pid), asked_for(redis, load.asks)
    seen = generator.run(hook.port, path, calls=calls)
    asked = asked_for(redis, load.asks) - before
    devices = calls * load.devices_each
    if seen.failed or seen.other or seen.empty:
        sys.exit(f"{load.name}: {seen}")
    return Measured(
        seen,
        devices,
        (Usage.of(hook.pid) - worker).cpu / devices * 1e6,
        (Usage.of(redis.pid) - used).cpu / devices * 1e6,
        asked / calls,
    )


def len_of(path: Path) -> int:
    data, at, count = path.read_bytes(), 0, 0
    while at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        count += 1
    return count


def asked_for(redis: OwnRedis, command: str) -> int:
    """How often the command ran: from over the wire, and in scripts."""
    with Redis(port=redis.port) as client:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def look_at_answers(hook: Hook, fleet: Fleet) -> None:
    """Through a real gRPC client: a child's answer is the command that it must be."""
    with broker_of(hook) as broker:
        for index in range(0, fleet.count, max(fleet.count // 200, 1)):
            gateway, number = divmod(index, fleet.children)
            name = fleet.gateway(gateway)
            asked = {"device": fleet.address(number), "event": json.loads(CHECK)}
            response = broker.publish(f"gateway_event_report/{name}", json.dumps(asked).encode(), username=name)
            answer = ValuedResponse.FromString(response).message
            said = json.loads(answer.payload or b"null")
            if said is None:
                sys.exit(f"{fleet.child(index)} got no answer")
            offered = said["command"]["params"]["upgrade"]
            is_named = said["device"] == fleet.address(number) and said["id"] == said["command"]["id"]
            is_right = is_named and offered is (index % OFFER_EVERY == 0)
            if not is_right or answer.topic != f"gateway_command_send/{name}":
                sys.exit(f"{fleet.child(index)} got {answer.topic} {said}")


async def look_at_versions(redis: OwnRedis, fleet: Fleet, version: str) -> None:
    """Every child runs what its gateway said last."""
    client = connect_redis(redis.url)
    try:
        devices = RedisDevices(client, await open_layout(client, prefix=PREFIX))
        names = [fleet.child(index) for index in range(fleet.count)]
        for state in await devices.load_devices(names):
            if state is None or state.versions["version"].text != version:
                sys.exit(f"expected {version}, found {state}")
    finally:
        await client.aclose()


def summarise(loads: Sequence[Load], runs: dict[str, list[Measured]]) -> None:
    median = {name: statistics.median(run.worker_us for run in of) for name, of in runs.items()}
    say()
    say("medians, CPU of the worker per device (and of Redis):")
    direct = ""
    for load in loads:
        redis_us = statistics.median(run.redis_us for run in runs[load.name])
        if load.name.endswith("direct"):
            direct = load.name
        ratio = f"{median[load.name] / median[direct]:5.2f} × direct" if load.name != direct else ""
        say(f"  {load.name:38} {median[load.name]:7.2f} µs  ({redis_us:5.2f} µs)  {ratio}".rstrip())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, default=100)
    parser.add_argument("--children", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    fleet = Fleet(options.gateways, options.children)
    describe("gateway")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        program = compile_c("load_generator", folder, libraries=("-lm",))
        redis = stack.enter_context(run_redis(folder))
        mqtt_port = stack.enter_context(run_mosquitto(folder))
        asyncio.run(populate(redis, prefix=PREFIX, devices=fleet.count, firmware=100))
        keys = asyncio.run(_keys_of(redis))
        with Redis(port=redis.port) as client:
            before = int(client.info("memory")["used_memory"])
            write_children(redis, keys, fleet)
            used = int(client.info("memory")["used_memory"]) - before
        say(f"one worker on core {SERVER_CORE}; Redis, mosquitto and the load on core {LOAD_CORE}")
        say(
            f"{fleet.count:,} direct devices, {fleet.gateways:,} gateways with {fleet.children:,} children each:"
            f" {used / fleet.count:.0f} bytes of Redis per child"
        )
        environ = {"OTA_HOOK_MQTT_URL": f"mqtt://127.0.0.1:{mqtt_port}"}
        with run_hook(redis, folder, prefix=PREFIX, environ=environ) as hook:
            time.sleep(1)  # the publisher connects
            look_at_answers(hook, fleet)
            loads = [*checks_of(fleet), *reports_of(fleet)]
            runs: dict[str, list[Measured]] = {load.name: [] for load in loads}
            for some in (checks_of(fleet), reports_of(fleet)):
                for number in range(options.rounds + 1):  # the first round warms up
                    for load in some:
                        path = folder / "bodies"
                        write_bodies(path, load.bodies(number))
                        measured = measure(hook, redis, load, path, program)
                        if number:
                            runs[load.name].append(measured)
                            say(measured.describe(load))
            asyncio.run(look_at_versions(redis, fleet, version_in(options.rounds)))
        summarise(loads, runs)
    farewell()


async def _keys_of(redis: OwnRedis) -> Keys:
    client = connect_redis(redis.url)
    try:
        return await open_layout(client, prefix=PREFIX)
    finally:
        await client.aclose()


if __name__ == "__main__":
    main()
