"""What a check costs with everything real: gRPC, identity, rules, matching, Redis, and the offers' writes.

    python -m benchmarks.check [--devices 1000000] [--firmware 100] [--calls 200000] [--rounds 3] [--grpcio-calls 20000]

A Redis of its own, a fleet in it, and `ota-hook hook` with one worker on a core of its own; Redis and the load share
the other. One check in ten is answered with an offer, which is written down; each device asks once before any asks
again. The native listener and grpcio serve the same data in turn. Answers are looked at through a real gRPC client
first, and every answer under load is counted by its kind and held against what it must be.

`--pause` waits before each run until Enter is pressed, and says the worker's process id: for a profiler.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from benchmarks.broker_calls import CheckBodies, device_name, write_checks
from benchmarks.deployment import (
    LATEST,
    OFFER_EVERY,
    Hook,
    OwnRedis,
    broker_of,
    populate,
    run_hook,
    run_redis,
)
from benchmarks.load import Generator, Seen, compile_c
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, Usage, describe, farewell, say
from ota_hook.model import Firmware

PREFIX = "check"
_LOOKED_AT = 200
_UNANSWERED_MAX = 0.05
"""A larger share of calls that ran out of their budget is no measurement of checks."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: what the load saw, and what the two servers used meanwhile."""

    seen: Seen
    worker: Usage
    redis: Usage

    @property
    def worker_us(self) -> float:
        return self.worker.cpu / self.seen.calls * 1e6

    @property
    def redis_us(self) -> float:
        return self.redis.cpu / self.seen.calls * 1e6

    def describe(self) -> str:
        seen = self.seen
        offered = seen.upgrade / seen.calls
        return (
            f"{seen.per_second:9,.0f}/s  worker {self.worker_us:6.2f} µs  Redis {self.redis_us:5.2f} µs"
            f"  p50 {seen.p50_us / 1000:6.2f} ms  p99 {seen.p99_us / 1000:6.2f} ms  p99.9 {seen.p999_us / 1000:6.2f} ms"
            f"  offers {offered:5.1%}  unanswered {seen.ignore}"
            f"  waited {self.worker.waited / seen.seconds:4.0%}"
        )


class Checks:
    """The checks of one run of the script: each goes on where the last one stopped."""

    def __init__(self, redis: OwnRedis, bodies: CheckBodies, generator: Generator) -> None:
        self._redis = redis
        self._bodies = bodies
        self._generator = generator
        self.made = 0

    def measure(self, hook: Hook, *, calls: int, rate: float = 0.0, warming: bool = False) -> Measured:
        """Make the calls and hold the answers against what they must be; ends the script where they differ."""
        worker, redis = Usage.of(hook.pid), Usage.of(self._redis.pid)
        seen = self._generator.run(hook.port, self._bodies.path, calls=calls, first=self.made, rate=rate)
        measured = Measured(seen, Usage.of(hook.pid) - worker, Usage.of(self._redis.pid) - redis)
        offers = self._bodies.offers_in(self.made, calls)
        self.made += calls
        wrong = seen.other + seen.empty + seen.failed
        is_right = seen.upgrade <= offers and seen.no_upgrade <= calls - offers
        if wrong or not is_right or (seen.ignore > calls * _UNANSWERED_MAX and not warming):
            sys.exit(f"expected {offers} offers among {calls} checks, got {seen}")
        return measured


