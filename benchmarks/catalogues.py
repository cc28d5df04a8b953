"""Firmware and devices for the matcher's benchmarks: the mixes, for the compiled index and the plain one alike."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgpack

from benchmarks.broker_calls import device_name
from benchmarks.plain_matcher import PlainFirmware
from ota_hook._device_set import DeviceSet
from ota_hook._matcher import FirmwareEntry
from ota_hook.model import ReportedVersion
from ota_hook.state.records import pack_device

TYPE = "tracker"
SEED = 0x5EED
ASKING_WHO = 16
"""Firmware with tags or a percentage: the most that a module should have."""
OFFER_EVERY = 10
LATEST = "9.0.0"
_REPORTED_AT_MS = 1_750_234_507_181


def plan_catalogue(count: int, listed: int) -> list[PlainFirmware]:
    """So many firmware: one that everyone may get, 16 with tags or a percentage above it, one for a million listed
    devices, and for the rest old ones, deltas and short lists."""
    million = frozenset(map(device_name, range(0, 2 * listed, 2)))
    planned = [PlainFirmware("EVERYONE", LATEST)]
    if listed:
        planned.append(PlainFirmware("LISTED", "9.1.0", devices=million))
    for number in range(min(ASKING_WHO, max(count - 2, 0))):
        tags = ("beta", "lab") if number % 2 else None
        points = None if number % 4 == 3 else 1
        planned.append(PlainFirmware(f"WHO{number:02}", f"9.2.{number}", None, tags, points, number))
    for number in range(count - len(planned)):
        match number % 3:
            case 0:
                planned.append(PlainFirmware(f"OLD{number:05}", f"1.0.{number}"))
            case 1:
                sources = (f"2.1.{number}", f"2.2.{number}")
                planned.append(PlainFirmware(f"DELTA{number:05}", f"9.3.{number}", source_versions=sources))
            case _:
                devices = frozenset(f"LISTED_{number}_{place}" for place in range(10))
                planned.append(PlainFirmware(f"SHORT{number:05}", f"9.4.{number}", devices=devices))
    return planned


def compiled_entries(planned: list[PlainFirmware]) -> list[FirmwareEntry]:
    """The same for the compiled index."""
    return [
        FirmwareEntry(
            id=one.id,
            version=one.version,
            devices=None if one.devices is None else DeviceSet.of(one.devices, seed=SEED),
            tags=one.tags,
            basis_points=one.basis_points,
            percentage_seed=one.percentage_seed,
            source_versions=one.source_versions,
        )
        for one in planned
    ]


def fleet(devices: int) -> Iterator[tuple[str, str]]:
    """(identifier, current version): nine in ten run the latest, the others one of ten older ones."""
    for index in range(devices):
        yield device_name(index), f"1.9.{index // OFFER_EVERY % 10}" if index % OFFER_EVERY == 0 else "9.9.9"


def asked(devices: int, count: int) -> list[tuple[str, str]]:
    """Devices and their versions in the order in which they ask: none."""
    dice = random.Random(20_250_618)  # noqa: S311 - an order, no secret
    return [
        (device_name(dice.randrange(devices)), f"1.9.{dice.randrange(20)}" if dice.random() < 0.5 else "9.9.9")
        for _ in range(count)
    ]


def packed_buckets(devices: int, *, in_each: int = 16) -> list[bytes]:
    """The fleet as Redis gives it, a blob for each bucket."""
    pack = msgpack.Packer(use_bin_type=False).pack
    packed: dict[str, bytes] = {}
    buckets, flat = [], []
    for identifier, version in fleet(devices):
        if version not in packed:
            packed[version] = pack_device(TYPE, {"version": ReportedVersion(version, _REPORTED_AT_MS)})
        flat += [identifier, packed[version]]
        if len(flat) == 2 * in_each:
            buckets.append(bytes(pack(flat)))
            flat = []
    return [*buckets, bytes(pack(flat))] if flat else buckets
