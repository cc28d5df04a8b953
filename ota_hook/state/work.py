"""The queue of workers: a Redis stream with a consumer group. Implements ports.WorkQueue.

Each entry is one piece of work on a run. Who takes it renews its claim while at work; an entry that nobody renewed is
taken over by another worker, and after `ATTEMPTS_MAX` attempts it is put aside, with its reason. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from ota_hook.ports import DeadWork, Work
from ota_hook.state.connection import RedisClient, Script, redis_errors, run_command
from ota_hook.state.keys import Keys, as_text

GROUP: Final = "workers"
LEASE_MS: Final = 10_000
ATTEMPTS_MAX: Final = 5
DEAD_KEPT: Final = 1_000

# KEYS: work. ARGV: group, consumer, ms without renewal, most. Returns entry, run, chunk, number of the attempt, …
_TAKE_OVER: Final = Script("""
local taken = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], '0-0', 'COUNT', ARGV[4])[2]
local found = {}
for _, entry in ipairs(taken) do
  if entry and entry[2] then
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)[1]
    found[#found + 1] = entry[1]
    found[#found + 1] = entry[2][2]
    found[#found + 1] = entry[2][4]
    found[#found + 1] = pending and pending[4] or 1
  end
end
return found
""")

# KEYS: work. ARGV: group, consumer, then entries. (redis-py takes what XCLAIM answers with JUSTID for entries.)
_RENEW: Final = Script("""
for i = 3, #ARGV do redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID') end
return 1
""")

# KEYS: work, dead work. ARGV: group, entry, run, chunk, reason, most kept.
_BURY: Final = Script("""
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'run', ARGV[3], 'chunk', ARGV[4], 'reason', ARGV[5])
return 1
""")

# KEYS: work. ARGV: group, entry.
_FINISH: Final = Script("""
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
""")


class RedisWorkQueue:
    """ports.WorkQueue. `consumer` names this process among all workers."""

    def __init__(self, redis: RedisClient, keys: Keys, *, consumer: str, lease_ms: int = LEASE_MS) -> None:
        self._redis = redis
        self._keys = keys
        self._consumer = consumer
        self.lease_ms = lease_ms

    async def open(self) -> None:
        """See ports.WorkQueue."""
        with redis_errors("opening the queue of work"):
            try:
                await run_command(
                    self._redis, "XGROUP", "CREATE", self._keys.work, GROUP, "0", "MKSTREAM", key=self._keys.work
                )
            except ResponseError as exc:
                if not str(exc).startswith("BUSYGROUP"):
                    raise

    async def add(self, run_id: str, chunk: int | None) -> None:
        """See ports.WorkQueue."""
        with redis_errors("queueing work"):
            await run_command(
                self._redis, "XADD", self._keys.work, "*", "run", run_id, "chunk", "" if chunk is None else chunk
            )

    async def claim(self, *, most: int, block_ms: int) -> list[Work]:
        """See ports.WorkQueue."""
        with redis_errors("taking work"):
            try:
                arguments = (GROUP, self._consumer, self.lease_ms, most)
                abandoned = await _TAKE_OVER.run(self._redis, (self._keys.work,), arguments)
                if abandoned:
                    return _taken_over(abandoned)
                answer = await run_command(
                    self._redis,
                    *("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", most),
                    *("BLOCK", block_ms, "STREAMS", self._keys.work, ">"),
                    key=self._keys.work,
                )
            except ResponseError as exc:
                if "NOGROUP" in str(exc):  # Redis came back without it; a script says it behind words of its own
                    await self.open()
                    return []
                raise
        return [Work(as_text(entry), *_work_of(fields), attempt=1) for entry, fields in _entries_of(answer)]

    async def renew(self, work: Sequence[Work]) -> None:
        """See ports.WorkQueue."""
        if not work:
            return
        with redis_errors("renewing claims"):
            await _RENEW.run(self._redis, (self._keys.work,), (GROUP, self._consumer, *[one.entry for one in work]))

    async def finish(self, work: Work) -> None:
        """See ports.WorkQueue."""
        with redis_errors("finishing work"):
            await _FINISH.run(self._redis, (self._keys.work,), (GROUP, work.entry))

    async def bury(self, work: Work, reason: str) -> None:
        """See ports.WorkQueue."""
        chunk = "" if work.chunk is None else work.chunk
        keys = (self._keys.work, self._keys.dead_work)
        with redis_errors("putting work aside"):
            await _BURY.run(self._redis, keys, (GROUP, work.entry, work.run_id, chunk, reason, DEAD_KEPT))

    async def load_dead(self, *, limit: int) -> list[DeadWork]:
        """See ports.WorkQueue."""
        with redis_errors("reading work that was put aside"):
            entries = await run_command(self._redis, "XREVRANGE", self._keys.dead_work, "+", "-", "COUNT", limit)
        dead = []
        for entry, fields in entries:
            named = _flat(fields)
            dead.append(DeadWork(int(as_text(entry).split("-")[0]), *_work_of(named), reason=as_text(named[b"reason"])))
        return dead


def _flat(fields: Any) -> dict[bytes, bytes]:  # noqa: ANN401 - redis-py gives either
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))


def _work_of(fields: dict[bytes, bytes]) -> tuple[str, int | None]:
    chunk = fields.get(b"chunk", b"")
    return as_text(fields[b"run"]), int(chunk) if chunk else None


def _entries_of(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:  # noqa: ANN401
    """The entries that XREADGROUP answered of one stream."""
    if not answer:
        return []
    streams = list(answer.values()) if isinstance(answer, dict) else [stream[1] for stream in answer]
    entries = streams[0][0] if isinstance(answer, dict) else streams[0]
    return [(entry, _flat(fields)) for entry, fields in entries]


def _taken_over(flat: Sequence[Any]) -> list[Work]:
    return [
        Work(as_text(entry), as_text(run_id), int(chunk) if chunk else None, attempt=int(attempt))
        for entry, run_id, chunk, attempt in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    ]
