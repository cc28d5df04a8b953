"""Which hook processes are alive: implements ports.liveness.HookLiveness.

Owns one sorted set. Must not know what a process does, nor what follows from its silence.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from ulid import ULID

from ota_hook.state.connection import RedisClient, Script, redis_errors, run_command
from ota_hook.state.keys import Keys

DEFAULT_TTL_MS: Final = 5_000

_NOW_LUA: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

_BEAT: Final = Script(
    _NOW_LUA
    + """
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
"""
)

_COUNT: Final = Script(_NOW_LUA + "return redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')")


class Heartbeat:
    """One process's liveness; also counts all. Times are Redis's clock. Every method raises DependencyError."""

    def __init__(self, redis: RedisClient, keys: Keys, *, ttl_ms: int = DEFAULT_TTL_MS) -> None:
        self._redis = redis
        self._key = keys.live_hooks
        self._ttl_ms = ttl_ms
        self._member = f"{socket.gethostname()}:{os.getpid()}:{ULID()}"

    async def beat(self) -> None:
        """Be alive for `ttl_ms` from now. Call it about three times per `ttl_ms`. Sweeps out who was silent."""
        with redis_errors("reporting to be alive"):
            await _BEAT.run(self._redis, [self._key], [self._member, self._ttl_ms])

    async def remove(self) -> None:
        """Be gone at once (an orderly end)."""
        with redis_errors("reporting the end"):
            await run_command(self._redis, "ZREM", self._key, self._member)

    async def count_live(self) -> int:
        """How many processes are alive. Who asks need not `beat`."""
        with redis_errors("counting live processes"):
            return int(await _COUNT.run(self._redis, [self._key], []))
