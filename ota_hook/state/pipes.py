"""A pipe to each primary of the deployment, and which of them has a key. Follows failovers and moved slots."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from functools import partial
from typing import Final

import structlog
from redis.exceptions import RedisError

from ota_hook.endings import end_tasks
from ota_hook.errors import DependencyError
from ota_hook.state import hot, hot_children
from ota_hook.state.pipe import RedisPipe
from ota_hook.state.primaries import Address, Primaries
from ota_hook.state.redis_url import Deployment

_SCRIPTS: Final = (*hot.SCRIPTS, *hot_children.SCRIPTS)
_LOOK_S: Final = 1.0
"""So often it is looked whether the slots of a Cluster are where they were, while a pipe of it is away; else rarely."""
_LOOKS_BETWEEN: Final = 10
_LOOK_AGAIN_S: Final = 0.1
"""A node that says that a slot has moved is believed at once, but not more often."""

_log = structlog.get_logger("ota_hook.pipes")


class PipeSet:
    """hot_calls.Pipes. One pipe where there is one primary (a single Redis, or Sentinel's), else one per primary."""

    def __init__(self, primaries: Primaries, *, budget_ms: int) -> None:
        self._primaries = primaries
        self._budget_ms = budget_ms
        self._is_cluster = primaries.url.kind is Deployment.CLUSTER
        self._by_address: dict[Address, RedisPipe] = {}
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._ranges: list[RedisPipe] = []
        self._moved = asyncio.Event()
        self._nowhere = self._new_pipe(None)  # never started: refuses everything
        self._only: RedisPipe = self._nowhere
        self._task: asyncio.Task[None] | None = None

    def of(self, key: str) -> RedisPipe:
        """The pipe to the primary that has `key`; one that refuses where no primary serves its slot."""
        if not self._is_cluster:
            return self._only
        slot = self._primaries.key_slot(key.encode())
        at = bisect_right(self._firsts, slot) - 1
        return self._ranges[at] if at >= 0 and slot <= self._lasts[at] else self._nowhere

    @property
    def available(self) -> bool:
        """Whether every primary takes commands now."""
        pipes = self._by_address.values() if self._is_cluster else (self._only,)
        return bool(pipes) and all(pipe.available for pipe in pipes)

    async def start(self) -> None:
        """Connect. DependencyError where it can't be found out who the primaries are, or none takes commands."""
        if not self._is_cluster:
            self._only = self._new_pipe(None)
            await self._only.start()
        else:
            try:
                await self._primaries.refresh()
            except (RedisError, OSError) as exc:
                raise DependencyError(f"The Redis Cluster can't be reached: {exc}.", mend="Try again.") from exc
            await self._adopt()
            self._task = asyncio.create_task(self._keep_looking(), name="redis slots")
        if not self.available:
            raise DependencyError("Redis can't be reached.", mend="Is it running, and is OTA_HOOK_REDIS_URL right?")

    async def close(self) -> None:
        if self._task is not None:
            await end_tasks([self._task])
        for pipe in (*self._by_address.values(), self._only):
            await pipe.close()

    def _new_pipe(self, address: Address | None) -> RedisPipe:
        return RedisPipe(
            partial(self._locate, address), scripts=_SCRIPTS, budget_ms=self._budget_ms, on_moved=self._moved.set
        )

    async def _locate(self, address: Address | None) -> Address:
        """Where to connect: to that node of a Cluster, or to whoever is the primary now."""
        if address is not None:
            return address
        await self._primaries.refresh()
        return await self._primaries.locate()

    async def _keep_looking(self) -> None:
        looks = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._moved.wait()
            looks += 1
            if self.available and looks % _LOOKS_BETWEEN and not self._moved.is_set():
                continue
            self._moved.clear()
            try:
                await self._primaries.refresh()
                await self._adopt()
            except Exception as exc:  # noqa: BLE001 - whatever a node says, the looking must go on
                unforeseen = not isinstance(exc, RedisError | OSError)
                _log.warning("primaries_unknown", problem=str(exc), exc_info=unforeseen)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _adopt(self) -> None:
        """Have a pipe for each primary that the slots name, and none for others."""
        ranges = list(self._primaries.slots())
        wanted = {found.address for found in ranges}
        new = {address: self._new_pipe(address) for address in wanted - self._by_address.keys()}
        self._by_address |= new
        await asyncio.gather(*(pipe.start() for pipe in new.values()))
        self._firsts = [found.first for found in ranges]
        self._lasts = [found.last for found in ranges]
        self._ranges = [self._by_address[found.address] for found in ranges]
        for address in self._by_address.keys() - wanted:
            await self._by_address.pop(address).close()
