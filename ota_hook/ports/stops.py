"""Firmware that fails, and that was stopped for it. Must not know when it is too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ota_hook.task import FirmwareStop


class FirmwareStops(Protocol):
    """Firmware that fails, and what was stopped for it. Raises DependencyError."""

    async def load_failing(self) -> list[str]:
        """Firmware that failed somewhere since it was last `settle`d."""
        ...

    async def load_stops(self, firmware_ids: Sequence[str]) -> list[FirmwareStop | None]:
        """The last stop of each."""
        ...

    async def put_stop(self, firmware_id: str, stop: FirmwareStop) -> None: ...

    async def settle(self, firmware_id: str) -> None:
        """It was looked at; call it before its counters are read."""
        ...
