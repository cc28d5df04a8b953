"""What matching costs, apart from Redis and gRPC, beside a matcher in plain Python.

    python -m benchmarks.matching [--devices 1000000] [--asked 200000] [--rounds 5]

The mix of a match: 10,000 firmware of one (type, module), 16 of them (eight, where there are ten in all) with tags or a
percentage and all of these above what everyone may get, deltas, short lists, and a million listed devices; half of
those who ask run something old. The mix of a fleet: the same, one device in ten has something newer, in buckets as
Redis packs them. Answers are compared with the plain matcher's first. CPU time of this process; medians of the rounds.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.catalogues import LATEST, SEED, TYPE, asked, compiled_entries, fleet, packed_buckets, plan_catalogue
from benchmarks.plain_matcher import PlainFirmware, PlainMatcher
from benchmarks.surroundings import describe, farewell, say
from ota_hook._device_set import DeviceGroups, DeviceSet
from ota_hook._matcher import FirmwareIndex
from ota_hook._packed import VersionCounter

SIZES = (10, 100, 1_000, 10_000)
_PLAIN_SHARE = 20
"""The plain matcher is asked for one in so many: it takes that much longer."""


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """The median."""
    taken = []
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def line(what: str, value: str, beside: str = "", goal: str = "") -> None:
    say(f"  {what:58} {value:>14}   {beside:34} {goal and 'goal ' + goal}".rstrip())


def compare(index: FirmwareIndex, plain: PlainMatcher, questions: list[tuple[str, str]]) -> None:
    """End the script where the two differ."""
    for identifier, current in questions:
        expected = plain.resolve(identifier, current)
        if index.resolve(identifier, current) != expected:
            sys.exit(f"{identifier} at {current}: {index.resolve(identifier, current)}, and not {expected}")


def time_one(planned: dict[int, list[PlainFirmware]], questions: list[tuple[str, str]], rounds: int) -> None:
    say("one match, from Python, with the call:")
    costs = {}

    def ask(matcher: FirmwareIndex | PlainMatcher, several: list[tuple[str, str]]) -> None:
        resolve = matcher.resolve
        for identifier, current in several:
            resolve(identifier, current)

    few = questions[: len(questions) // _PLAIN_SHARE]
    indices = {count: FirmwareIndex("auto", compiled_entries(firmware)) for count, firmware in planned.items()}
    plains = {count: PlainMatcher(firmware) for count, firmware in planned.items()}
    for count, index in indices.items():
        compare(index, plains[count], few)
    # In turn, round after round, so that what else the machine does meets each size.
    taken: dict[int, list[float]] = {count: [] for count in indices}
    for _ in range(rounds):
        for count, index in indices.items():
            taken[count].append(cpu_seconds(partial(ask, index, questions), 1) / len(questions) * 1e6)
    for count, plain in plains.items():
        costs[count] = statistics.median(taken[count])
        beside = cpu_seconds(partial(ask, plain, few), 1) / len(few) * 1e6
        line(
            f"{count:,} firmware, a million listed devices",
            f"{costs[count]:.3f} µs",
            f"plain Python {beside:.2f} µs ({beside / costs[count]:.0f} ×)",
            "≤ 0.5 µs",
        )
    line("10,000 firmware / 10 firmware", f"{costs[SIZES[-1]] / costs[SIZES[0]]:.2f} ×", "", "flat")


def time_many(firmware: list[PlainFirmware], devices: int, rounds: int) -> None:
    say()
    say(f"a fleet of {devices:,} devices, in buckets of 16:")
    buckets = packed_buckets(devices)
    few = dict(fleet(devices // _PLAIN_SHARE))
    for what, mix in (
        ("bulk match, the mix above", firmware),
        ("bulk match, one firmware for everyone", [PlainFirmware("EVERYONE", LATEST)]),
    ):
        index, plain = FirmwareIndex("auto", compiled_entries(mix)), PlainMatcher(mix)
        found = [
            tuple(match) for bucket in packed_buckets(len(few)) for match in index.resolve_many(bucket, TYPE, "version")
        ]
        if found != plain.resolve_many(few):
            sys.exit("the compiled bulk match and the plain one differ")
        taken = cpu_seconds(lambda i=index: [i.resolve_many(bucket, TYPE, "version") for bucket in buckets], rounds)  # type: ignore[misc]
        beside = cpu_seconds(lambda p=plain: p.resolve_many(few), rounds) * devices / len(few)  # type: ignore[misc]
        line(
            what,
            f"{devices / taken / 1e6:.2f} M/s",
            f"plain Python {devices / beside / 1e6:.2f} M/s ({beside / taken:.0f} ×)",
            "≥ 3 M/s",
        )
    counter = VersionCounter(TYPE, "version")
    for bucket in buckets:
        counter.add(bucket)
    if counter.devices != devices or sum(counter.counts().values()) != devices:
        sys.exit("the counter counts otherwise")

    def count() -> None:
        counter = VersionCounter(TYPE, "version")
        for bucket in buckets:
            counter.add(bucket)

    taken = cpu_seconds(count, rounds)
    line("version distribution", f"{devices / taken / 1e6:.2f} M/s")


def time_building(planned: list[PlainFirmware], rounds: int) -> None:
    say()
    say("building:")
    apart = [one for one in planned if one.devices is None]
    apart += [PlainFirmware(f"MORE{number:05}", f"1.{number}") for number in range(len(planned) - len(apart))]
    entries = compiled_entries(apart)
    fresh = [e._replace(version=f"{e.version}.{n}") for n in range(rounds) for e in entries]  # no key is remembered
    batches = iter([fresh[n * len(entries) : (n + 1) * len(entries)] for n in range(rounds)])
    taken = cpu_seconds(lambda: FirmwareIndex("auto", next(batches)), rounds)
    beside = cpu_seconds(lambda: PlainMatcher(apart), rounds)
    line(
        f"index of {len(apart):,} firmware, lists apart",
        f"{taken * 1e3:.1f} ms",
        f"plain Python {beside * 1e3:.1f} ms ({beside / taken:.1f} ×)",
        "≤ 200 ms",
    )
    listed = compiled_entries(planned)
    first = FirmwareIndex("auto", listed)
    taken = cpu_seconds(lambda: FirmwareIndex("auto", listed), rounds)
    line("the mix above, a million listed devices with it", f"{taken * 1e3:.1f} ms")
    taken = cpu_seconds(lambda: first.with_changes([listed[0]._replace(enabled=False)]), rounds)
    line("after an edit that changes no list", f"{taken * 1e3:.1f} ms")
    names = [identifier for one in planned if one.id == "LISTED" for identifier in one.devices or ()]
    taken = cpu_seconds(lambda: DeviceSet.of(names, seed=SEED), 1)
    line("a million identifiers into a list", f"{taken * 1e3:.0f} ms")
    digests = DeviceSet.of(names, seed=SEED).digests()
    taken = cpu_seconds(lambda: DeviceSet(SEED, digests), rounds)
    line("a list of a million from its digests", f"{taken * 1e3:.1f} ms")
    listed_set = DeviceSet(SEED, digests)
    strings = sys.getsizeof(set(names)) + sum(map(sys.getsizeof, names))
    for what, held in (
        ("its memory", sys.getsizeof(listed_set)),
        ("that of the table of a module with it", sys.getsizeof(DeviceGroups((listed_set,), seed=SEED))),
        ("that of a Python set of the same names", strings),
    ):
        line(what, f"{held / len(names):.0f} bytes", "for each device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--asked", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    describe("matching")
    planned = {count: plan_catalogue(count, options.devices) for count in SIZES}
    gc.freeze()  # a million names for the plain matcher: the collector need not look at them
    time_one(planned, asked(2 * options.devices, options.asked), options.rounds)
    time_many(planned[SIZES[-1]], options.devices, options.rounds)
    time_building(planned[SIZES[-1]], options.rounds)
    farewell()


if __name__ == "__main__":
    main()
