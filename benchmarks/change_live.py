"""How long it takes until a change to the catalogue is in force on every node, while checks run.

    python -m benchmarks.change_live [--rate 30000] [--changes 20] [--listed 1000000]

Two nodes, each an `ota-hook hook` of its own, share the checks of a fleet; the adapter of the admin role changes the
catalogue. A change lasts from before it is written until each node answers a device according to it, asked again and
again through a real gRPC client. What the load's checks are answered, and how long they take, is looked at too: on two
cores Redis, the load and this script, which writes the long list, are in each other's way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks.broker_calls import CheckBodies, device_name, write_checks
from benchmarks.deployment import OFFER_EVERY, TYPE, Hook, OwnRedis, broker_of, plan_one, populate, run_hook, run_redis
from benchmarks.load import Generator, Seen, compile_c
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, describe, farewell, say
from ota_hook.exhook.exhook_pb2 import Message
from ota_hook.model import CatalogueChange, DocumentKind, Firmware
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.connection import connect_redis
from ota_hook.state.format import open_layout
from tests.e2e.service import Emqx

DEVICES = 100_000
FIRMWARE = (100, 10_000)
GOAL_S = 1.0
GOAL_LIST_S = 5.0
_LIVE_WITHIN_S = 30.0
_PROBE = device_name(1)  # it runs the latest: without the firmware that is switched it is told that nothing is newer
_PAUSE_S = 0.25


async def in_pieces(identifiers: Sequence[str]) -> AsyncIterator[list[str]]:
    for start in range(0, len(identifiers), 1_000):
        yield list(identifiers[start : start + 1_000])


class Load:
    """Checks on every node at a steady rate, beside what is done in its context."""

    def __init__(self, generator: Generator, nodes: Sequence[Hook], bodies: CheckBodies, rate: float) -> None:
        self._generator = generator
        self._nodes = nodes
        self._bodies = bodies
        self._rate = rate / len(nodes)
        self._runs: list[Future[Seen]] = []
        self._pool = ThreadPoolExecutor(len(nodes))

    def begin(self, seconds: float) -> None:
        calls = int(self._rate * seconds)
        self._runs = [
            self._pool.submit(self._generator.run, node.port, self._bodies.path, calls=calls, first=0, rate=self._rate)
            for node in self._nodes
        ]

    def check_is_on(self) -> None:
        if any(run.done() for run in self._runs):
            sys.exit("the load was over before the changes were: nothing is said of it; give a lower --changes")

    def end(self) -> None:
        for node, run in zip(self._nodes, self._runs, strict=True):
            seen = run.result()
            if seen.failed + seen.other + seen.empty:
                sys.exit(f"checks were answered wrongly meanwhile: {seen}")
            say(
                f"    node {node.port}: {seen.per_second:,.0f} checks/s, p50 {seen.p50_us / 1000:.2f} ms,"
                f" p99 {seen.p99_us / 1000:.2f} ms, p99.9 {seen.p999_us / 1000:.2f} ms, unanswered {seen.ignore}"
            )


def _ask_each(brokers: Sequence[Emqx]) -> list[Message | None]:
    return [broker.check(_PROBE) for broker in brokers]


async def change_until_live(
    catalogue: RedisCatalogue, firmware: Firmware, brokers: Sequence[Emqx], *, offered: bool
) -> float:
    """Write the firmware; the seconds until each node offers it to the probe, or no longer does."""
    began = time.monotonic()
    await catalogue.change(lambda _: [CatalogueChange(DocumentKind.FIRMWARE, firmware.id, firmware)])
    waiting = list(brokers)
    while waiting:
        if time.monotonic() - began > _LIVE_WITHIN_S:
            sys.exit(f"the change was not in force after {_LIVE_WITHIN_S:g} s")
        answers = await asyncio.to_thread(_ask_each, waiting)
        waiting = [
            broker
            for broker, answer in zip(waiting, answers, strict=True)
            if answer is None or (firmware.id.encode() in answer.payload) != offered
        ]
    return time.monotonic() - began


async def measure(
    catalogue: RedisCatalogue, brokers: Sequence[Emqx], load: Load, options: argparse.Namespace, *, with_list: bool
) -> None:
    name, _ = await catalogue.stage_device_list(in_pieces([_PROBE]))
    firmware = replace(plan_one("9.0.0"), device_list=name, enabled=False)
    await catalogue.change(lambda _: [CatalogueChange(DocumentKind.FIRMWARE, firmware.id, firmware)])
    load.begin(options.changes * (_PAUSE_S + 0.35) + 3)
    await asyncio.sleep(1)
    took = []
    for number in range(options.changes):
        firmware = replace(firmware, enabled=number % 2 == 0)
        took.append(await change_until_live(catalogue, firmware, brokers, offered=firmware.enabled))
        await asyncio.sleep(_PAUSE_S)
    load.check_is_on()
    say(
        f"    {options.changes} changes: median {statistics.median(took) * 1000:.0f} ms,"
        f" longest {max(took) * 1000:.0f} ms   goal ≤ {GOAL_S:g} s"
    )
    load.end()
    if with_list:
        load.begin(12)
        await asyncio.sleep(1)
        listed = [_PROBE, *(f"LISTED_{number:09}" for number in range(options.listed - 1))]
        began = time.monotonic()
        name, members = await catalogue.stage_device_list(in_pieces(listed))
        staged_s = time.monotonic() - began
        firmware = replace(firmware, device_list=name, enabled=True, version="9.1.0")
        live_s = await change_until_live(catalogue, firmware, brokers, offered=True)
        load.check_is_on()
        say(
            f"    a list of {len(members):,} devices: written in {staged_s:.2f} s, in force {live_s:.2f} s later;"
            f" {staged_s + live_s:.2f} s in all   goal ≤ {GOAL_LIST_S:g} s"
        )
        load.end()


async def run_all(options: argparse.Namespace, folder: Path, redis: OwnRedis) -> None:
    generator = Generator(compile_c("load_generator", folder, libraries=("-lm",)), options.connections, options.streams)
    with contextlib.ExitStack() as stack:
        for count in FIRMWARE:
            prefix = f"live{count}"
            await populate(redis, prefix=prefix, devices=DEVICES, firmware=count)
            client = connect_redis(redis.url)
            catalogue = RedisCatalogue(client, await open_layout(client, prefix=prefix))
            await catalogue.start()
            nodes = [stack.enter_context(run_hook(redis, folder, prefix=prefix)) for _ in range(2)]
            brokers = [stack.enter_context(broker_of(node)) for node in nodes]
            bodies = write_checks(folder / prefix, list(range(DEVICES)), offer_every=OFFER_EVERY)
            say(f"  {count:,} firmware of the type {TYPE!r}:")
            load = Load(generator, nodes, bodies, options.rate)
            await measure(catalogue, brokers, load, options, with_list=count == FIRMWARE[0])
            await catalogue.close()
            await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=30_000, help="checks a second, over both nodes")
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--listed", type=int, default=1_000_000, help="devices on the long list")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=32, help="calls under way per connection, at most")
    options = parser.parse_args()
    describe("change_live")
    say(
        f"two nodes on core {SERVER_CORE}; Redis, the load and this script on core {LOAD_CORE};"
        f" {options.rate:,.0f} checks/s over {DEVICES:,} devices"
    )
    with tempfile.TemporaryDirectory() as name, run_redis(Path(name)) as redis:
        asyncio.run(run_all(options, Path(name), redis))
    farewell()


if __name__ == "__main__":
    main()
