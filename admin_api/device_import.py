"""One import at work: lines are read while the devices before them are on their way to the store.

Memory is bounded by two batches, whatever the body's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import Request

from admin_api.bodies import read_lines, require_lines
from admin_api.context import AdminContext
from admin_api.device_lines import DeviceLines, OpenQuoteError
from admin_api.documents import ImportOut, LineError
from admin_api.one_behind import OneBehind
from ota_hook.errors import InputError
from ota_hook.ports import DeviceEntry, DeviceImport, DeviceStore

BATCH: Final = 500
"""Devices; packing them for Redis takes two milliseconds, in which nothing else runs."""
_ERRORS_SHOWN: Final = 100


async def run_import(context: AdminContext, request: Request, *, dry_run: bool) -> ImportOut:
    """Read the body and write its devices; with `dry_run`, only say what would be done."""
    lines = DeviceLines(context.catalogue, require_lines(request))
    target: DeviceImport = _DryRun(context.devices) if dry_run else await context.devices.begin_import()
    done = ImportOut(created=0, replaced=0, failed=0, dry_run=dry_run, errors=[])

    async def write(batch: Sequence[DeviceEntry]) -> None:
        created, replaced = await target.write(batch)
        done.created += created
        done.replaced += replaced

    batch: list[DeviceEntry] = []
    async with OneBehind(write) as writing:
        async for numbered in read_lines(request):
            for number, line in numbered:
                if lines.needs_header:
                    lines.take_header(line)
                    continue
                try:
                    batch.append(lines.read(line))
                except OpenQuoteError as exc:
                    said = f"Line {number}: {exc.detail} The import ended there; lines before it may be in."
                    raise InputError(said, mend=exc.mend) from exc
                except InputError as exc:
                    done.failed += 1
                    if len(done.errors) < _ERRORS_SHOWN:
                        done.errors.append(LineError(line=number, detail=exc.detail))
            if len(batch) >= BATCH:
                await writing.start(batch)
                batch = []
        await writing.start(batch)
        await writing.finish()
    if lines.needs_header:
        raise InputError("The CSV has no line that names its columns.")
    await target.confirm()
    return done


class _DryRun:
    """A DeviceImport that only counts."""

    def __init__(self, devices: DeviceStore) -> None:
        self._devices = devices

    async def write(self, devices: Sequence[DeviceEntry]) -> tuple[int, int]:
        created = await self._devices.count_unknown(list({device.identifier for device in devices}))
        return created, len(devices) - created

    async def confirm(self) -> None:
        """Nothing was written."""
