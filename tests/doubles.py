"""In-memory doubles of the ports. They keep the Protocols' contracts; the adapters on Redis have tests of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ota_hook._device_set import DeviceSet
from ota_hook.errors import DependencyError
from ota_hook.identifiers import path_of
from ota_hook.model import (
    CatalogueChange,
    ChildForm,
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
from ota_hook.ports.commands import Message
from ota_hook.ports.device_messages import (
    ChildCame,
    ChildComing,
    ChildrenCame,
    ChildrenDone,
    ChildrenReported,
    ChildrenStored,
    DeviceDone,
    LoadedChildren,
    Report,
    StoredChildren,
)
from ota_hook.progress import Said
from ota_hook.snapshot import Snapshot

PACKAGE = Package(filename="fw.bin", size_bytes=10, md5="0" * 32, sha256="0" * 64, crc32="0" * 8)


def make_firmware(id: str, version: str, **fields: object) -> Firmware:  # noqa: A002 - the model's word
    base = Firmware(id=id, name=id, device_type="tracker", version=version, package=PACKAGE)
    return replace(base, **fields)  # type: ignore[arg-type]


def make_snapshot(*documents: DeviceType | Rule | Firmware, lists: Mapping[str, DeviceSet] | None = None) -> Snapshot:
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


AWAY = DependencyError("Redis is away.")


@dataclass
class MemoryDevices:
    """DeviceStates. `failing` answers every call as a Redis that does not answer within the budget."""

    devices: dict[str, DeviceState] = field(default_factory=dict)
    failing: bool = False

    def load_device(self, identifier: str, done: DeviceDone) -> None:
        device = self.devices.get(identifier)
        done(AWAY if self.failing else device._replace(open_offers=()) if device is not None else None)

    def store_report(self, report: Report, kept_by_type: Mapping[str, frozenset[str]], done: DeviceDone) -> None:
        if self.failing:
            done(AWAY)
            return
        device = self.devices.get(report.device)
        if device is None and report.register and report.topic_type is not None:
            device = DeviceState(identifier=report.device, device_type=report.topic_type)
        if device is None or report.topic_type not in (None, device.device_type):
            done(None)
            return
        merged = dict(device.versions)
        for attribute, text in report.versions.items():
            stored = merged.get(attribute)
            if attribute in kept_by_type.get(device.device_type, ()) and (
                stored is None or report.reported_at_ms >= stored.reported_at_ms
            ):
                merged[attribute] = ReportedVersion(text, report.reported_at_ms)
        self.devices[report.device] = device._replace(versions=merged)
        done(self.devices[report.device])

    def load_offered(self, identifier: str, done: DeviceDone) -> None:
        done(AWAY if self.failing else self.devices.get(identifier))


@dataclass
class MemoryChildren:
    """ChildStates beside MemoryDevices. `round_trips` counts what a Redis would be asked."""

    devices: MemoryDevices
    children_max: int = 1_000
    round_trips: int = 0

    def load_children(self, gateway: str, identifiers: Sequence[str], done: ChildrenDone) -> None:
        self.round_trips += 1
        found = tuple(self.devices.devices.get(identifier) for identifier in identifiers)
        done(AWAY if self.devices.failing else LoadedChildren(self.devices.devices.get(gateway), found))

    def store_children(
        self, report: ChildrenReported, kept_by_type: Mapping[str, frozenset[str]], done: ChildrenStored
    ) -> None:
        self.round_trips += 1
        if self.devices.failing:
            done(AWAY)
            return
        gateway = self.devices.devices.get(report.gateway)
        if gateway is None or report.topic_type not in (None, gateway.device_type):
            done(StoredChildren(None))
            return
        after: list[DeviceState] = []
        for identifier, versions in report.versions.items():
            one = Report(device=identifier, versions=versions, reported_at_ms=report.reported_at_ms)
            if identifier in self.devices.devices:
                self.devices.store_report(one, kept_by_type, lambda _: None)
                self.note_form(identifier, report.forms[identifier])
                after.append(self.devices.devices[identifier])
        offered = tuple(device for device in after if device.open_offers)
        done(StoredChildren(gateway, len(after), len(report.versions) - len(after), offered))

    def children_came(
        self, gateway: str, coming: Sequence[ChildComing], *, topic_type: str | None, at_ms: int, done: ChildrenCame
    ) -> None:
        self.round_trips += 1
        speaking = self.devices.devices.get(gateway)
        if self.devices.failing:
            done(AWAY)
        elif speaking is None or topic_type not in (None, speaking.device_type):
            done([ChildCame.UNKNOWN_GATEWAY] * len(coming))
        else:
            done([self._came(gateway, *child) for child in coming])

    def _came(self, gateway: str, identifier: str, form: ChildForm, product: str | None) -> ChildCame:
        devices = self.devices.devices
        known = devices.get(identifier)
        if known is not None and product not in (None, known.device_type):
            return ChildCame.TYPE_DIFFERS
        if known is not None:
            self.note_form(identifier, form)
            return ChildCame.KNOWN
        if product is None:
            return ChildCame.UNKNOWN_DEVICE
        if sum(other.startswith(f"{gateway}/") for other in devices) >= self.children_max:
            return ChildCame.TOO_MANY
        devices[identifier] = DeviceState(identifier=identifier, device_type=product)
        self.note_form(identifier, form)
        return ChildCame.REGISTERED

    def note_form(self, identifier: str, form: ChildForm) -> None:
        device = self.devices.devices[identifier]
        self.devices.devices[identifier] = device._replace(form=form.unless_default(len(path_of(identifier))))


@dataclass
class MemoryPresence:
    """Presence: the connection of each device that is there, and which node attached when."""

    connections: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)

    def attach(self, node: str, *, at_ms: int) -> None:
        self.nodes[node] = at_ms

    def come(self, identifier: str, connection: str, *, at_ms: int) -> None:
        self.connections[identifier] = connection

    def go(self, identifier: str, connection: str) -> None:
        if self.connections.get(identifier) == connection:
            del self.connections[identifier]


@dataclass
class MemoryOffers:
    """OpenOffers beside MemoryDevices, whose devices carry the open offers."""

    devices: MemoryDevices
    settled: list[tuple[str, SettledOffer]] = field(default_factory=list)
    said: list[tuple[str, Said]] = field(default_factory=list)
    attempted: list[tuple[str, OpenOffer]] = field(default_factory=list)

    def count_attempt(self, identifier: str, offer: OpenOffer, *, at_ms: int) -> None:
        self.attempted.append((identifier, offer))

    def record_offer(self, identifier: str, offer: OpenOffer) -> None:
        device = self.devices.devices[identifier]
        others = tuple(o for o in device.open_offers if o.module != offer.module)
        repeated = [o for o in device.open_offers if o.module == offer.module and o.firmware_id == offer.firmware_id]
        if repeated:
            offer = replace(offer, command_ids=(*repeated[0].command_ids, *offer.command_ids)[-4:])
        self.devices.devices[identifier] = device._replace(open_offers=(*others, offer))

    def track_offer(self, identifier: str, said: Said, *, at_ms: int) -> None:
        self.said.append((identifier, said))

    def settle_offer(
        self, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int
    ) -> None:
        device = self.devices.devices[identifier]
        if offer not in device.open_offers:
            return
        rest = tuple(o for o in device.open_offers if o != offer)
        self.devices.devices[identifier] = device._replace(open_offers=rest)
        self.settled.append(
            (identifier, SettledOffer(offer=offer, outcome=outcome, settled_at_ms=settled_at_ms, code=code))
        )


@dataclass
class MemoryBlocks:
    """PackageBlocks of packages by firmware id. `failing` raises as a store that is away."""

    packages: dict[str, bytes] = field(default_factory=dict)
    failing: bool = False
    delay_s: float = 0.0

    async def read(self, firmware: Firmware, offset: int, size_bytes: int) -> bytes:
        await asyncio.sleep(self.delay_s)
        if self.failing:
            raise AWAY
        return self.packages[firmware.id][offset : offset + size_bytes]


@dataclass
class CountingIds:
    """CommandIds from 98310, as WIRE.md's examples."""

    last: int = 98_309

    def next_id(self) -> int:
        self.last += 1
        return self.last


@dataclass
class RecordingPublisher:
    """A Publisher that keeps what it was given."""

    published: list[tuple[str, bytes, int]] = field(default_factory=list)

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        self.published.append((topic, payload, qos))

    async def publish_many(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        self.published += messages
        return [None] * len(messages)