def look_at_answers(hook: Hook, firmware: Firmware, devices: int) -> None:
    """Through a real gRPC client: each answer is exactly the command that it must be. Ends the script otherwise."""
    with broker_of(hook) as broker:
        for index in range(0, devices, max(devices // _LOOKED_AT, 1)):
            name = device_name(index)
            command = broker.check(name)
            if command is None:
                sys.exit(f"{name} got no answer")
            said = json.loads(command.payload)
            params: dict[str, object] = {"module": "main", "upgrade": False}
            if index % OFFER_EVERY == 0:
                package = firmware.package
                url = f"http://ota.example.com/firmware/{firmware.id}/{package.filename}"
                params |= {"upgrade": True, "version": LATEST, "url": url}
                params |= {"size": package.size_bytes, "md5": package.md5}
            expected = {"method": "otaUpgrade", "params": params, "command_name": "OTA升级", "id": said["id"]}
            if said != expected or command.topic != f"command_send/{name}":
                sys.exit(f"{name} got {command.topic} {said}, and not {expected}")
        if broker.check("DU_UNKNOWN") is not None:
            sys.exit("a device that nobody registered got an answer")
        stranger = broker.publish(f"event_report/{device_name(0)}", b'{"method": "otaCheck"}', username=device_name(1))
        if stranger != b"\x08\x01":
            sys.exit("a device that speaks for another got an answer")


def look_at_writes(redis: OwnRedis, firmware: Firmware, offered: int) -> None:
    """The offers made under load are in Redis: as many as devices were offered the firmware."""
    with Redis(port=redis.port) as client:
        counted = int(client.hget(f"{PREFIX}:{{{firmware.id}}}:n", "offered") or 0)
    share = counted / offered if offered else 1.0
    say(f"offers in Redis: {counted:,} of {offered:,} devices that were told of one")
    if not 1 - _UNANSWERED_MAX <= share <= 1 + _UNANSWERED_MAX:
        sys.exit("the offers' writes are not there: the measurement says nothing")


@contextlib.contextmanager
def laid_out(folder: Path, devices: int, firmware: int) -> Iterator[tuple[OwnRedis, CheckBodies, Firmware]]:
    """A Redis with catalogue and fleet, and a check of each device."""
    with run_redis(folder) as redis:
        with Redis(port=redis.port) as client:
            empty = int(client.info("memory")["used_memory"])
            offered = asyncio.run(populate(redis, prefix=PREFIX, devices=devices, firmware=firmware))
            filled = int(client.info("memory")["used_memory"])
        say(
            f"{devices:,} devices (one in {OFFER_EVERY} runs an old version) and {firmware:,} firmware in Redis"
            f" {redis.version}, {redis.durability}: {(filled - empty) / devices:.0f} bytes per device"
        )
        bodies = write_checks(folder / "checks", list(range(devices)), offer_every=OFFER_EVERY)
        yield redis, bodies, offered


def wait_for_enter(hook: Hook, *, is_wanted: bool) -> None:
    if is_wanted:
        say(f"the worker is process {hook.pid}; press Enter")
        sys.stdin.readline()


def measure_native(checks: Checks, hook: Hook, options: argparse.Namespace) -> tuple[list[Measured], list[Measured]]:
    """At full load, then at half of what that gave."""
    checks.measure(hook, calls=options.calls // 10, warming=True)
    full = []
    for _ in range(options.rounds):
        wait_for_enter(hook, is_wanted=options.pause)
        full.append(checks.measure(hook, calls=options.calls))
        say(f"  native, full load   {full[-1].describe()}")
    rate = statistics.median(run.seen.per_second for run in full) / 2
    half = []
    for _ in range(options.rounds):
        half.append(checks.measure(hook, calls=options.calls // 2, rate=rate))
        say(f"  native, half load   {half[-1].describe()}")
    return full, half


def measure_grpcio(checks: Checks, hook: Hook, options: argparse.Namespace) -> list[Measured]:
    checks.measure(hook, calls=options.grpcio_calls // 10, warming=True)
    full = []
    for _ in range(options.rounds):
        full.append(checks.measure(hook, calls=options.grpcio_calls))
        say(f"  grpcio, full load   {full[-1].describe()}")
    return full


def summarise(native: list[Measured], half: list[Measured], grpcio: list[Measured]) -> None:
    """Medians, and the ratios against the goals."""
    native_us = statistics.median(run.worker_us for run in native)
    grpcio_us = statistics.median(run.worker_us for run in grpcio)
    lines = [
        ("CPU per check, native", f"{native_us:.2f} µs", "≤ 15 µs"),
        ("checks per second of one core's CPU", f"{1e6 / native_us:,.0f}", "≥ 50,000"),
        ("checks per second of wall time", f"{statistics.median(run.seen.per_second for run in native):,.0f}", ""),
        ("Redis CPU per check", f"{statistics.median(run.redis_us for run in native):.2f} µs", ""),
        ("p99 at half load", f"{statistics.median(run.seen.p99_us for run in half) / 1000:.2f} ms", "≤ 5 ms"),
        ("CPU per check, grpcio", f"{grpcio_us:.2f} µs", ""),
        ("ratio grpcio / native", f"{grpcio_us / native_us:.1f}", ""),
    ]
    say()
    say("medians:")
    for what, value, goal in lines:
        say(f"  {what:36} {value:>12}   {goal and 'goal ' + goal}".rstrip())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--firmware", type=int, default=100)
    parser.add_argument("--calls", type=int, default=200_000, help="per round; half of it at half load")
    parser.add_argument("--grpcio-calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=32, help="calls under way per connection")
    parser.add_argument("--pause", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    describe("check")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = compile_c("load_generator", folder, libraries=("-lm",))
        generator = Generator(program, options.connections, options.streams)
        say(
            f"one worker on core {SERVER_CORE}; Redis and the load on core {LOAD_CORE}:"
            f" {options.connections} connections × {options.streams} calls"
        )
        with laid_out(folder, options.devices, options.firmware) as (redis, bodies, firmware):
            checks = Checks(redis, bodies, generator)
            with run_hook(redis, folder, prefix=PREFIX) as hook:
                look_at_answers(hook, firmware, options.devices)
                native, half = measure_native(checks, hook, options)
            with run_hook(redis, folder, prefix=PREFIX, transport="grpcio") as hook:
                look_at_answers(hook, firmware, options.devices)
                grpcio = measure_grpcio(checks, hook, options)
            if checks.made <= options.devices:
                looked_at = sum(
                    index % OFFER_EVERY == 0
                    for index in range(0, options.devices, max(options.devices // _LOOKED_AT, 1))
                )
                offered = bodies.offers_in(0, checks.made)
                look_at_writes(redis, firmware, offered + looked_at)
            else:
                look_at_writes(redis, firmware, bodies.offers_in(0, options.devices))
    summarise(native, half, grpcio)
    farewell()


if __name__ == "__main__":
    main()
