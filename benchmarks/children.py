"""What children cost Redis: their memory, and a gateway's report of many of them at once.

    python -m benchmarks.children [--children 100000]

As many children behind few large gateways and behind many small ones, beside as many direct devices; each deployment
has a bucket for fifteen devices, as one of a million has. The reports are the hook's own script, beside one script for
each child; what is stored is looked at before a figure is said of it. µs are those that Redis counts for its scripts,
the least of some rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.deployment import run_redis
from benchmarks.surroundings import LOAD_CORE, describe, farewell, say
from ota_hook.model import ChildForm, Family
from ota_hook.ports.device_messages import ChildrenReported, Report
from ota_hook.ports.devices import DeviceEntry
from ota_hook.state.child_scripts import STORE_CHILDREN, store_children_call
from ota_hook.state.connection import Call, Script, connect_redis
from ota_hook.state.device_scripts import REPORT
from ota_hook.state.devices import DEFAULT_REFRESH_MS, RedisDevices, keepers_by_attribute, report_arguments
from ota_hook.state.format import open_layout
from ota_hook.state.keys import Keys

PER_GATEWAY = (5, 50, 500, 600, 5_000)
"""Up to 512 devices of a bucket stay in Redis's compact encoding."""
REPORTED = (1, 10, 100, 500)
_DEVICES_A_BUCKET = 15
_ROUNDS = 15
_BATCH = 500
_VERSION = "V2.0.0_B12"
_KEEPERS = keepers_by_attribute({"gateway": frozenset({"version"}), "sensor": frozenset({"version"})})
_FORM = ChildForm(Family.GATEWAY, as_list=False)


def gateway_name(number: int) -> str:
    return f"DU_{number:0>13}"


def child_names(gateway: str, count: int) -> list[str]:
    return [f"{gateway}/{address:08X}" for address in range(count)]


# ---- memory


async def _fill(url: str, prefix: str, devices: Sequence[str]) -> Keys:
    """A deployment with these devices."""
    client = connect_redis(url)
    try:
        keys = await open_layout(client, prefix=prefix, buckets=max(1, len(devices) // _DEVICES_A_BUCKET))
        run = await RedisDevices(client, keys).begin_import()
        for start in range(0, len(devices), _BATCH):
            await run.write(
                [DeviceEntry(name, "sensor", {"version": _VERSION}) for name in devices[start : start + _BATCH]]
            )
        return keys
    finally:
        await client.aclose()


def measure_memory(client: Redis, url: str, children: int) -> dict[int, Keys]:
    """The deployments, by the number of children of each gateway."""
    say(f"Redis memory of {children:,} devices with one version, those of gateways besides:")
    deployments = {}
    for per_gateway in (0, *PER_GATEWAY):
        gateways = [gateway_name(number) for number in range(children // per_gateway if per_gateway else children)]
        devices = [name for gateway in gateways for name in (gateway, *child_names(gateway, per_gateway))]
        before = _memory(client)
        deployments[per_gateway] = asyncio.run(_fill(url, f"c{per_gateway}", devices))
        used = (_memory(client) - before) / len(devices)
        what = f"{len(gateways):,} gateways × {per_gateway:,}" if per_gateway else "direct devices"
        keys = deployments[per_gateway]
        encoding = str(client.object("encoding", keys.devices(keys.bucket_of(gateways[0]))), "ascii")
        say(f"  {what:28} {used:6.1f} bytes a device   ({encoding})")
    return deployments


def _memory(client: Redis) -> int:
    memory: Mapping[str, Any] = client.info("memory")
    return int(memory["used_memory"])


# ---- reports


def measure_reports(client: Redis, deployments: Mapping[int, Keys]) -> None:
    say("a report of some children of one gateway, µs of Redis (one script | one for each child):")
    for per_gateway, keys in deployments.items():
        if per_gateway < max(REPORTED):
            continue
        gateway = gateway_name(0)
        names = child_names(gateway, per_gateway)
        for count in REPORTED:
            some = names[:: per_gateway // count][:count]
            for what, spelled in (("nothing is new", "{version}"), ("all is new", "{version}.{round}")):
                together = [_together(keys, gateway, some, spelled, number) for number in range(_ROUNDS)]
                alone = [_alone(keys, some, spelled, number) for number in range(_ROUNDS)]
                costs = [
                    min(_cost_us(client, script, calls) for calls in rounds)
                    for script, rounds in ((STORE_CHILDREN, together), (REPORT, alone))
                ]
                say(f"  {count:4} of {per_gateway:,}, {what:15} {costs[0]:6} | {costs[1]:6}")


def _spell(spelled: str, number: int) -> str:
    return spelled.format(version=_VERSION, round=number % 2)


def _together(keys: Keys, gateway: str, names: Sequence[str], spelled: str, number: int) -> list[Call]:
    versions = {name: {"version": _spell(spelled, number)} for name in names}
    forms = dict.fromkeys(names, _FORM)
    report = ChildrenReported(gateway=gateway, versions=versions, forms=forms, reported_at_ms=1)
    return [store_children_call(keys, report, _KEEPERS, refresh_ms=DEFAULT_REFRESH_MS)]


def _alone(keys: Keys, names: Sequence[str], spelled: str, number: int) -> list[Call]:
    calls: list[Call] = []
    for name in names:
        bucket = keys.bucket_of(name)
        report = Report(device=name, versions={"version": _spell(spelled, number)}, reported_at_ms=1)
        touched = (keys.devices(bucket), keys.long_devices(bucket), keys.offers(bucket))
        calls.append((touched, report_arguments(report, _KEEPERS, DEFAULT_REFRESH_MS)))
    return calls


def _cost_us(client: Redis, script: Script, calls: Sequence[Call]) -> int:
    """Of all of them, by Redis's own count."""
    client.script_load(script.text)
    client.config_resetstat()
    pipeline = client.pipeline(transaction=False)
    for keys, arguments in calls:
        pipeline.evalsha(script.sha, len(keys), *keys, *arguments)
    answers = pipeline.execute()
    stored = answers[0][1] if script is STORE_CHILDREN else sum(answer is not None for answer in answers)
    wanted = (len(calls[0][1]) - 7) // 3 if script is STORE_CHILDREN else len(calls)
    if stored != wanted:
        sys.exit(f"{stored} children were stored, and it should be {wanted}: the figures would mean nothing")
    statistics: Mapping[str, Any] = client.info("commandstats")
    return int(statistics["cmdstat_evalsha"]["usec"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=100_000)
    options = parser.parse_args()
    if options.children < max(PER_GATEWAY):
        sys.exit(f"--children must be at least {max(PER_GATEWAY)}")
    describe("children")
    with tempfile.TemporaryDirectory() as name, run_redis(Path(name)) as redis:
        say(f"Redis {redis.version} ({redis.durability}) on core {LOAD_CORE}")
        say()
        with Redis(port=redis.port) as client:
            deployments = measure_memory(client, redis.url, options.children)
            measure_reports(client, deployments)
    farewell()


if __name__ == "__main__":
    main()
