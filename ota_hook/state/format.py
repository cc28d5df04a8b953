"""The format of what is in Redis: made once per deployment, read at start-up, refused where it is newer.

Owns the meta key's `format`, `buckets` and `list_seed`. FORMAT is this release's number; there is none before it.
"""

from __future__ import annotations

import secrets
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from ota_hook.errors import ConfigurationError
from ota_hook.state.connection import RedisClient, Script, ask_primaries, redis_errors
from ota_hook.state.keys import BUCKETS_MAX, DEFAULT_BUCKETS, DEFAULT_PREFIX, Keys, checked_prefix, meta_key

FORMAT: Final = 1
SEED_BYTES: Final = 8
"""Of the secret that the digests of device lists are made with."""
_OLDEST_REDIS: Final = (6, 2)

_OPEN: Final = Script("""
if redis.call('HEXISTS', KEYS[1], 'format') == 0 then
  redis.call('HSET', KEYS[1], 'format', ARGV[1], 'buckets', ARGV[2])
end
redis.call('HSETNX', KEYS[1], 'list_seed', ARGV[3])
return redis.call('HMGET', KEYS[1], 'format', 'buckets')
""")


async def open_layout(redis: RedisClient, *, prefix: str = DEFAULT_PREFIX, buckets: int = DEFAULT_BUCKETS) -> Keys:
    """The deployment's keys. The first process to come makes the meta key; for later ones `buckets` says nothing.

    Raises ConfigurationError for a newer format, a Redis before 6.2, a refused password or an unusable prefix;
    DependencyError where Redis does not answer.
    """
    meta = meta_key(checked_prefix(prefix))
    if not 1 <= buckets <= BUCKETS_MAX:
        raise ConfigurationError(f"The number of buckets must be from 1 to {BUCKETS_MAX}.")
    with redis_errors("reading the format of its data"):
        try:
            await ask_primaries(redis, _refuse_old_server)
            stored = await _OPEN.run(redis, [meta], [FORMAT, buckets, secrets.token_bytes(SEED_BYTES)])
        except RedisError as exc:
            # Over a unix socket redis-py wraps the refusal once more.
            if isinstance(exc, AuthenticationError) or isinstance(exc.__cause__, AuthenticationError):
                raise ConfigurationError(f"Redis refused the login: {exc}.", field="redis_url") from exc
            raise
    return _layout(prefix, *stored)


def _layout(prefix: str, stored_format: bytes, stored_buckets: bytes | None) -> Keys:
    buckets = int(stored_buckets) if stored_buckets is not None and stored_buckets.isdigit() else 0
    if stored_format.isdigit() and int(stored_format) > FORMAT:
        raise ConfigurationError(
            f"The data in Redis has format {int(stored_format)}; this release knows formats up to {FORMAT}.",
            mend="Start the release that wrote it, or a newer one.",
        )
    if stored_format != b"%d" % FORMAT or not 1 <= buckets <= BUCKETS_MAX:
        raise ConfigurationError(
            f"The keys under the Redis prefix {prefix!r} are not this program's.", mend="Use another prefix."
        )
    return Keys(prefix, buckets)


async def _refuse_old_server(redis: Redis) -> None:
    try:
        version = str((await redis.info("server")).get("redis_version", ""))
    except NoPermissionError:  # it says nothing of itself; the scripts will show what it can
        return
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST_REDIS:
        raise ConfigurationError(f"This Redis is {version or 'of an unknown version'}; it must be 6.2 or newer.")
