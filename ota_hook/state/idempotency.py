"""Requests under an `Idempotency-Key`, run once: implements ports.idempotency.IdempotencyStore.

Owns the expiring keys of such requests. Must not know what a request does, nor HTTP beyond status, headers and body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgpack
from ulid import ULID

from ota_hook.errors import ConflictError, InputError
from ota_hook.ports.idempotency import Begun, Replay
from ota_hook.state.connection import RedisClient, Script, redis_errors
from ota_hook.state.keys import Keys, as_bytes, as_text

DEFAULT_KEEP_MS: Final = 86_400_000
DEFAULT_LOCK_MS: Final = 60_000
ANSWER_MAX_BYTES: Final = 1_048_576
"""A longer answer is not kept; the request is, so that it does not run again."""

_IDS_MAX_BYTES: Final = 16 * 26 + 15
"""Sixteen ULIDs and the spaces between them."""

_FIELD: Final = "idempotency-key"

# A running request is [body digest, owner, false, ids], an answered one [body digest, '', answer]. The ids, spaces
# between them, are those of the requests that may have written. The lock's age follows from the time to live; a record
# without ids is of the previous release and lives only as long as its lock.
_BEGIN: Final = Script("""
local digest, owner, keep, lock, new_id, ids_bytes = unpack(ARGV)
local stored = redis.call('GET', KEYS[1])
local ids = ''
if stored then
  local request = cmsgpack.unpack(stored)
  if request[1] ~= digest then return {'other', ''} end
  if request[3] then return {'answered', request[3]} end
  ids = request[4]
  if request[2] == owner then return {'begun', ids} end
  if not ids or keep - redis.call('PTTL', KEYS[1]) < tonumber(lock) then return {'running', ''} end
end
ids = string.sub(ids == '' and new_id or ids .. ' ' .. new_id, -ids_bytes)
redis.call('SET', KEYS[1], cmsgpack.pack({digest, owner, false, ids}), 'PX', keep)
return {'begun', ids}
""")

# One whose lock ran out may still answer, unless another began meanwhile: then the other's answer counts.
_FINISH: Final = Script("""
local stored = redis.call('GET', KEYS[1])
if stored and cmsgpack.unpack(stored)[2] ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], cmsgpack.pack({ARGV[1], '', ARGV[3]}), 'PX', ARGV[4])
return 1
""")

_ABANDON: Final = Script("""
local stored = redis.call('GET', KEYS[1])
if not stored or cmsgpack.unpack(stored)[2] ~= ARGV[2] then return end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], cmsgpack.pack({ARGV[1], '', false, ARGV[3]}), 'PX', ARGV[4])
end
""")


class RedisIdempotency:
    """ports.idempotency.IdempotencyStore."""

    def __init__(
        self, redis: RedisClient, keys: Keys, *, keep_ms: int = DEFAULT_KEEP_MS, lock_ms: int = DEFAULT_LOCK_MS
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._keep_ms = keep_ms
        self._lock_ms = lock_ms

    async def begin(
        self, token_digest: str, route: str, key: str, body_digest: str, *, new_id: str = ""
    ) -> Begun | Replay:
        """Start a request, or find its answer. `route` is method and path; call it when the body has been read.

        Raises InputError where the key was used with another body, ConflictError while the first request runs
        (a process that died frees it after `lock_ms`, for the same body). `new_id` is a ULID; the last 16 are known.
        """
        # Lengths keep ("a", "bc") apart from ("ab", "c").
        scope = b"".join(b"%d:%b" % (len(part), part) for part in map(as_bytes, (token_digest, route, key)))
        stored_as = self._keys.idempotency(hashlib.sha256(scope).hexdigest())
        owner = str(ULID())
        with redis_errors("looking for the request's first answer"):
            arguments = (body_digest, owner, self._keep_ms, self._lock_ms, new_id, _IDS_MAX_BYTES)
            state, answer = await _BEGIN.run(self._redis, [stored_as], arguments)
        match state:
            case b"begun":
                earlier = tuple(known for known in as_text(answer).split() if known != new_id)
                return Begun(stored_as, owner, body_digest, new_id, earlier)
            case b"other":
                raise InputError(
                    "This Idempotency-Key was used with another body.", mend="Use a new key.", field=_FIELD
                )
            case b"running":
                raise ConflictError(
                    "A request with this Idempotency-Key is still running.", mend="Ask again in a moment.", field=_FIELD
                )
        return _replay(answer)

    async def finish(self, begun: Begun, *, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Keep the answer for `keep_ms`."""
        answer: bytes = b"" if len(body) > ANSWER_MAX_BYTES else msgpack.packb((status, dict(headers), body))
        arguments = (begun.body_digest, begun.owner, answer, self._keep_ms)
        with redis_errors("keeping the request's answer"):
            await _FINISH.run(self._redis, [begun.key], arguments)

    async def abandon(self, begun: Begun, *, maybe_written: bool = False) -> None:
        """See ports.idempotency.IdempotencyStore."""
        ids = (*begun.earlier_ids, begun.new_id) if maybe_written else begun.earlier_ids
        lives_ms = max(1, self._keep_ms - self._lock_ms)  # so old that its lock has run out
        with redis_errors("forgetting the request"):
            arguments = (begun.body_digest, begun.owner, " ".join(ids).strip(), lives_ms)
            await _ABANDON.run(self._redis, [begun.key], arguments)


def _replay(answer: bytes) -> Replay:
    if not answer:
        raise ConflictError(
            "A request with this Idempotency-Key was done, but its answer was too long to keep.", field=_FIELD
        )
    status, headers, body = msgpack.unpackb(answer)
    return Replay(status, headers, body)
