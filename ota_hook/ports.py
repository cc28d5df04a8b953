"""What the shells need from outside, as Protocols. Adapters and test doubles implement them; bootstrap.py joins."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ota_hook._device_set import DeviceSet
from ota_hook.errors import DependencyError
from ota_hook.model import CatalogueChange, DeviceState, OpenOffer, Outcome, Package, SettledOffer
from ota_hook.snapshot import Snapshot


class SnapshotSource(Protocol):
    """The catalogue in force in this process. Reading it is free; it is swapped whole, never changed in place."""

    @property
    def current(self) -> Snapshot: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a device reported: its usable versions, when the broker got them, and the type its topic names, if any.

    `register`: an unknown device is registered under `topic_type`.
    """

    device: str
    versions: Mapping[str, str]
    reported_at_ms: int
    topic_type: str | None = None
    register: bool = False


DeviceDone = Callable[["DeviceState | DependencyError | None"], None]
"""Gets the device, None where it is not registered, or the error where Redis did not answer within the budget."""


class DeviceStates(Protocol):
    """What the hook asks of devices. Nothing waits: `done` is called once, within the answer budget."""

    def load_device(self, identifier: str, done: DeviceDone) -> None:
        """Find the device, without its open offers."""
        ...

    def store_report(self, report: Report, kept_by_type: Mapping[str, frozenset[str]], done: DeviceDone) -> None:
        """Keep each version that the device's type keeps and that is not older than what is stored, atomically.

        `kept_by_type` is the catalogue's version attributes per type key. A device of another type than the topic's
        is left alone, as if it were unknown. A report that changes nothing writes nothing. `done` gets the state after
        the report with the device's open offers.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredDevice:
    """A device with its open offers, and the digest of its stored state (40 hex digits): another state, another digest.

    Open offers are no part of the digest.
    """

    state: DeviceState
    digest: str


@dataclass(frozen=True, slots=True)
class ExpectedDevice:
    """What a write to a device must find. None: nothing is expected. `"*"` among the digests: any state.

    `digests`: the device exists with one of them. `other_than`: it does not exist with one of them.
    """

    digests: tuple[str, ...] | None = None
    other_than: tuple[str, ...] | None = None


ANY_DEVICE: Final = ExpectedDevice()


class DeviceEntry(NamedTuple):
    """A device to create or replace. `versions` or `tags` None keeps what is stored of them."""

    identifier: str
    device_type: str
    versions: Mapping[str, str] | None = None
    tags: tuple[str, ...] | None = None


class ImportedBatch(NamedTuple):
    """How many devices were created and replaced, and which were not: what is stored of them can't be read or kept."""

    created: int
    replaced: int
    unreadable: tuple[str, ...] = ()


class DeviceImport(Protocol):
    """Many devices, batch after batch; all of it may be done again. Raises DependencyError."""

    async def write(self, devices: Sequence[DeviceEntry]) -> ImportedBatch:
        """Create or replace them, in their order."""
        ...

    async def confirm(self) -> None:
        """Return when all that was written is as safe as any other write of an operator."""
        ...


