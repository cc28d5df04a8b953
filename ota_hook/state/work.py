"""The queue of workers: implements ports.work.WorkQueue.

Who takes a piece of work renews its claim while at it; what nobody renewed is taken over by another worker, and after
too many attempts it is put aside with its reason. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ota_hook.ports.work import DeadWork, Work
from ota_hook.state.connection import RedisClient, Script, redis_errors, run_command
from ota_hook.state.keys import Keys, as_text
from ota_hook.state.streams import GROUP, Entry, SharedStream

LEASE_MS: Final = 10_000
DEAD_KEPT: Final = 1_000

# KEYS: work, dead work. ARGV: group, entry, run, chunk, reason, most kept.
_BURY: Final = Script("""
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'run', ARGV[3], 'chunk', ARGV[4], 'reason', ARGV[5])
return 1
""")


class RedisWorkQueue:
    """ports.work.WorkQueue. `consumer` names this process among all workers."""

    def __init__(self, redis: RedisClient, keys: Keys, *, consumer: str, lease_ms: int = LEASE_MS) -> None:
        self._redis = redis
        self._keys = keys
        self._stream = SharedStream(redis, keys.work, consumer=consumer, lease_ms=lease_ms)

    async def open(self) -> None:
        """See ports.work.WorkQueue."""
        await self._stream.open()

    async def add(self, run_id: str, chunk: int | None) -> None:
        """See ports.work.WorkQueue."""
        named = "" if chunk is None else chunk
        with redis_errors("queueing work"):
            await run_command(self._redis, "XADD", self._keys.work, "*", "run", run_id, "chunk", named)

    async def claim(self, *, most: int, block_ms: int) -> list[Work]:
        """See ports.work.WorkQueue."""
        return [_work_of(entry) for entry in await self._stream.read(most=most, block_ms=block_ms)]

    async def renew(self, work: Sequence[Work]) -> None:
        """See ports.work.WorkQueue."""
        await self._stream.renew([one.entry for one in work])

    async def finish(self, work: Work) -> None:
        """See ports.work.WorkQueue."""
        await self._stream.finish([work.entry])

    async def bury(self, work: Work, reason: str) -> None:
        """See ports.work.WorkQueue."""
        chunk = "" if work.chunk is None else work.chunk
        keys = (self._keys.work, self._keys.dead_work)
        with redis_errors("putting work aside"):
            await _BURY.run(self._redis, keys, (GROUP, work.entry, work.run_id, chunk, reason, DEAD_KEPT))

    async def load_dead(self, *, limit: int) -> list[DeadWork]:
        """See ports.work.WorkQueue."""
        with redis_errors("reading work that was put aside"):
            entries = await run_command(self._redis, "XREVRANGE", self._keys.dead_work, "+", "-", "COUNT", limit)
        dead = []
        for entry, fields in entries:
            work = _work_of(Entry(as_text(entry), 1, fields))
            at_ms = int(work.entry.partition("-")[0])
            dead.append(DeadWork(at_ms, work.run_id, work.chunk, as_text(fields[b"reason"])))
        return dead


def _work_of(entry: Entry) -> Work:
    chunk = entry.fields[b"chunk"]
    return Work(entry.id, as_text(entry.fields[b"run"]), int(chunk) if chunk else None, entry.attempt)
