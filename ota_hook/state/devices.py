"""Devices in Redis: implements ports.DeviceStore."""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis

from ota_hook.state.durability import DurableWriter
from ota_hook.state.keys import Keys

DEFAULT_REFRESH_MS: Final = 3_600_000


class RedisDevices:
    """ports.DeviceStore. `writer` confirms what operators write; reports are confirmed by Redis's answer alone."""

    def __init__(
        self, redis: Redis, keys: Keys, *, writer: DurableWriter | None = None, refresh_ms: int = DEFAULT_REFRESH_MS
    ) -> None: ...
