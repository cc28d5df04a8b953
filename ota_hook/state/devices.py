"""Devices in Redis and what they reported: implements ports.DeviceStore.

Owns the hashes of devices. A bucket's devices are the fields of one hash that stays in Redis's compact encoding (16
bytes of overhead per bucket, 4 per device); a state or identifier above 64 bytes would unpack the whole bucket, so it
lives in a second hash beside it, with an empty marker in the first where the identifier fits. Must not know what a
version means, nor which attributes a type keeps: the caller says.

**Time stamps.** A report that changes no text writes nothing, not even its newer time stamp, unless the stored one is
more than `refresh_ms` behind. So between two writes the stored time may be up to `refresh_ms` too old, and a late
report of *another* version, sent in just that time and overtaken by an unchanged one, would be taken for news. It takes
a device that changes its version and changes it back within `refresh_ms` while the report in between waits in a buffer;
its next report mends it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from ota_hook.errors import ConflictError, InputError
from ota_hook.model import DeviceState, Outcome, ReportedVersion
from ota_hook.ports import ANY_DEVICE, ExpectedDevice, Report, StoredDevice
from ota_hook.state.buckets import batches_of_buckets
from ota_hook.state.connection import Argument, Call, RedisClient, Script, redis_errors, run_commands, run_pipelined
from ota_hook.state.durability import DurableWriter
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.offers import OFFERS_LUA, count_outcomes
from ota_hook.state.records import COMPACT_MAX_BYTES, may_be_of_type, pack_device, type_prefix, unpack_device

DEFAULT_REFRESH_MS: Final = 3_600_000
"""A device that reports the same for ever costs one write an hour."""

IMPORT_BATCH: Final = 500
"""Devices per round trip of an import: about 100 kB."""

_EVERY_TYPE: Final = b"*"
_CURSOR_DIGITS: Final = 8

_DEVICE_LUA: Final = f"""
local COMPACT = {COMPACT_MAX_BYTES}
local function read_device(identifier)
  if #identifier <= COMPACT then
    local packed = redis.call('HGET', KEYS[1], identifier)
    if packed ~= '' then return packed end
  end
  return redis.call('HGET', KEYS[2], identifier)
end
local function write_device(identifier, packed)
  if #identifier <= COMPACT and #packed <= COMPACT then
    redis.call('HSET', KEYS[1], identifier, packed)
    redis.call('HDEL', KEYS[2], identifier)
    return
  end
  redis.call('HSET', KEYS[2], identifier, packed)
  if #identifier <= COMPACT then redis.call('HSET', KEYS[1], identifier, '') end
end
local function find_attribute(device, attribute)
  for i = 2, #device, 3 do
    if device[i] == attribute then return i end
  end
  return nil
end
"""
"""KEYS 1 and 2 are the compact and the long hash of the device's bucket, KEYS 3 its open offers, KEYS 4 its history."""

_LOAD: Final = Script(
    _DEVICE_LUA
    + """
local packed = read_device(ARGV[1])
if not packed then return false end
return {packed, redis.call('HGET', KEYS[3], ARGV[1])}
"""
)

REPORT: Final = Script(
    _DEVICE_LUA
    + """
local identifier, reported_at, refresh = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local expected, register = ARGV[4], ARGV[5] == '1'
local packed = read_device(identifier)
local device
if packed then
  device = cmsgpack.unpack(packed)
  if expected ~= '' and device[1] ~= expected then return false end
elseif register then
  device = {expected}
else
  return false
end
local changed = not packed
for i = 6, #ARGV, 3 do
  local attribute, text, keepers = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if keepers == '*' or string.find(keepers, '\\n' .. device[1] .. '\\n', 1, true) then
    local at = find_attribute(device, attribute)
    if not at then
      at = #device + 1
      device[at] = attribute
      device[at + 1], device[at + 2] = reported_at, text
      changed = true
    elseif reported_at >= device[at + 1] then
      if device[at + 2] ~= text or reported_at - device[at + 1] > refresh then
        device[at + 1], device[at + 2] = reported_at, text
        changed = true
      end
    end
  end
end
if changed then
  packed = cmsgpack.pack(device)
  write_device(identifier, packed)
end
return {packed, redis.call('HGET', KEYS[3], identifier)}
"""
)

