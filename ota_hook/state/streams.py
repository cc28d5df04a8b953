"""Redis streams with a consumer group: what several processes share so that each entry is worked on by one at a time.

Knows nothing of what an entry says: fields come and go as they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from ota_hook.state.connection import RedisClient, Script, redis_errors, run_command
from ota_hook.state.keys import as_text

GROUP: Final = "workers"

# KEYS: stream. ARGV: group, consumer, ms without renewal, most. Returns entry, attempt, fields, …
_TAKE_OVER: Final = Script("""
local taken = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], '0-0', 'COUNT', ARGV[4])[2]
local found = {}
for _, entry in ipairs(taken) do
  if entry and entry[2] then
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)[1]
    found[#found + 1] = entry[1]
    found[#found + 1] = pending and pending[4] or 1
    found[#found + 1] = entry[2]
  end
end
return found
""")

# KEYS: stream. ARGV: group, consumer, then entries. (redis-py takes what XCLAIM answers with JUSTID for entries.)
_RENEW: Final = Script("""
for i = 3, #ARGV do redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID') end
return 1
""")

# KEYS: stream. ARGV: group, then entries.
_FINISH: Final = Script("""
for i = 2, #ARGV do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return 1
""")


class Entry(NamedTuple):
    """One entry that this consumer has. `attempt` counts who had it, from 1."""

    id: str
    attempt: int
    fields: dict[bytes, bytes]


class SharedStream:
    """One stream as one consumer of its group sees it. Every method raises DependencyError."""

    def __init__(self, redis: RedisClient, key: str, *, consumer: str, lease_ms: int) -> None:
        self._redis = redis
        self._key = key
        self._consumer = consumer
        self._lease_ms = lease_ms

    async def open(self, *, from_now: bool = False) -> None:
        """Make the group where it is not there. `from_now`: what is in the stream before it is nobody's."""
        with redis_errors("opening a stream"):
            try:
                await run_command(
                    self._redis,
                    "XGROUP",
                    "CREATE",
                    self._key,
                    GROUP,
                    "$" if from_now else "0",
                    "MKSTREAM",
                    key=self._key,
                )
            except ResponseError as exc:
                if not str(exc).startswith("BUSYGROUP"):
                    raise

    async def read(self, *, most: int, block_ms: int) -> list[Entry]:
        """What nobody renewed within the lease, or new entries; waits up to `block_ms` for some."""
        with redis_errors("reading a stream"):
            try:
                arguments = (GROUP, self._consumer, self._lease_ms, most)
                if abandoned := await _TAKE_OVER.run(self._redis, (self._key,), arguments):
                    return [
                        Entry(as_text(entry), int(attempt), _flat(fields))
                        for entry, attempt, fields in zip(abandoned[::3], abandoned[1::3], abandoned[2::3], strict=True)
                    ]
                answer = await run_command(
                    self._redis,
                    *("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", most),
                    *("BLOCK", block_ms, "STREAMS", self._key, ">"),
                    key=self._key,
                )
            except ResponseError as exc:
                if "NOGROUP" not in str(exc):  # a script says it behind words of its own
                    raise
                await self.open()  # Redis came back without it
                return []
        return [Entry(as_text(entry), 1, _flat(fields)) for entry, fields in _entries_of(answer)]

    async def renew(self, entries: Sequence[str]) -> None:
        """Say that this consumer is still at them."""
        if entries:
            with redis_errors("renewing claims"):
                await _RENEW.run(self._redis, (self._key,), (GROUP, self._consumer, *entries))

    async def finish(self, entries: Sequence[str]) -> None:
        """They are done: nobody gets them again."""
        if entries:
            with redis_errors("finishing work"):
                await _FINISH.run(self._redis, (self._key,), (GROUP, *entries))


def _flat(fields: Any) -> dict[bytes, bytes]:  # noqa: ANN401 - redis-py gives either
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))


def _entries_of(answer: Any) -> list[tuple[bytes, Any]]:  # noqa: ANN401
    """The entries that XREADGROUP answered of one stream."""
    if not answer:
        return []
    entries: list[tuple[bytes, Any]] = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
    return entries