class DeviceStore(Protocol):
    """Devices, for operators. Every method raises DependencyError where Redis does not answer.

    A device whose record can't be read is left out of what is about many; what is about it raises ConflictError. To put
    it with versions, or to delete it, mends it.
    A write that finds another device than `expected` changes nothing and raises ConflictError with `stale`; it looks
    and writes atomically.
    """

    async def load_device(self, identifier: str) -> DeviceState | None:
        """The device with its open offers, or None where it is not registered."""
        ...

    async def load_stored(self, identifier: str) -> StoredDevice | None:
        """`load_device` with the digest of the state."""
        ...

    async def put_device(
        self,
        identifier: str,
        device_type: str,
        versions: Mapping[str, str] | None,
        tags: tuple[str, ...] | None = None,
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> bool:
        """Create or replace (admin). `versions` or `tags` None keeps what is stored. Returns whether it was created."""
        ...

    async def delete_device(self, identifier: str, *, expected: ExpectedDevice = ANY_DEVICE) -> bool:
        """Forget the device, its open offers and its history. Returns whether it existed."""
        ...

    async def create_device(
        self, identifier: str, device_type: str, versions: Mapping[str, str], tags: tuple[str, ...] = ()
    ) -> bool:
        """Create it, atomically (admin). False and nothing written where it exists."""
        ...

    async def patch_device(
        self,
        identifier: str,
        device_type: str | None,
        versions: Mapping[str, str | None],
        tags: tuple[str, ...] | None = None,
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> StoredDevice | None:
        """Change the type and all tags (None keeps each), and only the named versions (None removes one), atomically.

        Returns the state after it, None for an unknown device.
        """
        ...

    async def count_unknown(self, identifiers: Sequence[str]) -> int:
        """How many of them are not registered, pipelined."""
        ...

    async def begin_import(self) -> DeviceImport: ...

    def scan_buckets(self) -> AsyncIterator[bytes]:
        """Every device, a packed blob per bucket, for compiled code; a bucket is read at one moment."""
        ...

    def scan_devices(
        self,
        *,
        device_type: str | None = None,
        tag: str | None = None,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> AsyncIterator[DeviceState]:
        """Every device (of that type, with that tag), bucket by bucket, in no useful order; without open offers.

        A record that can't be read is left out; `on_unreadable` is told its identifier, "" for a whole bucket.
        """
        ...

    async def page_devices(
        self, *, cursor: str | None, limit: int, device_type: str | None = None, tag: str | None = None
    ) -> tuple[list[DeviceState], str | None]:
        """A page and the cursor of the next (None at the end). An unreadable cursor raises InputError."""
        ...


class OpenOffers(Protocol):
    """What the hook notes of offers. Nothing waits: a note leaves with the next batch, and a kill may lose it."""

    def record_offer(self, identifier: str, offer: OpenOffer) -> None:
        """Open `offer`; the same firmware again adds its command id (the last four stay), another is superseded."""
        ...

    def settle_offer(
        self, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int
    ) -> None:
        """Close the open offer of that module and firmware. Nothing happens where it was closed already."""
        ...


class OfferStore(Protocol):
    """A device's last outcomes and counters per firmware, for operators. Raises DependencyError."""

    async def cancel_offers(self, firmware_id: str, *, settled_at_ms: int) -> int:
        """Close every open offer of a firmware as cancelled (its deletion). Returns how many; idempotent."""
        ...

    async def load_history(self, identifier: str) -> list[SettledOffer]:
        """The last 20 settled offers, newest first."""
        ...

    async def load_counters(self, firmware_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """Per firmware, how often each outcome happened."""
        ...


class CommandIds(Protocol):
    def next_id(self) -> int:
        """A positive integer below 2^53, unique in the deployment. DependencyError where none is left in stock."""
        ...


class Catalogue(Protocol):
    """Device types, rules and firmware with optimistic concurrency.

    A change function gets the newest snapshot, checks what it must (raising NotFound, ConflictError, InputError) and
    returns the changes; they are written atomically if the catalogue is still at that snapshot's revision, else the
    function runs again on the newer one. When `change` returns, Redis has confirmed the write (WAITAOF where it can)
    and `current` of this process shows it.
    """

    @property
    def current(self) -> Snapshot: ...

    async def change(self, decide: Callable[[Snapshot], Sequence[CatalogueChange]]) -> Snapshot: ...

    async def stage_device_list(self, identifiers: AsyncIterator[list[str]]) -> tuple[str, DeviceSet]:
        """Write a device list, given in pieces, under a new name: (name, members); the empty list's name is "".

        It expires within the hour unless a firmware document that names it is written by `change`; the list that a
        change leaves unnamed is dropped with it.
        """
        ...

    def read_device_list(self, name: str) -> AsyncGenerator[list[str]]:
        """The identifiers of a list in pieces, each once, in the order in which they were given.

        Of a list in `current` they are as many as its members: else it ends with ConflictError.
        """
        ...


class Message(NamedTuple):
    """What is published: a command's text, to one device's topic."""

    topic: str
    payload: bytes
    qos: int


class Publisher(Protocol):
    """Publishes to the broker. What one caller publishes to one topic arrives in that order."""

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish one command; returns when the broker took it (qos 1: its ack). Raises DependencyError."""
        ...

    async def publish_many(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        """Publish some hundred or thousand at once, far cheaper than one by one; returns when each has its result.

        The results stand in the order of the messages: None where the broker took it. Nothing is sent a second time;
        where an error has `maybe_written` the broker may have taken the message all the same.
        """
        ...


@dataclass(frozen=True, slots=True)
class Begun:
    """This request is the first under its key, or the first to be answered: run it, then `finish` or `abandon`.

    `new_id` is what it names its creation; `earlier_ids` are those of requests under the key that did not tell what
    became of them: what bears one of these was created by them.
    """

    key: str
    owner: str
    body_digest: str
    new_id: str = ""
    earlier_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """This request was answered before: answer the same."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class IdempotencyStore(Protocol):
    """Requests under an `Idempotency-Key`: run once, answered the same for 24 hours. All raise DependencyError."""

    async def begin(
        self, token_digest: str, route: str, key: str, body_digest: str, *, new_id: str = ""
    ) -> Begun | Replay:
        """Start a request, or find its answer. `route` is method and path; `new_id` what it names its creation.

        Raises InputError where the key was used with another body, ConflictError while the first request runs (a
        process that died frees it within a minute).
        """
        ...

    async def finish(self, begun: Begun, *, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Keep the answer for 24 hours."""
        ...

    async def abandon(self, begun: Begun, *, maybe_written: bool = False) -> None:
        """Forget the request (it failed and may be tried again under the same key); its `new_id` only where it
        certainly wrote nothing.
        """
        ...


class HookLiveness(Protocol):
    async def count_live(self) -> int:
        """How many hook processes' heartbeats are fresh. Raises DependencyError."""
        ...


class IncomingPackage(Protocol):
    """A package while its bytes arrive. Exactly one of `keep` and `discard` ends it."""

    @property
    def size_bytes(self) -> int: ...

    async def write(self, data: bytes) -> None:
        """Append. DependencyError where the store can't take it (a full disk)."""
        ...

    async def keep(self, filename: str) -> Package:
        """Make it durable under its firmware's id, read it back and compare. DependencyError: nothing was kept."""
        ...

    async def discard(self) -> None:
        """Leave nothing. Never raises; harmless after `keep`."""
        ...


class PackageReader(Protocol):
    """One open package. `read` may be called from one task at a time."""

    async def read(self, offset: int, size_bytes: int) -> bytes: ...

    async def close(self) -> None: ...


class PackageStore(Protocol):
    """The bytes of firmware by firmware id. Names that users gave are data here, never paths."""

    async def receive(self, firmware_id: str) -> IncomingPackage:
        """Begin a package. DependencyError where the store can't take one."""
        ...

    async def open(self, firmware_id: str) -> PackageReader:
        """Raises DependencyError where its bytes are missing or can't be read."""
        ...

    async def remove(self, firmware_id: str) -> None:
        """Remove it; one that is not there is no error."""
        ...