# '' expects nothing, '*' any device, and else the digests stand between line breaks.
_EXPECTED_LUA: Final = """
local function is_one_of(digests, digest)
  if not digest then return false end
  return digests == '*' or string.find(digests, '\\n' .. digest .. '\\n', 1, true) ~= nil
end
local function find_conflict(stored, digests, other_than)
  local digest = stored and redis.sha1hex(stored)
  if digests ~= '' and not is_one_of(digests, digest) then return 'changed' end
  if other_than ~= '' and is_one_of(other_than, digest) then return 'there' end
  return nil
end
"""

_CREATE: Final = Script(
    _DEVICE_LUA
    + """
if read_device(ARGV[1]) then return 0 end
write_device(ARGV[1], ARGV[2])
return 1
"""
)

_PUT: Final = Script(
    _DEVICE_LUA
    + _EXPECTED_LUA
    + OFFERS_LUA
    + """
local identifier, device_type, packed = ARGV[3], ARGV[4], ARGV[5]
local stored = read_device(identifier)
local conflict = find_conflict(stored, ARGV[1], ARGV[2])
if conflict then return conflict end
local cancelled = {}
if stored then
  local device = cmsgpack.unpack(stored)
  if device[1] ~= device_type then cancelled = cancel_all(identifier, KEYS[3], KEYS[4]) end
  device[1] = device_type
  if packed == '' then packed = cmsgpack.pack(device) end
elseif packed == '' then
  packed = cmsgpack.pack({device_type})
end
if packed ~= stored then write_device(identifier, packed) end
return {stored and 0 or 1, cancelled}
"""
)

_PATCH: Final = Script(
    _DEVICE_LUA
    + _EXPECTED_LUA
    + OFFERS_LUA
    + """
local identifier, device_type = ARGV[3], ARGV[4]
local stored = read_device(identifier)
if not stored then return false end
local conflict = find_conflict(stored, ARGV[1], ARGV[2])
if conflict then return conflict end
local device = cmsgpack.unpack(stored)
local cancelled = {}
if device_type ~= '' and device[1] ~= device_type then
  cancelled = cancel_all(identifier, KEYS[3], KEYS[4])
  device[1] = device_type
end
for i = 5, #ARGV, 3 do
  local attribute, is_set, text = ARGV[i], ARGV[i + 1] == '1', ARGV[i + 2]
  local at = find_attribute(device, attribute)
  if is_set then
    at = at or #device + 1
    device[at], device[at + 1], device[at + 2] = attribute, 0, text
  elseif at then
    for _ = 1, 3 do table.remove(device, at) end
  end
end
local packed = cmsgpack.pack(device)
if packed ~= stored then write_device(identifier, packed) end
return {packed, redis.call('HGET', KEYS[3], identifier), cancelled}
"""
)

_DELETE: Final = Script(
    _DEVICE_LUA
    + _EXPECTED_LUA
    + OFFERS_LUA
    + """
local identifier = ARGV[3]
local stored = read_device(identifier)
local conflict = stored and find_conflict(stored, ARGV[1], ARGV[2])
if conflict then return conflict end
local cancelled = cancel_all(identifier, KEYS[3], KEYS[4])
redis.call('DEL', KEYS[4])
local gone = redis.call('HDEL', KEYS[1], identifier) + redis.call('HDEL', KEYS[2], identifier)
return {gone > 0 and 1 or 0, cancelled}
"""
)


