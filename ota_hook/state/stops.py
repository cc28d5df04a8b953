"""Firmware that fails, and what was stopped for it: implements ports.stops.FirmwareStops.

offers.py marks what fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson
import structlog
from pydantic import TypeAdapter, ValidationError

from ota_hook.state.connection import RedisClient, redis_errors, run_command, run_commands
from ota_hook.state.keys import Keys, as_text
from ota_hook.task import FirmwareStop

_STOP: Final[TypeAdapter[FirmwareStop]] = TypeAdapter(FirmwareStop)

_log = structlog.get_logger("ota_hook.state.stops")


class RedisFirmwareStops:
    """ports.stops.FirmwareStops."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def load_failing(self) -> list[str]:
        """See ports.stops.FirmwareStops."""
        with redis_errors("looking for firmware that fails"):
            return sorted(map(as_text, await run_command(self._redis, "SMEMBERS", self._keys.failing)))

    async def load_stops(self, firmware_ids: Sequence[str]) -> list[FirmwareStop | None]:
        """See ports.stops.FirmwareStops. One that can't be read is none, and logged."""
        with redis_errors("reading what was stopped"):
            found = await run_commands(self._redis, [("HGET", self._keys.stops, one) for one in firmware_ids])
        stops: list[FirmwareStop | None] = []
        for firmware_id, stored in zip(firmware_ids, found, strict=True):
            try:
                stops.append(None if stored is None else _STOP.validate_json(stored))
            except ValidationError as exc:
                _log.error("stop_unreadable", firmware=firmware_id, problem=str(exc))
                stops.append(None)
        return stops

    async def put_stop(self, firmware_id: str, stop: FirmwareStop) -> None:
        """See ports.stops.FirmwareStops."""
        with redis_errors("noting a stop"):
            await run_command(self._redis, "HSET", self._keys.stops, firmware_id, orjson.dumps(stop))

    async def settle(self, firmware_id: str) -> None:
        """See ports.stops.FirmwareStops."""
        with redis_errors("looking for firmware that fails"):
            await run_command(self._redis, "SREM", self._keys.failing, firmware_id)
