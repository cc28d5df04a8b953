"""Writing many devices, as fast as Redis takes them: implements ports.devices.DeviceImport.

Fifty devices of one server share a run of a script; in a Cluster, those whose keys share a slot. What was written is
confirmed once, at the end: WAITAOF may take a second each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

from ota_hook.errors import DependencyError
from ota_hook.model import ReportedVersion
from ota_hook.ports.devices import DeviceEntry, ImportedBatch
from ota_hook.state.connection import Argument, Call, RedisClient, redis_errors, run_pipelined, slot_of
from ota_hook.state.device_scripts import IMPORT
from ota_hook.state.durability import DurableWriter, list_server_runs
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.offers import count_cancelled
from ota_hook.state.records import pack_device, pack_tags

DEVICES_A_SCRIPT: Final = 50
"""Redis is busy with that many for half a millisecond, and device messages wait so long."""


def put_arguments(
    identifier: str, device_type: str, versions: Mapping[str, str] | None, tags: tuple[str, ...] | None
) -> tuple[bytes, bytes, bytes, bytes]:
    """The last four arguments of PUT."""
    packed = b"" if versions is None else pack_typed(device_type, versions, tags or ())
    return as_bytes(identifier), as_bytes(device_type), packed, tags_argument(tags)


def tags_argument(tags: tuple[str, ...] | None) -> bytes:
    """Tags as an argument of a script."""
    return b"" if tags is None else as_bytes("=" + pack_tags(tags))


def pack_typed(device_type: str, versions: Mapping[str, str], tags: tuple[str, ...] = ()) -> bytes:
    """A device as an operator sets it. Time 0: whatever the device reports is newer than what an operator typed."""
    return pack_device(device_type, {name: ReportedVersion(text, 0) for name, text in versions.items()}, tags)


class RedisDeviceImport:
    """ports.devices.DeviceImport; `begin` makes one."""

    def __init__(self, redis: RedisClient, keys: Keys, writer: DurableWriter, runs: frozenset[str]) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer
        self._runs = runs
        self._written: dict[int, str] = {}  # a key of each slot written to

    @classmethod
    async def begin(cls, redis: RedisClient, keys: Keys, writer: DurableWriter) -> Self:
        with redis_errors("beginning an import"):
            return cls(redis, keys, writer, await list_server_runs(redis))

    async def write(self, devices: Sequence[DeviceEntry]) -> ImportedBatch:
        """See ports.devices.DeviceImport."""
        calls = self._calls(devices)
        with redis_errors("importing devices"):
            results, _ = await run_pipelined(self._redis, IMPORT, calls)
        cancelled = [firmware for _, firmware_ids, _ in results for firmware in firmware_ids]
        await count_cancelled(self._redis, self._keys, cancelled)
        created = sum(created for created, _, _ in results)
        unreadable = tuple(as_text(name) for _, _, names in results for name in names)
        return ImportedBatch(created, len(devices) - created - len(unreadable), unreadable)

    async def confirm(self) -> None:
        """See ports.devices.DeviceImport."""
        await self._writer.confirm(list(self._written.values()))
        with redis_errors("confirming an import"):
            runs = await list_server_runs(self._redis)
        if runs != self._runs:
            raise DependencyError(
                "A Redis server was restarted or replaced during the import, and may have lost some of it.",
                mend="Import the same again.",
                maybe_written=True,
            )

    def _calls(self, devices: Iterable[DeviceEntry]) -> list[Call]:
        """The runs of IMPORT, each for devices of one slot."""
        open_calls: dict[int, tuple[list[Argument], list[Argument]]] = {}
        calls: list[Call] = []
        for identifier, device_type, versions, tags in devices:
            name, *arguments = put_arguments(identifier, device_type, versions, tags)
            bucket = self._keys.bucket_of_name(name)
            compact = self._keys.devices(bucket)
            slot = slot_of(self._redis, compact)
            if slot not in self._written:
                self._written[slot] = self._keys.last_write(bucket)
            call = open_calls.get(slot)
            if call is None:
                call = open_calls[slot] = ([], [])
                calls.append(call)
            keys, words = call
            keys += (
                compact,
                self._keys.long_devices(bucket),
                self._keys.offers(bucket),
                self._keys.history_of(bucket, name),
            )
            words += (name, *arguments)
            if len(keys) == 4 * DEVICES_A_SCRIPT:
                del open_calls[slot]
        return calls
