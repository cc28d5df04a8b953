"""Blocks of command ids for who can wait: implements ports.commands.CommandIdBlocks. hot.py has the hook's own."""

from __future__ import annotations

from typing import Final

from ota_hook.errors import DependencyError
from ota_hook.model import COMMAND_ID_LIMIT
from ota_hook.state.connection import RedisClient, redis_errors, run_command
from ota_hook.state.keys import Keys

BLOCK: Final = 8_192


class RedisCommandIds:
    """ports.commands.CommandIdBlocks. What is left of a block when the process ends is skipped."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._key = keys.command_ids
        self._next = self._end = 0

    async def take_block(self, count: int) -> int:
        """See ports.commands.CommandIdBlocks."""
        if self._end - self._next < count:
            with redis_errors("taking command ids"):
                last = await run_command(self._redis, "INCRBY", self._key, BLOCK)
            if last >= COMMAND_ID_LIMIT:
                raise DependencyError("The command ids are used up.")
            self._next, self._end = last - BLOCK + 1, last + 1
        first = self._next
        self._next += count
        return first