class RedisDevices:
    """ports.DeviceStore. `writer` confirms what operators write. Reports come through hot.py."""

    def __init__(self, redis: RedisClient, keys: Keys, *, writer: DurableWriter | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer or DurableWriter(redis)

    async def load_device(self, identifier: str) -> DeviceState | None:
        """See ports.DeviceStore. One round trip."""
        stored = await self.load_stored(identifier)
        return stored.state if stored else None

    async def load_stored(self, identifier: str) -> StoredDevice | None:
        """See ports.DeviceStore. One round trip."""
        with redis_errors("reading a device"):
            stored = await _LOAD.run(self._redis, self._touched(identifier), (as_bytes(identifier),))
        return _stored_device(identifier, *stored) if stored else None

    async def put_device(
        self,
        identifier: str,
        device_type: str,
        versions: Mapping[str, str] | None,
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> bool:
        """See ports.DeviceStore. A device that gets another type loses its open offers: they are cancelled."""
        call = self._put_call(identifier, device_type, versions, expected)
        results = await self._writer.write_or_fail(_PUT, [call])
        _refuse_conflict(results[0])
        return await self._count_puts(results) == 1

    async def create_device(self, identifier: str, device_type: str, versions: Mapping[str, str]) -> bool:
        """See ports.DeviceStore."""
        call: Call = (self._touched(identifier), (as_bytes(identifier), _pack_typed(device_type, versions)))
        (created,) = await self._writer.write_or_fail(_CREATE, [call])
        return bool(created)

    async def patch_device(
        self,
        identifier: str,
        device_type: str | None,
        versions: Mapping[str, str | None],
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> StoredDevice | None:
        """See ports.DeviceStore. A device that gets another type loses its open offers: they are cancelled."""
        arguments: list[Argument] = [*_expectation(expected), as_bytes(identifier), as_bytes(device_type or "")]
        for attribute, text in versions.items():
            arguments += (as_bytes(attribute), int(text is not None), as_bytes(text or ""))
        (stored,) = await self._writer.write_or_fail(_PATCH, [(self._touched_by_admin(identifier), arguments)])
        if stored is None:
            return None
        _refuse_conflict(stored)
        packed, offers, cancelled = stored
        await self._count_cancelled(cancelled)
        return _stored_device(identifier, packed, offers)

    async def count_unknown(self, identifiers: Sequence[str]) -> int:
        """See ports.DeviceStore. 500 per round trip."""
        known = 0
        with redis_errors("looking for devices"):
            for start in range(0, len(identifiers), IMPORT_BATCH):
                batch = identifiers[start : start + IMPORT_BATCH]
                calls: list[Call] = [(self._touched(identifier), (as_bytes(identifier),)) for identifier in batch]
                found, _ = await run_pipelined(self._redis, _LOAD, calls)
                known += sum(stored is not None for stored in found)
        return len(identifiers) - known

    async def import_devices(self, devices: Sequence[tuple[str, str, Mapping[str, str] | None]]) -> tuple[int, int]:
        """See ports.DeviceStore. 500 per round trip; confirmed once, behind the last: pass thousands at a time."""
        created = 0
        for start in range(0, len(devices), IMPORT_BATCH):
            calls = [self._put_call(*device, ANY_DEVICE) for device in devices[start : start + IMPORT_BATCH]]
            if start + IMPORT_BATCH >= len(devices):
                results = await self._writer.write_or_fail(_PUT, calls)
            else:
                with redis_errors("importing devices"):
                    results, _ = await run_pipelined(self._redis, _PUT, calls)
            created += await self._count_puts(results)
        return created, len(devices) - created

    async def delete_device(self, identifier: str, *, expected: ExpectedDevice = ANY_DEVICE) -> bool:
        """See ports.DeviceStore. Its open offers count as cancelled."""
        call: Call = (self._touched_by_admin(identifier), (*_expectation(expected), as_bytes(identifier)))
        (result,) = await self._writer.write_or_fail(_DELETE, [call])
        _refuse_conflict(result)
        existed, cancelled = result
        await self._count_cancelled(cancelled)
        return bool(existed)

    async def scan_devices(self, *, device_type: str | None = None) -> AsyncIterator[DeviceState]:
        """See ports.DeviceStore. A device that comes or goes while the scan runs may be seen or not."""
        async with aclosing(self._rows(0, device_type)) as rows:
            async for _, identifier, packed in rows:
                yield unpack_device(as_text(identifier), packed)

    async def page_devices(
        self, *, cursor: str | None, limit: int, device_type: str | None = None
    ) -> tuple[list[DeviceState], str | None]:
        """See ports.DeviceStore. Ordered by bucket, then identifier: a page is never shifted by what comes or goes.

        Reads on until the page is full or the devices end, so a rare type costs a reading of all.
        """
        first, after = _read_cursor(cursor) if cursor else (0, b"")
        page: list[DeviceState] = []
        last = (first, after)
        async with aclosing(self._rows(first, device_type)) as rows:
            async for bucket, identifier, packed in rows:
                if bucket == first and identifier <= after:
                    continue
                if len(page) == limit:
                    return page, _write_cursor(*last)
                page.append(unpack_device(as_text(identifier), packed))
                last = (bucket, identifier)
        return page, None

    async def _rows(self, first: int, device_type: str | None) -> AsyncGenerator[tuple[int, bytes, bytes]]:
        """(bucket, identifier, packed state) from bucket `first` on, in the order of pages."""
        prefix = type_prefix(device_type) if device_type is not None else b""
        pattern = self._keys.devices_pattern()
        with redis_errors("reading devices"):
            async with aclosing(batches_of_buckets(self._redis, self._keys, pattern, first=first)) as batches:
                async for batch in batches:
                    for bucket, members in zip(batch, await self._read_buckets(batch), strict=True):
                        for identifier, packed in sorted(members.items()):
                            if may_be_of_type(packed, prefix):
                                yield bucket, identifier, packed

    async def _read_buckets(self, batch: Sequence[int]) -> list[dict[bytes, bytes]]:
        """Per bucket, its devices. Compact and long hash are not read at one moment: see `_read_moved`."""
        hashes = (key for bucket in batch for key in (self._keys.devices(bucket), self._keys.long_devices(bucket)))
        found: list[dict[bytes, bytes]] = await run_commands(self._redis, [("HGETALL", key) for key in hashes])
        buckets = [compact | long for compact, long in zip(found[::2], found[1::2], strict=True)]
        for members in buckets:
            for identifier in [identifier for identifier, packed in members.items() if not packed]:
                await self._read_moved(members, identifier)
        return buckets

    async def _read_moved(self, members: dict[bytes, bytes], identifier: bytes) -> None:
        """Read again a device whose state left the long hash between the two readings."""
        stored = await _LOAD.run(self._redis, self._touched(as_text(identifier)), (identifier,))
        if stored:
            members[identifier] = stored[0]
        else:
            del members[identifier]

    def _touched(self, identifier: str) -> tuple[str, str, str]:
        bucket = self._keys.bucket_of(identifier)
        return self._keys.devices(bucket), self._keys.long_devices(bucket), self._keys.offers(bucket)

    def _touched_by_admin(self, identifier: str) -> tuple[Argument, ...]:
        return *self._touched(identifier), self._keys.history(self._keys.bucket_of(identifier), identifier)

    def _put_call(
        self, identifier: str, device_type: str, versions: Mapping[str, str] | None, expected: ExpectedDevice
    ) -> Call:
        packed = b"" if versions is None else _pack_typed(device_type, versions)
        arguments = (*_expectation(expected), as_bytes(identifier), as_bytes(device_type), packed)
        return self._touched_by_admin(identifier), arguments

    async def _count_puts(self, results: Sequence[Any]) -> int:
        """How many of the results of `_PUT` created a device; cancelled offers are counted on the way."""
        await self._count_cancelled([firmware for _, cancelled in results for firmware in cancelled])
        return sum(created for created, _ in results)

    async def _count_cancelled(self, firmware_ids: Iterable[bytes]) -> None:
        counts = Counter((as_text(firmware_id), Outcome.CANCELLED) for firmware_id in firmware_ids)
        await count_outcomes(self._redis, self._keys, counts)


def _pack_typed(device_type: str, versions: Mapping[str, str]) -> bytes:
    # Time 0: whatever the device reports is newer than what an operator typed.
    return pack_device(device_type, {name: ReportedVersion(text, 0) for name, text in versions.items()})


def _stored_device(identifier: str, packed: bytes, offers: bytes | None) -> StoredDevice:
    digest = hashlib.sha1(packed, usedforsecurity=False).hexdigest()  # Lua's only one
    return StoredDevice(unpack_device(identifier, packed, offers), digest)


def _expectation(expected: ExpectedDevice) -> tuple[bytes, bytes]:
    """The first two arguments of a script with `_EXPECTED_LUA`."""
    return _digests_argument(expected.digests), _digests_argument(expected.other_than)


def _digests_argument(digests: tuple[str, ...] | None) -> bytes:
    if digests is None:
        return b""
    return b"*" if "*" in digests else as_bytes("\n".join(("", *digests, "")))


def _refuse_conflict(result: object) -> None:
    """Raise what `find_conflict` found, where a script returned that."""
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


def _write_cursor(bucket: int, identifier: bytes) -> str:
    return base64.urlsafe_b64encode(b"%d/%b" % (bucket, identifier)).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, bytes]:
    try:
        decoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        decoded = b""
    bucket, slash, identifier = decoded.partition(b"/")
    if not slash or not bucket.isdigit() or len(bucket) > _CURSOR_DIGITS:
        raise InputError("The cursor is not one of this list.", mend="Start without one.", field="cursor")
    return int(bucket), identifier
