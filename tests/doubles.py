"""In-memory doubles of the ports. They keep the Protocols' contracts; the adapters on Redis have tests of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ota_hook.model import (
    CatalogueChange,
    DeviceState,
    DeviceType,
    DocumentKind,
    Firmware,
    OpenOffer,
    Outcome,
    Package,
    ReportedVersion,
    Rule,
    SettledOffer,
)
from ota_hook.snapshot import Snapshot

PACKAGE = Package(filename="fw.bin", size_bytes=10, md5="0" * 32, sha256="0" * 64, crc32="0" * 8)


def make_firmware(id: str, version: str, **fields: object) -> Firmware:  # noqa: A002 - the model's word
    base = Firmware(id=id, name=id, device_type="tracker", version=version, package=PACKAGE)
    return replace(base, **fields)  # type: ignore[arg-type]


def make_snapshot(
    *documents: DeviceType | Rule | Firmware, lists: Mapping[str, frozenset[str]] | None = None
) -> Snapshot:
    """A snapshot of the documents; a `tracker` type with its default rule is always there."""
    base: list[DeviceType | Rule | Firmware] = [
        DeviceType(key="tracker", name="Tracker"),
        Rule(id="default", name="default", device_type="tracker"),
    ]
    changes = []
    for document in [*base, *documents]:
        match document:
            case DeviceType():
                changes.append(CatalogueChange(DocumentKind.DEVICE_TYPE, document.key, document))
            case Rule():
                changes.append(CatalogueChange(DocumentKind.RULE, document.id, document))
            case Firmware():
                changes.append(CatalogueChange(DocumentKind.FIRMWARE, document.id, document))
    snapshot, refused = Snapshot().with_changes(changes, revision=1, device_lists=lists or {})
    assert refused == []
    return snapshot


@dataclass
class FixedSnapshot:
    """A SnapshotSource."""

    current: Snapshot


@dataclass
class MemoryDevices:
    """DeviceStates. `stalled` makes calls wait until `resumed` is set, as a Redis that does not answer."""

    devices: dict[str, DeviceState] = field(default_factory=dict)
    stalled: bool = False
    resumed: asyncio.Event = field(default_factory=asyncio.Event)

    async def load_device(self, identifier: str) -> DeviceState | None:
        if self.stalled:
            await self.resumed.wait()
        return self.devices.get(identifier)

    async def store_report(
        self,
        identifier: str,
        versions: Mapping[str, str],
        *,
        reported_at_ms: int,
        kept_by_type: Mapping[str, frozenset[str]],
        expected_type: str | None = None,
        register: bool = False,
    ) -> DeviceState | None:
        if self.stalled:
            await self.resumed.wait()
        device = self.devices.get(identifier)
        if device is None and register and expected_type is not None:
            device = DeviceState(identifier=identifier, device_type=expected_type)
        if device is None or expected_type not in (None, device.device_type):
            return None
        merged = dict(device.versions)
        for attribute, text in versions.items():
            stored = merged.get(attribute)
            if attribute in kept_by_type.get(device.device_type, ()) and (
                stored is None or reported_at_ms >= stored.reported_at_ms
            ):
                merged[attribute] = ReportedVersion(text, reported_at_ms)
        self.devices[identifier] = replace(device, versions=merged)
        return self.devices[identifier]


@dataclass
class MemoryOffers:
    """OpenOffers beside MemoryDevices, whose devices carry the open offers."""

    devices: MemoryDevices
    settled: list[tuple[str, SettledOffer]] = field(default_factory=list)

    async def record_offer(self, identifier: str, offer: OpenOffer) -> None:
        device = self.devices.devices[identifier]
        others = tuple(o for o in device.open_offers if o.module != offer.module)
        repeated = [o for o in device.open_offers if o.module == offer.module and o.firmware_id == offer.firmware_id]
        if repeated:
            offer = replace(offer, command_ids=(*repeated[0].command_ids, *offer.command_ids)[-4:])
        self.devices.devices[identifier] = replace(device, open_offers=(*others, offer))

    async def settle_offer(
        self, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int
    ) -> bool:
        device = self.devices.devices[identifier]
        if offer not in device.open_offers:
            return False
        rest = tuple(o for o in device.open_offers if o != offer)
        self.devices.devices[identifier] = replace(device, open_offers=rest)
        self.settled.append(
            (identifier, SettledOffer(offer=offer, outcome=outcome, settled_at_ms=settled_at_ms, code=code))
        )
        return True


@dataclass
class CountingIds:
    """CommandIds from 98310, as WIRE.md's examples."""

    last: int = 98_309

    async def next_id(self) -> int:
        self.last += 1
        return self.last


@dataclass
class RecordingPublisher:
    """A Publisher that keeps what it was given."""

    published: list[tuple[str, bytes, int]] = field(default_factory=list)

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        self.published.append((topic, payload, qos))
