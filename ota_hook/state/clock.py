"""One clock for all workers: Redis's.

Leases, paces and due times pass between workers, whose own clocks may be minutes apart. Owns how far Redis's clock is
from the process's monotonic one. Must not know what is timed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from ota_hook.errors import DependencyError
from ota_hook.state.connection import RedisClient, Script, redis_errors
from ota_hook.state.keys import Keys

_TIME: Final = Script("return redis.call('TIME')")
_EVERY_S: Final = 10.0
_WORTH_TELLING_MS: Final = 5_000

_log = structlog.get_logger("ota_hook.state.clock")


class RedisClock:
    """`start`, then `now_ms` at any moment; `keep` it right until it is cancelled. `local_ms` must not jump.

    Of a Cluster it is the clock of the server that has the meta key.
    """

    def __init__(
        self,
        redis: RedisClient,
        keys: Keys,
        *,
        local_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._redis = redis
        self._key = keys.meta
        self._local_ms = local_ms
        self._wall_ms = wall_ms
        self._ahead_ms = 0

    def now_ms(self) -> int:
        """Milliseconds since 1970, by Redis."""
        return self._local_ms() + self._ahead_ms

    async def start(self) -> None:
        """Ask Redis for the first time. Tells of a wall clock that differs. Raises DependencyError."""
        await self._ask()
        differs_ms = self._wall_ms() - self.now_ms()
        if abs(differs_ms) > _WORTH_TELLING_MS:
            _log.warning("clock_differs", from_redis_by_s=round(differs_ms / 1000), what="this worker goes by Redis's")

    async def keep(self, *, every_s: float = _EVERY_S) -> None:
        """Ask again and again, for clocks drift, and another server may have taken over."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self._ask()
            except DependencyError as exc:
                _log.info("clock_not_read", problem=str(exc))

    async def _ask(self) -> None:
        before_ms = self._local_ms()
        with redis_errors("reading the clock"):
            seconds, microseconds = await _TIME.run(self._redis, (self._key,), ())
        # It was read somewhere between the question and its answer.
        between_ms = (before_ms + self._local_ms()) // 2
        self._ahead_ms = int(seconds) * 1_000 + int(microseconds) // 1_000 - between_ms
