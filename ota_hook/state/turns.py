"""Whose turn it is with what one worker does at a time: implements ports.turns.Turn.

Owns one key, with the holder as its value. Must not know what is done.
"""

from __future__ import annotations

from typing import Final

from ota_hook.state.connection import RedisClient, Script, redis_errors

_TAKE: Final = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")

_END: Final = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], '', 'PX', ARGV[2])
return 1
""")
"""While nobody has the key, nobody takes it: it rests."""


class RedisTurn:
    """ports.turns.Turn. `holder` names this worker among all; who is lost holds its turn for `lease_ms` at most."""

    def __init__(self, redis: RedisClient, key: str, *, holder: str, lease_ms: int = 30_000) -> None:
        self._redis = redis
        self._key = key
        self._holder = holder
        self._lease_ms = lease_ms

    async def take(self) -> bool:
        """See ports.turns.Turn."""
        with redis_errors("asking whose turn it is"):
            return bool(await _TAKE.run(self._redis, (self._key,), (self._holder, self._lease_ms)))

    async def end(self, *, rest_ms: int) -> None:
        """See ports.turns.Turn."""
        with redis_errors("ending a turn"):
            await _END.run(self._redis, (self._key,), (self._holder, rest_ms))
