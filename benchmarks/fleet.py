"""What an operator does with a whole fleet: import, export, scan, count of versions, and what a device takes of Redis.

    python -m benchmarks.fleet [--devices 1000000]

A real `ota-hook admin` on one core; its Redis and this client on the other. One device in twenty has a version over 64
bytes, one in ten has tags. The fleet goes in as NDJSON and as CSV, and what comes out is compared with what went in,
line by line and in any order, before a figure is said of it. Seconds are those on the wall, and depend on who else uses
the machine; CPU is what the books of the system say of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import io
import itertools
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash
from redis import Redis

from benchmarks.deployment import OwnRedis, run_redis, wait_for_port
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, Usage, describe, farewell, on_core, say
from ota_hook.api_client import NDJSON, ApiClient
from ota_hook.state.connection import connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.format import open_layout
from tests.e2e.service import clean_environment
from tests.held_ports import free_port

TYPE = "smart_meter"
CSV = "text/csv"
GOAL_IMPORT_S = 60
GOAL_RSS_MB = 300
GOAL_LIST_S = 5
GOAL_BYTES = 100
LONG_EVERY = 20
TAGGED_EVERY = 10
_TOKEN = "b" * 40
_LINES_A_CHUNK = 1_000
_LONG = "V1.0.0-" + "build" * 13
_SAMPLED = 1_000


# ---- the fleet


def device(index: int) -> tuple[str, str, list[str]]:
    """Identifier, version and tags of a device: 1,000 short versions, the first ones the most common."""
    if index % LONG_EVERY == 0:
        version = f"{_LONG}.{index // LONG_EVERY % 10}"
    else:
        version = f"V2.{index * index % 997 % 100}.{index % 10}"
    tags = ["trial", f"上海-{index // TAGGED_EVERY % 20}"] if index % TAGGED_EVERY == 1 else []
    return f"DU_{index:0>13}", version, tags


def as_ndjson(devices: int) -> Iterator[bytes]:
    """The fleet in chunks of lines, spelled as an export spells them."""
    for start in range(0, devices, _LINES_A_CHUNK):
        lines = (_json_line(index) for index in range(start, min(devices, start + _LINES_A_CHUNK)))
        yield b"".join(lines)


def _json_line(index: int) -> bytes:
    identifier, version, tags = device(index)
    line = {"identifier": identifier, "type": TYPE, "versions": {"version": version}, "tags": tags}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def as_csv(devices: int) -> Iterator[bytes]:
    """The same as CSV."""
    yield b"identifier,type,tags,versions.version\r\n"
    for start in range(0, devices, _LINES_A_CHUNK):
        text = io.StringIO(newline="")
        rows = map(device, range(start, min(devices, start + _LINES_A_CHUNK)))
        csv.writer(text).writerows((name, TYPE, " ".join(tags), version) for name, version, tags in rows)
        yield text.getvalue().encode()


class LineSum:
    """A sum over lines that does not depend on their order: two fleets with equal sums are equal."""

    def __init__(self) -> None:
        self.lines = self.bytes = self.total = 0
        self._rest = b""

    def add(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self.lines += len(lines)
        self.bytes += len(chunk)
        self.total += sum(map(xxhash.xxh3_128_intdigest, lines))

    @classmethod
    def of(cls, chunks: Iterable[bytes]) -> LineSum:
        found = cls()
        for chunk in chunks:
            found.add(chunk)
        return found

    def same_as(self, other: LineSum) -> bool:
        return (self.lines, self.bytes, self.total) == (other.lines, other.bytes, other.total)


# ---- measuring


@dataclass(frozen=True, slots=True)
class Admin:
    """One `ota-hook admin` process and the Redis behind it."""

    port: int
    pid: int
    redis: OwnRedis

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def peak_rss_mb(self) -> float:
        """The most memory that the process had so far."""
        return _status_kib(self.pid, "VmHWM") / 1024


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def run_admin(redis: OwnRedis, folder: Path) -> Iterator[Admin]:
    port = free_port()
    environ = clean_environment(
        OTA_HOOK_DATA_DIR=str(folder / "data"),
        OTA_HOOK_ADMIN_LISTEN=f"127.0.0.1:{port}",
        OTA_HOOK_ADMIN_TOKEN=_TOKEN,
        OTA_HOOK_REDIS_URL=redis.url,
    )
    with (folder / "admin.log").open("wb") as log:
        command = on_core(SERVER_CORE, [sys.executable, "-m", "ota_hook", "admin"])
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)  # noqa: S603
    try:
        wait_for_port(port, process)
        yield Admin(port, process.pid, redis)
    finally:
        process.terminate()
        process.wait(60)


@dataclass(slots=True)
class Cost:
    """What something cost, on the wall and of the processes."""

    seconds: float
    admin_s: float
    redis_s: float

    def describe(self, what: str) -> str:
        return f"  {what:28} {self.seconds:6.1f} s   CPU: admin {self.admin_s:5.1f} s, Redis {self.redis_s:5.1f} s"


def measured(admin: Admin, work: Callable[[], Any]) -> tuple[Any, Cost]:
    before = Usage.of(admin.pid), Usage.of(admin.redis.pid)
    began = time.monotonic()
    result = work()
    seconds = time.monotonic() - began
    spent = Usage.of(admin.pid) - before[0], Usage.of(admin.redis.pid) - before[1]
    return result, Cost(seconds, spent[0].cpu, spent[1].cpu)


def expect(what: str, *, found: object, wanted: object) -> None:
    if found != wanted:
        sys.exit(f"{what}: {found!r}, and it should be {wanted!r}: the figures would mean nothing")


# ---- the parts


def import_fleet(admin: Admin, api: ApiClient, devices: int) -> None:
    say(f"import of {devices:,} devices (goals: {GOAL_IMPORT_S} s, {GOAL_RSS_MB} MB):")
    chunk = next(as_ndjson(devices))
    expect("a dry run", found=_counts(api, [chunk], NDJSON, dry_run=True), wanted=(min(devices, _LINES_A_CHUNK), 0, 0))
    for what, media_type, chunks, wanted in (
        ("NDJSON, all new", NDJSON, as_ndjson, (devices, 0, 0)),
        ("the same again", NDJSON, as_ndjson, (0, devices, 0)),
        ("the same as CSV", CSV, as_csv, (0, devices, 0)),
    ):
        found, cost = measured(admin, lambda: _counts(api, chunks(devices), media_type))  # noqa: B023 - called at once
        expect(what, found=found, wanted=wanted)
        say(cost.describe(what) + f"   admin's peak RSS {admin.peak_rss_mb:.0f} MB")


def _counts(api: ApiClient, chunks: Iterable[bytes], media_type: str, **query: object) -> tuple[int, int, int]:
    done = api.send_lines("POST", "/devices-import", chunks, media_type=media_type, **query)
    return done["created"], done["replaced"], done["failed"]


def export_fleet(admin: Admin, api: ApiClient, devices: int) -> None:
    say("export:")
    for what, media_type, went_in in (("NDJSON", NDJSON, as_ndjson), ("CSV", CSV, as_csv)):

        def receive() -> LineSum:
            with api.receive_lines("/devices-export", media_type=media_type) as chunks:  # noqa: B023 - called at once
                return LineSum.of(chunks)

        found, cost = measured(admin, receive)
        expect(f"the export as {what} is what went in", found=found.same_as(LineSum.of(went_in(devices))), wanted=True)
        say(cost.describe(f"{what}, {found.bytes:,} bytes") + f"   admin's peak RSS {admin.peak_rss_mb:.0f} MB")


def count_versions(admin: Admin, api: ApiClient, devices: int) -> None:
    say("count of versions:")
    wanted = Counter(device(index)[1] for index in range(devices))
    found, cost = measured(admin, lambda: api.get(f"/device-types/{TYPE}/versions", limit=1000))
    counts = {entry["version"]: entry["devices"] for entry in found["versions"]}
    top = dict(sorted(wanted.items(), key=lambda pair: (-pair[1], pair[0]))[:1000])
    expect("the counts", found=counts, wanted=top)
    expect("all devices", found=(found["devices"], found["without"]), wanted=(devices, 0))
    say(cost.describe(f"{len(wanted):,} versions"))


def scan(redis: OwnRedis, devices: int) -> None:
    """In this process, with the adapter that the roles use: what reading everything costs without HTTP and JSON."""
    say("scan, in one process on one core with nothing else to do for it:")

    async def run() -> None:
        client = connect_redis(redis.url)
        try:
            store = RedisDevices(client, await open_layout(client))
            for what, work in (("buckets", _scan_buckets), ("a Python object per device", _scan_devices)):
                before, began, used = Usage.of(redis.pid), time.monotonic(), time.process_time()
                count = await work(store)
                seconds, spent = time.monotonic() - began, Usage.of(redis.pid) - before
                own = time.process_time() - used
                say(f"  {what:28} {seconds:6.1f} s   CPU: own {own:7.1f} s, Redis {spent.cpu:5.1f} s   ({count})")
                if what != "buckets":
                    expect("the scan", found=count, wanted=f"{devices:,} devices")
        finally:
            await client.aclose()

    asyncio.run(run())


async def _scan_buckets(store: RedisDevices) -> str:
    sizes = [len(blob) async for _, blob in store.scan_buckets()]
    return f"{len(sizes):,} buckets, {sum(sizes):,} bytes"


async def _scan_devices(store: RedisDevices) -> str:
    count = 0
    async for _ in store.scan_devices():
        count += 1
    return f"{count:,} devices"


def memory(client: Redis, before: int, devices: int) -> None:
    used = client.info("memory")["used_memory"] - before
    say(f"Redis memory, one version in {LONG_EVERY} over 64 bytes, tags on one device in {TAGGED_EVERY}:")
    say(f"  INFO: used_memory          {used / devices:6.1f} bytes a device   goal ≤ {GOAL_BYTES}")
    keys = list(itertools.islice(client.scan_iter(match="ota:{*}:[dx]", count=1_000), _SAMPLED))
    held = [(client.memory_usage(key, samples=0) or 0, client.hlen(key), key.endswith(b":d")) for key in keys]
    short = [(size, count) for size, count, is_compact in held if is_compact]
    long = [(size, count) for size, count, is_compact in held if not is_compact]
    for what, sizes in (("compact hashes", short), ("long hashes", long)):
        if sizes:
            total, count = (sum(column) for column in zip(*sizes, strict=True))
            say(f"  MEMORY USAGE: {what:14} {total / count:5.1f} bytes an entry ({len(sizes)} keys, {count} entries)")


def _in_chunks(names: list[str]) -> Iterator[list[str]]:
    return (names[start : start + _LINES_A_CHUNK] for start in range(0, len(names), _LINES_A_CHUNK))


def list_devices(admin: Admin, api: ApiClient, devices: int) -> None:
    say(f"a device list of {devices:,} for a firmware (goal: {GOAL_LIST_S} s):")
    names = [device(index)[0] for index in range(devices)]
    fields = {"device_type": TYPE, "version": "V9.0", "devices": []}
    path = f"/firmware/{api.upload_firmware(io.BytesIO(b'9'), filename='v9.bin', fields=fields)['id']}"
    lines = (b"".join(b'"%b"\n' % name.encode() for name in chunk) for chunk in _in_chunks(names))
    found, cost = measured(admin, lambda: api.send_lines("PUT", f"{path}/devices", lines))
    expect("the list", found=found, wanted={"count": devices, "unknown": 0})
    say(cost.describe("sent, checked and in force") + f"   admin's peak RSS {admin.peak_rss_mb:.0f} MB")

    def receive() -> set[bytes]:
        with api.receive_lines(f"{path}/devices", media_type=CSV) as chunks:
            return set(b"".join(chunks).split(b"\r\n"))

    listed, cost = measured(admin, receive)
    expect("what comes back", found=listed == {name.encode() for name in names} | {b"identifier", b""}, wanted=True)
    say(cost.describe("read back as CSV"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.devices < 1:
        sys.exit("--devices must be at least 1")
    describe("fleet")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        redis = stack.enter_context(run_redis(folder))
        admin = stack.enter_context(run_admin(redis, folder))
        say(f"admin on core {SERVER_CORE}; Redis {redis.version} ({redis.durability}), client on core {LOAD_CORE}")
        say()
        api = stack.enter_context(ApiClient(admin.url, _TOKEN))
        client = stack.enter_context(Redis(port=redis.port))
        api.put(f"/device-types/{TYPE}", {"version_attributes": ["version"]})
        before = client.info("memory")["used_memory"]
        import_fleet(admin, api, options.devices)
        memory(client, before, options.devices)
        export_fleet(admin, api, options.devices)
        count_versions(admin, api, options.devices)
        scan(redis, options.devices)
        list_devices(admin, api, options.devices)
    farewell()


if __name__ == "__main__":
    main()
