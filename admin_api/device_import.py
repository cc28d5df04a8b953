"""One import at work: lines are read while the devices before them are on their way to the store.

Memory is bounded by two batches, and by the digests of the devices so far: each is there once, so that the same lines
mean the same however far apart they are, and however often they are sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from fastapi import Request

from admin_api.bodies import read_lines, require_lines
from admin_api.context import AdminContext
from admin_api.device_lines import DeviceLines, OpenQuoteError
from admin_api.documents.devices import ImportOut, LineError
from admin_api.one_behind import OneBehind
from ota_hook._device_set import DeviceSetBuilder
from ota_hook.errors import ConflictError, InputError
from ota_hook.ports.devices import DeviceEntry, DeviceImport, DeviceStore, ImportedBatch

BATCH: Final = 500
"""Devices; packing them for Redis takes two milliseconds, in which nothing else runs."""
IMPORTED_DEVICES_MAX: Final = 10_000_000
"""48 to 80 bytes of memory each."""
_ERRORS_SHOWN: Final = 100
_UNREADABLE: Final = "What is stored of it can't be read: give its versions and tags, or delete it."


async def run_import(context: AdminContext, request: Request, *, dry_run: bool) -> ImportOut:
    """Read the body and write its devices; with `dry_run`, only say what would be done."""
    lines = DeviceLines(context.catalogue, require_lines(request))
    target: DeviceImport = _DryRun(context.devices) if dry_run else await context.devices.begin_import()
    done = ImportOut(created=0, replaced=0, failed=0, dry_run=dry_run, errors=[])
    seen = DeviceSetBuilder(secrets.randbits(64))

    async def write(batch: Mapping[int, DeviceEntry]) -> None:
        _require_types(context, batch.values())
        imported = await target.write(list(batch.values()))
        done.created += imported.created
        done.replaced += imported.replaced
        for number, device in batch.items() if imported.unreadable else ():
            if device.identifier in imported.unreadable:
                _note_failure(done, number, _UNREADABLE)

    batch: dict[int, DeviceEntry] = {}
    async with OneBehind(write) as writing:
        async for numbered in read_lines(request):
            for number, line in numbered:
                if lines.needs_header:
                    lines.take_header(line)
                    continue
                try:
                    batch[number] = _read_new(lines, line, seen)
                except OpenQuoteError as exc:
                    said = f"Line {number}: {exc.detail} The import ended there; lines before it may be in."
                    raise InputError(said, mend=exc.mend) from exc
                except InputError as exc:
                    _note_failure(done, number, str(exc))
            if len(seen) > IMPORTED_DEVICES_MAX:
                raise InputError(f"An import has at most {IMPORTED_DEVICES_MAX} devices.", mend="Send it in parts.")
            if len(batch) >= BATCH:
                await writing.start(batch)
                batch = {}
        await writing.start(batch)
        await writing.finish()
    if lines.needs_header:
        raise InputError("The CSV has no line that names its columns.")
    await target.confirm()
    done.errors.sort(key=lambda error: error.line)
    return done


def _require_types(context: AdminContext, batch: Iterable[DeviceEntry]) -> None:
    """The lines were judged when they came; a slow client's may be written long after."""
    known = context.catalogue.current.types
    if gone := next((device.device_type for device in batch if device.device_type not in known), None):
        raise ConflictError(
            f"The device type {gone!r} was deleted during the import.", mend="Create it, or leave it out."
        )


def _read_new(lines: DeviceLines, line: bytes, seen: DeviceSetBuilder) -> DeviceEntry:
    """The device of a line; InputError where another line before was about it."""
    device = lines.read(line)
    if not seen.add(device.identifier):
        raise InputError(f"An earlier line is about the device {device.identifier!r} already.")
    return device


def _note_failure(done: ImportOut, line: int, detail: str) -> None:
    done.failed += 1
    if len(done.errors) < _ERRORS_SHOWN:
        done.errors.append(LineError(line=line, detail=detail))


class _DryRun:
    """A DeviceImport that only counts."""

    def __init__(self, devices: DeviceStore) -> None:
        self._devices = devices

    async def write(self, devices: Sequence[DeviceEntry]) -> ImportedBatch:
        created = await self._devices.count_unknown([device.identifier for device in devices])
        return ImportedBatch(created, len(devices) - created)

    async def confirm(self) -> None:
        """Nothing was written."""
