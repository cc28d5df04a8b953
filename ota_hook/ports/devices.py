"""Devices, for operators and workers: read, written, imported, gone through.

Owns what a write may expect and what a device to write is. Must not know how devices are stored, or HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ota_hook.model import DeviceState


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

    async def load_devices(self, identifiers: Sequence[str]) -> list[DeviceState | None]:
        """`load_device` for many; None as well for one whose record can't be read."""
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

    async def delete_children(self, identifier: str) -> int:
        """Forget every device that is behind this one, as `delete_device` does, batch by batch: how many there were.

        It may be done again, and one that comes meanwhile may stay.
        """
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

    def scan_buckets(self, first: int = 0) -> AsyncGenerator[tuple[int, bytes]]:
        """Every device in the buckets from `first` on: a bucket's number and its packed blob, for compiled code.

        A bucket is read at one moment; empty ones are left out.
        """
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
        self,
        *,
        cursor: str | None,
        limit: int,
        device_type: str | None = None,
        tag: str | None = None,
        gateway: str | None = None,
    ) -> tuple[list[DeviceState], str | None]:
        """A page and the cursor of the next (None at the end). An unreadable cursor raises InputError.

        With `gateway` its children alone, whether it is registered or not.
        """
        ...
