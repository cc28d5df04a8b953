"""Requests under an `Idempotency-Key`, run once: implements ports.IdempotencyStore.

Owns the expiring keys of such requests. Must not know what a request does, nor HTTP beyond status, headers and body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgpack
from ulid import ULID

from ota_hook.errors import ConflictError, InputError
from ota_hook.ports import Begun, Replay
from ota_hook.state.connection import RedisClient, Script, redis_errors
from ota_hook.state.keys import Keys, as_bytes

DEFAULT_KEEP_MS: Final = 86_400_000
DEFAULT_LOCK_MS: Final = 60_000
ANSWER_MAX_BYTES: Final = 1_048_576
"""A longer answer is not kept; the request is, so that it does not run again."""

_FIELD: Final = "idempotency-key"

# A running request is [body digest, owner], an answered one [body digest, '', answer].
_BEGIN: Final = Script("""
local stored = redis.call('GET', KEYS[1])
if not stored then
  redis.call('SET', KEYS[1], cmsgpack.pack({ARGV[1], ARGV[2]}), 'PX', ARGV[3])
  return {'begun', ''}
end
local request = cmsgpack.unpack(stored)
if request[1] ~= ARGV[1] then return {'other', ''} end
if request[3] then return {'answered', request[3]} end
if request[2] == ARGV[2] then return {'begun', ''} end
return {'running', ''}
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
if stored and cmsgpack.unpack(stored)[2] == ARGV[1] then redis.call('DEL', KEYS[1]) end
""")


class RedisIdempotency:
    """ports.IdempotencyStore."""

    def __init__(
        self, redis: RedisClient, keys: Keys, *, keep_ms: int = DEFAULT_KEEP_MS, lock_ms: int = DEFAULT_LOCK_MS
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._keep_ms = keep_ms
        self._lock_ms = lock_ms

    async def begin(self, token_digest: str, route: str, key: str, body_digest: str) -> Begun | Replay:
        """Start a request, or find its answer. `route` is method and path; call it when the body has been read.

        Raises InputError where the key was used with another body, ConflictError while the first request runs
        (a process that died frees it after `lock_ms`).
        """
        # Lengths keep ("a", "bc") apart from ("ab", "c").
        scope = b"".join(b"%d:%b" % (len(part), part) for part in map(as_bytes, (token_digest, route, key)))
        stored_as = self._keys.idempotency(hashlib.sha256(scope).hexdigest())
        owner = str(ULID())
        with redis_errors("looking for the request's first answer"):
            state, answer = await _BEGIN.run(self._redis, [stored_as], [body_digest, owner, self._lock_ms])
        match state:
            case b"begun":
                return Begun(stored_as, owner, body_digest)
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

    async def abandon(self, begun: Begun) -> None:
        """Forget the request (it failed and may be tried again under the same key)."""
        with redis_errors("forgetting the request"):
            await _ABANDON.run(self._redis, [begun.key], [begun.owner])


def _replay(answer: bytes) -> Replay:
    if not answer:
        raise ConflictError(
            "A request with this Idempotency-Key was done, but its answer was too long to keep.", field=_FIELD
        )
    status, headers, body = msgpack.unpackb(answer)
    return Replay(status, headers, body)
