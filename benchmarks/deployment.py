"""What is measured, as a user runs it: a Redis, a fleet and a catalogue in it, and hook processes.

The catalogue goes in through the adapter that the admin role uses. The fleet is written with the state package's own
keys and packing, many devices to a command: a million of them take seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from redis import Redis
from ulid import ULID

from benchmarks.broker_calls import device_name
from benchmarks.surroundings import LOAD_CORE, SERVER_CORE, on_core
from ota_hook.model import (
    CatalogueChange,
    DeviceType,
    DocumentKind,
    Firmware,
    Package,
    ReportedVersion,
    Rule,
)
from ota_hook.standin.redis import find_server
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.connection import connect_redis
from ota_hook.state.format import open_layout
from ota_hook.state.keys import Keys, as_bytes
from ota_hook.state.records import pack_device
from tests.e2e.service import Emqx, clean_environment
from tests.held_ports import free_port

TYPE = "tracker"
LATEST = "2.0.0"
OFFER_EVERY = 10
"""One device in so many runs an older version: 10 % of the checks are answered with an offer."""
_CREATED_AT_MS = 1_750_000_000_000
_START_S = 30.0
_LISTED_DEVICES = 10
_BUCKETS_A_TRIP = 500


# ---- Redis


@dataclass(frozen=True, slots=True)
class OwnRedis:
    """A redis-server of this run alone, on a port of the loopback interface."""

    port: int
    pid: int
    version: str
    durability: str

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


@contextlib.contextmanager
def run_redis(folder: Path) -> Iterator[OwnRedis]:
    """A fresh Redis on the load's core: append-only file, fsync every second, no rewriting of it meanwhile."""
    executable, version = asyncio.run(find_server())
    port = free_port()
    options = [
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--daemonize", "no"),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"),
    ]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(on_core(LOAD_CORE, [str(executable), *options]), stdout=log, stderr=log)  # noqa: S603
    try:
        wait_for_port(port, process)
        yield OwnRedis(port, process.pid, ".".join(map(str, version)), "appendonly yes, appendfsync everysec")
    finally:
        process.terminate()
        process.wait(30)


# ---- what is in it


def plan_firmware(count: int) -> list[Firmware]:
    """One that every device may get, and others that a check must look past: superseded, for other versions, disabled,
    for a few listed devices. The lists are named later."""
    planned = [_firmware(LATEST)]
    for number in range(1, count):
        match number % 4:
            case 0:
                planned.append(_firmware(f"1.0.{number}"))
            case 1:
                planned.append(_firmware(f"3.0.{number}", source_versions=(f"2.1.{number}", f"2.2.{number}")))
            case 2:
                planned.append(_firmware(f"4.0.{number}", enabled=False))
            case _:
                planned.append(_firmware(f"5.0.{number}", device_list="to be staged"))
    return planned


def plan_one(version: str) -> Firmware:
    """A firmware for everyone."""
    return _firmware(version)


def _firmware(
    version: str, *, source_versions: tuple[str, ...] = (), enabled: bool = True, device_list: str | None = None
) -> Firmware:
    text = version.encode()
    package = Package(
        filename=f"{TYPE}-{version}.bin",
        size_bytes=1_363_713,
        md5=hashlib.md5(text, usedforsecurity=False).hexdigest(),
        sha256=hashlib.sha256(text).hexdigest(),
        crc32="0a1b2c3d",
    )
    return Firmware(
        id=str(ULID()),
        name=f"{TYPE} {version}",
        device_type=TYPE,
        version=version,
        package=package,
        source_versions=source_versions,
        enabled=enabled,
        device_list=device_list,
        created_at_ms=_CREATED_AT_MS,
    )


def version_of(index: int) -> str:
    """What the device of that number runs: the latest, or one of ten older ones."""
    return f"1.9.{index // OFFER_EVERY % 10}" if index % OFFER_EVERY == 0 else LATEST


async def populate(redis: OwnRedis, *, prefix: str, devices: int, firmware: int) -> Firmware:
    """Write catalogue and fleet; the firmware that one device in ten is offered is the answer."""
    client = connect_redis(redis.url)
    try:
        keys = await open_layout(client, prefix=prefix)
        catalogue = RedisCatalogue(client, keys)
        await catalogue.start()
        try:
            planned = await _fill_catalogue(catalogue, firmware)
        finally:
            await catalogue.close()
    finally:
        await client.aclose()
    write_fleet(redis, keys, range(devices))
    return planned[0]


