"""Requests under an `Idempotency-Key`: run once, answered the same for 24 hours (DESIGN.md §9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from ota_hook.state.keys import Keys


@dataclass(frozen=True, slots=True)
class Begun:
    """This request is the first: run it, then `finish` or `abandon`."""

    key: str
    owner: str
    body_digest: str


@dataclass(frozen=True, slots=True)
class Replay:
    """This request was answered before: answer the same."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RedisIdempotency:
    def __init__(self, redis: Redis, keys: Keys, *, keep_ms: int = 86_400_000, lock_ms: int = 60_000) -> None: ...

    async def begin(self, token_digest: str, route: str, key: str, body_digest: str) -> Begun | Replay:
        """Start a request, or find its answer. `route` is method and path.

        Raises InputError where the key was used with another body, ConflictError while the first request runs
        (a process that died frees it after `lock_ms`), DependencyError.
        """
        raise NotImplementedError

    async def finish(self, begun: Begun, *, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Keep the answer for `keep_ms`."""

    async def abandon(self, begun: Begun) -> None:
        """Forget the request (it failed and may be tried again under the same key)."""
