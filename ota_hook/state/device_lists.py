"""Device lists in Redis: staged under a new name, kept by the change that names them, never edited.

Owns the sets. Must not know which firmware names a list; catalogue.py does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

from ulid import ULID

from ota_hook.errors import InputError
from ota_hook.state.connection import RedisClient, redis_errors, run_command, run_commands
from ota_hook.state.keys import Keys, as_bytes, as_text

LIST_MAX: Final = 1_000_000
STAGED_SECONDS: Final = 3_600
"""A staged list that no change names is forgotten after this."""

_WRITE_BATCH: Final = 2_000
_READ_BATCH: Final = 5_000


class DeviceLists:
    """Every method raises DependencyError where Redis does not answer."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def stage(self, identifiers: AsyncIterator[str]) -> tuple[str, int]:
        """Write a list under a new name: (name, distinct count), the empty one has the name "" and no key.

        InputError for more than a million identifiers. What `identifiers` raises leaves nothing behind but an expiring
        key.
        """
        name = str(ULID())
        count = 0
        batch: list[bytes] = []
        async for identifier in identifiers:
            batch.append(as_bytes(identifier))
            if len(batch) == _WRITE_BATCH:
                count += await self._add(name, batch, count)
                batch = []
        if batch:
            count += await self._add(name, batch, count)
        return (name, count) if count else ("", 0)

    async def _add(self, name: str, batch: Sequence[bytes], count: int) -> int:
        key = self._keys.device_list(name)
        with redis_errors("writing a device list"):
            added, _ = await run_commands(self._redis, [("SADD", key, *batch), ("EXPIRE", key, STAGED_SECONDS)])
            if count + added > LIST_MAX:
                await run_command(self._redis, "UNLINK", key)
                raise InputError(f"A device list holds at most {LIST_MAX} devices.", field="devices")
        return int(added)

    async def load(self, name: str) -> frozenset[str] | None:
        """All members, None where there is no such list (any more)."""
        members: set[str] = set()
        async with aclosing(self.read(name)) as identifiers:
            async for identifier in identifiers:
                members.add(identifier)
        # A list that is not there and one that went while it was read: neither may be taken for a short list.
        with redis_errors("reading a device list"):
            there = await run_command(self._redis, "EXISTS", self._keys.device_list(name))
        return frozenset(members) if there else None

    async def read(self, name: str) -> AsyncGenerator[str]:
        """The members in no order; one may come twice."""
        cursor = 0
        while True:
            with redis_errors("reading a device list"):
                answer = await run_command(
                    self._redis, "SSCAN", self._keys.device_list(name), cursor, "COUNT", _READ_BATCH
                )
            cursor, members = int(answer[0]), answer[1]
            for member in members:
                yield as_text(member)
            if cursor == 0:
                return
