"""Devices in Redis and what they reported: implements ports.devices.DeviceStore.

Owns the hashes of devices (with device_scripts.py, and device_import.py for many). A bucket's devices are the fields
of one hash that stays in Redis's compact encoding (16 bytes of overhead per bucket, 4 per device); a state or
identifier above 64 bytes would unpack the whole bucket, so it lives in a second hash beside it, with an empty marker in
the first where the identifier fits. Must not know what a version means, nor which attributes a type keeps: the caller
says.

**Time stamps.** A report that changes no text writes nothing, not even its newer time stamp, unless the stored one is
more than `refresh_ms` behind. So between two writes the stored time may be up to `refresh_ms` too old, and a late
report of *another* version, sent in just that time and overtaken by an unchanged one, would be taken for news. It takes
a device that changes its version and changes it back within `refresh_ms` while the report in between waits in a buffer;
its next report mends it.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import structlog

from ota_hook.errors import ConflictError
from ota_hook.model import DeviceState
from ota_hook.ports.device_messages import Report
from ota_hook.ports.devices import ANY_DEVICE, ExpectedDevice, StoredDevice
from ota_hook.state.buckets import batches_of_buckets, read_cursor, write_cursor
from ota_hook.state.connection import Argument, Call, RedisClient, redis_errors, run_pipelined, slot_of
from ota_hook.state.device_import import RedisDeviceImport, pack_typed, put_arguments, tags_argument
from ota_hook.state.device_scripts import COUNT, CREATE, DELETE, LOAD, PATCH, PUT, SCAN
from ota_hook.state.durability import DurableWriter
from ota_hook.state.keys import Keys, as_bytes
from ota_hook.state.offers import count_cancelled
from ota_hook.state.records import (
    COMPACT_MAX_BYTES,
    UNREADABLE_BUCKET,
    may_be_of_type,
    read_device,
    type_prefix,
    unpack_bucket,
)

DEFAULT_REFRESH_MS: Final = 3_600_000
"""A device that reports the same for ever costs one write an hour."""

_LOAD_BATCH: Final = 500
_DELETE_BATCH: Final = 500
_SCAN_BATCH: Final = 64
"""Buckets per round trip of a scan, and the next are asked for ahead. Redis reads them at once, and device messages
wait so long: a millisecond or two where there is a million devices.
"""
_KEYS_A_SCRIPT: Final = 32
"""Of a scan: two a bucket."""
_EVERY_TYPE: Final = b"*"
_LOGGED_A_SCAN: Final = 10

_log = structlog.get_logger("ota_hook.state.devices")


class RedisDevices:
    """ports.devices.DeviceStore. `writer` confirms what operators write. Reports come through hot.py."""

    def __init__(self, redis: RedisClient, keys: Keys, *, writer: DurableWriter | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer or DurableWriter(redis)

    async def load_device(self, identifier: str) -> DeviceState | None:
        """See ports.devices.DeviceStore. One round trip."""
        stored = await self.load_stored(identifier)
        return stored.state if stored else None

    async def load_stored(self, identifier: str) -> StoredDevice | None:
        """See ports.devices.DeviceStore. One round trip."""
        with redis_errors("reading a device"):
            stored = await LOAD.run(self._redis, self._touched(identifier), (as_bytes(identifier),))
        return _stored_device(identifier, *stored) if stored else None

    async def load_devices(self, identifiers: Sequence[str]) -> list[DeviceState | None]:
        """See ports.devices.DeviceStore. One round trip for 500. One that can't be read is logged."""
        found: list[DeviceState | None] = []
        with redis_errors("reading devices"):
            for start in range(0, len(identifiers), _LOAD_BATCH):
                batch = identifiers[start : start + _LOAD_BATCH]
                calls = [(self._touched(identifier), (as_bytes(identifier),)) for identifier in batch]
                answers, _ = await run_pipelined(self._redis, LOAD, calls)
                found += [
                    _read_or_log(identifier, *stored) if stored else None
                    for identifier, stored in zip(batch, answers, strict=True)
                ]
        return found

    async def put_device(
        self,
        identifier: str,
        device_type: str,
        versions: Mapping[str, str] | None,
        tags: tuple[str, ...] | None = None,
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> bool:
        """See ports.devices.DeviceStore. A device that gets another type loses its open offers: they are cancelled."""
        arguments = (*_expectation(expected), *put_arguments(identifier, device_type, versions, tags))
        (result,) = await self._writer.write_or_fail(PUT, [(self._touched_by_admin(identifier), arguments)])
        _refuse_conflict(result, identifier)
        created, cancelled = result
        await count_cancelled(self._redis, self._keys, cancelled)
        return bool(created)

    async def create_device(
        self, identifier: str, device_type: str, versions: Mapping[str, str], tags: tuple[str, ...] = ()
    ) -> bool:
        """See ports.devices.DeviceStore."""
        call: Call = (self._touched(identifier), (as_bytes(identifier), pack_typed(device_type, versions, tags)))
        (created,) = await self._writer.write_or_fail(CREATE, [call])
        return bool(created)

    async def patch_device(
        self,
        identifier: str,
        device_type: str | None,
        versions: Mapping[str, str | None],
        tags: tuple[str, ...] | None = None,
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> StoredDevice | None:
        """See ports.devices.DeviceStore. A device that gets another type loses its open offers: they are cancelled."""
        arguments: list[Argument] = [
            *_expectation(expected),
            as_bytes(identifier),
            as_bytes(device_type or ""),
            tags_argument(tags),
        ]
        for attribute, text in versions.items():
            arguments += (as_bytes(attribute), int(text is not None), as_bytes(text or ""))
        (stored,) = await self._writer.write_or_fail(PATCH, [(self._touched_by_admin(identifier), arguments)])
        if stored is None:
            return None
        _refuse_conflict(stored, identifier)
        packed, offers, cancelled = stored
        await count_cancelled(self._redis, self._keys, cancelled)
        return _stored_device(identifier, packed, offers)

    async def count_unknown(self, identifiers: Sequence[str]) -> int:
        """See ports.devices.DeviceStore. Pipelined in batches."""
        known = 0
        with redis_errors("looking for devices"):
            for start in range(0, len(identifiers), _LOAD_BATCH):
                calls = self._count_calls(identifiers[start : start + _LOAD_BATCH])
                answers, _ = await run_pipelined(self._redis, COUNT, calls)
                known += sum(answers)
        return len(identifiers) - known

    def _count_calls(self, identifiers: Sequence[str]) -> list[Call]:
        """The runs of COUNT, each for devices of one slot."""
        calls: dict[int, tuple[list[Argument], list[Argument]]] = {}
        for identifier in identifiers:
            name = as_bytes(identifier)
            bucket = self._keys.bucket_of_name(name)
            is_short = len(name) <= COMPACT_MAX_BYTES
            key = self._keys.devices(bucket) if is_short else self._keys.long_devices(bucket)
            keys, names = calls.setdefault(slot_of(self._redis, key), ([], []))
            keys.append(key)
            names.append(name)
        return list(calls.values())

    async def begin_import(self) -> RedisDeviceImport:
        """See ports.devices.DeviceStore."""
        return await RedisDeviceImport.begin(self._redis, self._keys, self._writer)

    async def delete_device(self, identifier: str, *, expected: ExpectedDevice = ANY_DEVICE) -> bool:
        """See ports.devices.DeviceStore. Its open offers count as cancelled."""
        call: Call = (self._touched_by_admin(identifier), (*_expectation(expected), as_bytes(identifier)))
        (result,) = await self._writer.write_or_fail(DELETE, [call])
        _refuse_conflict(result, identifier)
        existed, cancelled = result
        await count_cancelled(self._redis, self._keys, cancelled)
        return bool(existed)

    async def delete_children(self, identifier: str) -> int:
        """See ports.devices.DeviceStore. One reading of the bucket, then a round trip for 500."""
        bucket, prefix = self._keys.bucket_of(identifier), as_bytes(f"{identifier}/")
        touched = self._touched(identifier)
        deleted = 0
        async with aclosing(self._bucket(bucket)) as buckets:
            names = [name async for _, blob in buckets for name, _ in unpack_bucket(blob) if name.startswith(prefix)]
        for start in range(0, len(names), _DELETE_BATCH):
            calls: list[Call] = [
                ((*touched, self._keys.history_of(bucket, name), self._keys.attempts(bucket)), (b"", b"", name))
                for name in names[start : start + _DELETE_BATCH]
            ]
            results = await self._writer.write_or_fail(DELETE, calls)
            deleted += sum(existed for existed, _ in results)
            await count_cancelled(self._redis, self._keys, [one for _, cancelled in results for one in cancelled])
        return deleted

    async def scan_buckets(self, first: int = 0) -> AsyncGenerator[tuple[int, bytes]]:
        """See ports.devices.DeviceStore. Each is read at one moment; see records.unpack_bucket for what is in it."""
        async with aclosing(self._buckets(first)) as buckets:
            async for number, blob in buckets:
                yield number, blob

    async def scan_devices(
        self,
        *,
        device_type: str | None = None,
        tag: str | None = None,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> AsyncIterator[DeviceState]:
        """See ports.devices.DeviceStore. A device that comes or goes while the scan runs may be seen or not."""
        wanted = _Wanted(device_type, tag, on_unreadable)
        async for _, blob in self.scan_buckets():
            for identifier, packed in unpack_bucket(blob):
                device = wanted.unpack(identifier, packed)
                if device is not None:
                    yield device

    async def page_devices(
        self,
        *,
        cursor: str | None,
        limit: int,
        device_type: str | None = None,
        tag: str | None = None,
        gateway: str | None = None,
    ) -> tuple[list[DeviceState], str | None]:
        """See ports.devices.DeviceStore.

        Ordered by bucket, then identifier: a page is never shifted by what comes or goes.

        Reads on until the page is full or the devices end, so a rare type or tag costs a reading of all. A gateway's
        children are in one bucket, which alone is read.
        """
        only = self._keys.bucket_of(gateway) if gateway is not None else None
        first, after = read_cursor(cursor, only=only) if cursor else (0, b"")
        wanted = _Wanted(device_type, tag, behind=gateway)
        page: list[DeviceState] = []
        last = (first, after)
        reading = self._buckets(first) if only is None else self._bucket(only)
        async with aclosing(reading) as buckets:
            async for bucket, blob in buckets:
                for identifier, packed in sorted(unpack_bucket(blob)):
                    if bucket == first and identifier <= after:
                        continue
                    device = wanted.unpack(identifier, packed)
                    if device is None:
                        continue
                    if len(page) == limit:
                        return page, write_cursor(*last)
                    page.append(device)
                    last = (bucket, identifier)
        return page, None

    async def _bucket(self, number: int) -> AsyncGenerator[tuple[int, bytes]]:
        """That bucket alone, as `_buckets` gives it."""
        with redis_errors("reading devices"):
            for blob in await self._read_buckets([number]):
                if self._has_devices(number, blob):
                    yield number, blob

    async def _buckets(self, first: int) -> AsyncGenerator[tuple[int, bytes]]:
        """The number and the blob of each bucket with devices, from `first` on."""
        with redis_errors("reading devices"):
            async with aclosing(self._read_ahead(first)) as batches:
                async for batch, reading in batches:
                    for bucket, blob in zip(batch, await reading, strict=True):
                        if self._has_devices(bucket, blob):
                            yield bucket, blob

    def _has_devices(self, bucket: int, blob: bytes) -> bool:
        if blob == UNREADABLE_BUCKET:
            _log.error("bucket_unreadable", key=self._keys.devices(bucket))
        return bool(blob)

    async def _read_ahead(self, first: int) -> AsyncGenerator[tuple[list[int], asyncio.Task[list[bytes]]]]:
        """Batches of buckets with their blobs to come; the next batch is asked for before one is looked at."""
        pattern = self._keys.devices_pattern()
        batches = batches_of_buckets(self._redis, self._keys, pattern, first=first, largest=_SCAN_BATCH)
        under_way: deque[tuple[list[int], asyncio.Task[list[bytes]]]] = deque()
        try:
            async with aclosing(batches):
                async for batch in batches:
                    under_way.append((batch, asyncio.create_task(self._read_buckets(batch))))
                    if len(under_way) == 2:
                        yield under_way.popleft()
            for batch_and_reading in under_way:
                yield batch_and_reading
        finally:
            for _, reading in under_way:
                reading.cancel()
            await asyncio.gather(*(reading for _, reading in under_way), return_exceptions=True)

    async def _read_buckets(self, buckets: Sequence[int]) -> list[bytes]:
        """Their blobs. Buckets that follow each other and may share a script do."""
        calls: list[Call] = []
        for _, group in itertools.groupby(buckets, lambda bucket: slot_of(self._redis, self._keys.devices(bucket))):
            keys = [key for bucket in group for key in (self._keys.devices(bucket), self._keys.long_devices(bucket))]
            calls += ((keys[at : at + _KEYS_A_SCRIPT], ()) for at in range(0, len(keys), _KEYS_A_SCRIPT))
        found, _ = await run_pipelined(self._redis, SCAN, calls)
        return list(itertools.chain.from_iterable(found))

    def _touched(self, identifier: str) -> tuple[str, str, str]:
        bucket = self._keys.bucket_of(identifier)
        return self._keys.devices(bucket), self._keys.long_devices(bucket), self._keys.offers(bucket)

    def _touched_by_admin(self, identifier: str) -> tuple[Argument, ...]:
        bucket = self._keys.bucket_of(identifier)
        return *self._touched(identifier), self._keys.history(bucket, identifier), self._keys.attempts(bucket)


class _Wanted:
    """Which devices a scan is about; most others are told by their bytes alone."""

    def __init__(
        self,
        device_type: str | None,
        tag: str | None,
        on_unreadable: Callable[[str], None] | None = None,
        *,
        behind: str | None = None,
    ) -> None:
        self._behind = as_bytes(f"{behind}/") if behind is not None else b""
        self._prefix = type_prefix(device_type) if device_type is not None else b""
        self._tag = tag
        self._tag_bytes = as_bytes(tag) if tag is not None else b""
        self._on_unreadable = on_unreadable
        self._left_out = 0

    def unpack(self, identifier: bytes, packed: bytes) -> DeviceState | None:
        """The device, None for another and for one that can't be read."""
        if not may_be_of_type(packed, self._prefix) or self._tag_bytes not in packed:
            return None
        if not identifier.startswith(self._behind):
            return None
        device = read_device(identifier, packed)
        if device is None:
            self._leave_out(identifier)
            return None
        return device if self._tag is None or self._tag in device.tags else None

    def _leave_out(self, identifier: bytes) -> None:
        name = identifier.decode("utf-8", "backslashreplace")
        self._left_out += 1
        if self._left_out <= _LOGGED_A_SCAN:
            _log.error("device_unreadable", device=name)
        if self._on_unreadable is not None:
            self._on_unreadable(name)


def _stored_device(identifier: str, packed: bytes, offers: bytes | None) -> StoredDevice:
    device = read_device(as_bytes(identifier), packed, offers)
    if device is None:
        raise _unreadable(identifier)
    if offers and not device.open_offers:
        _log.error("offers_unreadable", device=identifier)
    return StoredDevice(device, hashlib.sha1(packed, usedforsecurity=False).hexdigest())  # Lua's only digest


def _read_or_log(identifier: str, packed: bytes, offers: bytes | None) -> DeviceState | None:
    device = read_device(as_bytes(identifier), packed, offers)
    if device is None:
        _log.error("device_unreadable", device=identifier)
    return device


def _unreadable(identifier: str) -> ConflictError:
    return ConflictError(
        f"What is stored of the device {identifier!r} can't be read.",
        mend="PUT it with `versions` and `tags`, or DELETE it.",
    )


def _expectation(expected: ExpectedDevice) -> tuple[bytes, bytes]:
    """The first two arguments of a script with `_EXPECTED_LUA`."""
    return _digests_argument(expected.digests), _digests_argument(expected.other_than)


def _digests_argument(digests: tuple[str, ...] | None) -> bytes:
    if digests is None:
        return b""
    return b"*" if "*" in digests else as_bytes("\n".join(("", *digests, "")))


def _refuse_conflict(result: object, identifier: str) -> None:
    """Raise what a script found in the way, where it returned that."""
    if result == b"unreadable":
        raise _unreadable(identifier)
    if result == b"changed":
        raise ConflictError("It was changed since you read it, or is gone.", mend="Read it again.", stale=True)
    if result == b"there":
        raise ConflictError("It is there already.", stale=True)


def report_arguments(report: Report, keepers: Mapping[str, bytes], refresh_ms: int) -> list[Argument]:
    """The arguments of REPORT; its keys are the compact and the long hash of the device's bucket, and its open offers.

    Of equal times the later call wins; see the module for `refresh_ms`.
    """
    arguments: list[Argument] = [
        as_bytes(report.device),
        report.reported_at_ms,
        refresh_ms,
        report.topic_type or "",
        int(report.register),
    ]
    for attribute, text in report.versions.items():
        if attribute in keepers:
            arguments += (as_bytes(attribute), as_bytes(text), keepers[attribute])
    return arguments


def keepers_by_attribute(kept_by_type: Mapping[str, frozenset[str]]) -> dict[str, bytes]:
    """Per attribute, the types that keep it as REPORT reads them; an attribute that none keeps is missing."""
    types_by_attribute: dict[str, list[str]] = {}
    for device_type, attributes in kept_by_type.items():
        for attribute in attributes:
            types_by_attribute.setdefault(attribute, []).append(device_type)
    return {
        attribute: _EVERY_TYPE if len(types) == len(kept_by_type) else as_bytes("\n".join(("", *types, "")))
        for attribute, types in types_by_attribute.items()
    }
