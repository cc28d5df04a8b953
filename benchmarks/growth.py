"""Whether a check costs more where there are more devices, or more firmware.

    python -m benchmarks.growth [--calls 100000] [--rounds 5]

A deployment per size under a Redis prefix of its own, each with its own `ota-hook hook`, all ready at once; they are
measured in turn, round after round, so that what else the machine does meets each of them. Checks go over all devices
of their deployment, in an order that has nothing to do with where they are stored. One in ten is answered with an offer
and writes it; every such device was told once before, so that all sizes do the same work. CPU is the worker's; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.broker_calls import CheckBodies, write_checks
from benchmarks.check import Checks, Measured, look_at_answers
from benchmarks.deployment import OFFER_EVERY, Hook, OwnRedis, populate, run_hook, run_redis
from benchmarks.load import Generator, compile_c
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, describe, farewell, say

DEVICES = (1_000, 10_000, 100_000, 1_000_000)
FIRMWARE = (10, 100, 1_000, 10_000)
GOAL = 1.3
_FEW_FIRMWARE = 100
_FEW_DEVICES = 100_000


@dataclass
class Size:
    """One deployment, ready, and what was measured of it."""

    devices: int
    firmware: int
    hook: Hook
    checks: Checks
    measured: list[Measured] = field(default_factory=list)

    @property
    def worker_us(self) -> float:
        return statistics.median(run.worker_us for run in self.measured)

    def describe(self) -> str:
        costs = ", ".join(f"{run.worker_us:.2f}" for run in self.measured)
        redis_us = statistics.median(run.redis_us for run in self.measured)
        return (
            f"  {self.devices:9,} devices {self.firmware:7,} firmware   worker {self.worker_us:6.2f} µs"
            f"   Redis {redis_us:5.2f} µs   (worker, rounds: {costs})"
        )


def make_ready(
    stack: contextlib.ExitStack, redis: OwnRedis, folder: Path, generator: Generator, size: tuple[int, int]
) -> Size:
    devices, firmware = size
    prefix = f"d{devices}f{firmware}"
    offered = asyncio.run(populate(redis, prefix=prefix, devices=devices, firmware=firmware))
    hook = stack.enter_context(run_hook(redis, folder, prefix=prefix))
    look_at_answers(hook, offered, devices)
    olds = write_checks(folder / f"{prefix}-offers", list(range(0, devices, OFFER_EVERY)), offer_every=OFFER_EVERY)
    Checks(redis, olds, generator).measure(hook, calls=len(olds.is_offer), warming=True)
    bodies: CheckBodies = write_checks(folder / prefix, list(range(devices)), offer_every=OFFER_EVERY)
    return Size(devices, firmware, hook, Checks(redis, bodies, generator))


def measure_in_turn(sizes: Sequence[Size], calls: int, rounds: int) -> None:
    for _ in range(rounds):
        for size in sizes:
            size.measured.append(size.checks.measure(size.hook, calls=calls))


def summarise(what: str, sizes: Sequence[Size]) -> None:
    say()
    say(f"{what}:")
    for size in sizes:
        say(size.describe())
    say(f"  largest / smallest   {sizes[-1].worker_us / sizes[0].worker_us:5.2f}   goal ≤ {GOAL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="per size and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=32, help="calls under way per connection")
    options = parser.parse_args()
    if options.rounds < 1:
        sys.exit("--rounds must be at least 1")
    describe("growth")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        program = compile_c("load_generator", folder, libraries=("-lm",))
        generator = Generator(program, options.connections, options.streams)
        redis = stack.enter_context(run_redis(folder))
        say(
            f"workers on core {SERVER_CORE}; Redis {redis.version} ({redis.durability}) and the load on core"
            f" {LOAD_CORE}: {options.connections} connections × {options.streams} calls"
        )
        by_devices = [(devices, _FEW_FIRMWARE) for devices in DEVICES]
        by_firmware = [(_FEW_DEVICES, firmware) for firmware in FIRMWARE]
        ready = {
            size: make_ready(stack, redis, folder, generator, size) for size in dict.fromkeys(by_devices + by_firmware)
        }
        measure_in_turn(list(ready.values()), options.calls, options.rounds)
        summarise("more devices", [ready[size] for size in by_devices])
        summarise("more firmware", [ready[size] for size in by_firmware])
    farewell()


if __name__ == "__main__":
    main()
