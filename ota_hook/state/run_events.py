"""What became of offers that belong to runs, on its way to them: implements ports.runs.RunEvents.

offers.py writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from ota_hook.model import Outcome
from ota_hook.state.connection import RedisClient
from ota_hook.state.keys import Keys, as_text
from ota_hook.state.streams import Entry, SharedStream
from ota_hook.task import RunMove

LEASE_MS: Final = 5_000

_log = structlog.get_logger("ota_hook.state.run_events")


class RedisRunEvents:
    """ports.runs.RunEvents. `consumer` names this process among all workers."""

    def __init__(self, redis: RedisClient, keys: Keys, *, consumer: str) -> None:
        self._stream = SharedStream(redis, keys.run_events, consumer=consumer, lease_ms=LEASE_MS)

    async def open(self) -> None:
        """See ports.runs.RunEvents."""
        await self._stream.open()

    async def read(self, *, most: int, block_ms: int) -> list[tuple[str, RunMove]]:
        """See ports.runs.RunEvents. One that can't be read is dropped and logged."""
        found = []
        for entry in await self._stream.read(most=most, block_ms=block_ms):
            try:
                found.append((entry.id, _move_of(entry)))
            except (KeyError, ValueError) as exc:
                _log.error("run_event_unreadable", entry=entry.id, problem=repr(exc))
                await self._stream.finish([entry.id])
        return found

    async def finish(self, entries: Sequence[str]) -> None:
        """See ports.runs.RunEvents."""
        await self._stream.finish(entries)


def _move_of(entry: Entry) -> RunMove:
    fields = entry.fields
    return RunMove(
        run_id=as_text(fields[b"run"]),
        chunk=int(fields[b"chunk"]),
        identifier=as_text(fields[b"device"]),
        outcome=Outcome(as_text(fields[b"outcome"])),
        code=as_text(fields[b"code"]),
        at_ms=int(fields[b"at"]) or int(entry.id.partition("-")[0]),
    )