async def _fill_catalogue(catalogue: RedisCatalogue, count: int) -> list[Firmware]:
    planned = plan_firmware(count)
    for at, firmware in enumerate(planned):
        if firmware.device_list is not None:
            # Identifiers that are not in the fleet: a list must not change what the fleet is offered.
            listed = [f"LISTED_{at}_{number}" for number in range(_LISTED_DEVICES)]
            name, _ = await catalogue.stage_device_list(_whole(listed))
            planned[at] = _with_list(firmware, name)
    rule = Rule(id=str(ULID()), name="check", device_type=TYPE, created_at_ms=_CREATED_AT_MS)
    device_type = DeviceType(key=TYPE, name="Tracker", created_at_ms=_CREATED_AT_MS)
    changes = [
        CatalogueChange(DocumentKind.DEVICE_TYPE, TYPE, device_type),
        CatalogueChange(DocumentKind.RULE, rule.id, rule),
        *(CatalogueChange(DocumentKind.FIRMWARE, firmware.id, firmware) for firmware in planned),
    ]
    await catalogue.change(lambda _: changes)
    return planned


def _with_list(firmware: Firmware, name: str) -> Firmware:
    return replace(firmware, device_list=name)


async def _whole(identifiers: list[str]) -> AsyncIterator[list[str]]:
    yield identifiers


def write_fleet(redis: OwnRedis, keys: Keys, devices: Sequence[int]) -> None:
    """Write the devices with what they reported, a bucket at a time."""
    reported_at_ms = time.time_ns() // 1_000_000
    packed = {
        version: pack_device(TYPE, {"version": ReportedVersion(version, reported_at_ms)})
        for version in {version_of(index) for index in range(OFFER_EVERY * 10)}
    }
    buckets: defaultdict[int, list[bytes]] = defaultdict(list)
    for index in devices:
        name = device_name(index)
        buckets[keys.bucket_of(name)] += (as_bytes(name), packed[version_of(index)])
    with Redis(port=redis.port) as client:
        written = 0
        numbers = list(buckets)
        for start in range(0, len(numbers), _BUCKETS_A_TRIP):
            pipeline = client.pipeline(transaction=False)
            for number in numbers[start : start + _BUCKETS_A_TRIP]:
                pipeline.execute_command("HSET", keys.devices(number), *buckets[number])
            written += sum(pipeline.execute())
    if written != len(devices):
        sys.exit(f"{written} of {len(devices)} devices were written: nothing is measured")


# ---- the hook


@dataclass(frozen=True, slots=True)
class Hook:
    """One `ota-hook hook` process."""

    port: int
    pid: int


@contextlib.contextmanager
def run_hook(
    redis: OwnRedis,
    folder: Path,
    *,
    prefix: str,
    transport: str = "native",
    under: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Hook]:
    """`ota-hook hook` on the core of what is measured. `under` is a program that runs it, as valgrind does; `environ`
    are more settings.
    """
    port = free_port()
    settings = clean_environment(
        OTA_HOOK_DATA_DIR=str(folder / "data"),
        OTA_HOOK_HOOK_LISTEN=f"127.0.0.1:{port}",
        OTA_HOOK_HOOK_TRANSPORT=transport,
        OTA_HOOK_REDIS_URL=redis.url,
        OTA_HOOK_REDIS_PREFIX=prefix,
        OTA_HOOK_PUBLIC_URL="http://ota.example.com",
        **(environ or {}),
    )
    command = on_core(SERVER_CORE, [*under, sys.executable, "-m", "ota_hook", "hook"])
    log_path = folder / f"hook-{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=log)  # noqa: S603
    try:
        try:
            wait_for_port(port, process, seconds=_START_S * (10 if under else 1))
        except RuntimeError as exc:
            sys.exit(f"The hook did not start: {exc}\n{log_path.read_text()}")
        yield Hook(port, process.pid)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def broker_of(hook: Hook) -> Iterator[Emqx]:
    """A real gRPC client that asks as the broker does, to look at answers before they are timed."""
    broker = Emqx(hook.port)
    try:
        yield broker
    finally:
        broker.close()


def wait_for_port(port: int, process: subprocess.Popen[bytes], *, seconds: float = _START_S) -> None:
    """Return when it answers there; RuntimeError where it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing answers on port {port} after {seconds:g} s")
