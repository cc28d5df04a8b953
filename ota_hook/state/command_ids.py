"""Command ids in blocks from Redis: implements ports.CommandIds.

Owns the counter. A process that ends leaves the rest of its block unused: ids are unique, not gapless.
"""

from __future__ import annotations

import asyncio
from typing import Final

from redis.asyncio import Redis

from ota_hook.errors import DependencyError
from ota_hook.model import COMMAND_ID_LIMIT
from ota_hook.state.connection import redis_errors
from ota_hook.state.keys import Keys

DEFAULT_BLOCK: Final = 1_000


class RedisCommandIds:
    """ports.CommandIds. Blocks of `block` ids are taken ahead of need: an id inside a block costs no round trip."""

    def __init__(self, redis: Redis, keys: Keys, *, block: int = DEFAULT_BLOCK) -> None:
        self._redis = redis
        self._key = keys.command_ids
        self._block = block
        self._ids = iter(range(0))
        self._left = 0
        self._ahead: asyncio.Task[range] | None = None

    async def next_id(self) -> int:
        """See ports.CommandIds. Waits for Redis only where a block ran out before the next one had come."""
        while (number := next(self._ids, None)) is None:
            await self._use_next_block()
        self._left -= 1
        if self._ahead is None and self._left * 2 < self._block:
            self._ahead = asyncio.create_task(self._take_block())
        return number

    async def close(self) -> None:
        """End the taking of a block that is under way."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.wait([self._ahead])
            _failed(self._ahead)
            self._ahead = None

    async def _use_next_block(self) -> None:
        """Continue with the block taken ahead. Of many who wait, the first puts it to use; all share a failure."""
        if self._ahead is None or _failed(self._ahead):
            self._ahead = asyncio.create_task(self._take_block())
        ahead = self._ahead
        # Not awaited itself: one caller that gives up must not take the block from the others.
        await asyncio.wait([ahead])
        block = ahead.result()
        if self._ahead is ahead:
            self._ahead = None
            self._ids, self._left = iter(block), len(block)

    async def _take_block(self) -> range:
        with redis_errors("taking command ids"):
            last = int(await self._redis.incrby(self._key, self._block))
        if last >= COMMAND_ID_LIMIT:
            raise DependencyError("The command ids are used up: the counter in Redis passed 2^53.")
        return range(last - self._block + 1, last + 1)


def _failed(task: asyncio.Task[range]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
