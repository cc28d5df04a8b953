"""Command ids in blocks from Redis: implements ports.CommandIds."""

from __future__ import annotations

from redis.asyncio import Redis

from ota_hook.state.keys import Keys


class RedisCommandIds:
    """ports.CommandIds. Blocks of `block` ids are taken ahead of need: an id inside a block costs no round trip."""

    def __init__(self, redis: Redis, keys: Keys, *, block: int = 1_000) -> None: ...

    async def close(self) -> None:
        """End the taking of a block that is under way."""
