"""The format of what is in Redis: made once per deployment, read at start-up, refused where it is newer.

Owns the meta key's `format` and `buckets`. FORMAT is this release's number; there is none before it.
"""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from ota_hook.errors import ConfigurationError
from ota_hook.state.connection import redis_errors
from ota_hook.state.keys import BUCKETS_MAX, DEFAULT_BUCKETS, DEFAULT_PREFIX, Keys, checked_prefix, meta_key

FORMAT: Final = 1
_OLDEST_REDIS: Final = (6, 2)


async def open_layout(redis: Redis, *, prefix: str = DEFAULT_PREFIX, buckets: int = DEFAULT_BUCKETS) -> Keys:
    """The deployment's keys. The first process to come makes the meta key; later ones read it, and `buckets` is ignored.

    Raises ConfigurationError for a newer format, a Redis before 6.2, a refused password or an unusable prefix;
    DependencyError where Redis does not answer.
    """
    meta = meta_key(checked_prefix(prefix))
    if not 1 <= buckets <= BUCKETS_MAX:
        raise ConfigurationError(f"The number of buckets must be from 1 to {BUCKETS_MAX}.")
    with redis_errors("reading the format of its data"):
        try:
            await _refuse_old_server(redis)
            async with redis.pipeline(transaction=False) as pipe:
                # Field by field: of processes that start together, each finds what the first of them wrote.
                pipe.hsetnx(meta, "format", str(FORMAT))
                pipe.hsetnx(meta, "buckets", str(buckets))
                pipe.hmget(meta, "format", "buckets")
                stored = (await pipe.execute())[-1]
        except AuthenticationError as exc:
            raise ConfigurationError(f"Redis refused the login: {exc}.", field="redis_url") from exc
    return _layout(prefix, *stored)


def _layout(prefix: str, stored_format: bytes, stored_buckets: bytes) -> Keys:
    if not stored_format.isdigit() or not stored_buckets.isdigit() or not 1 <= int(stored_buckets) <= BUCKETS_MAX:
        raise ConfigurationError(f"The keys under the Redis prefix {prefix!r} are not this program's.", mend="Use another prefix.")
    if int(stored_format) > FORMAT:
        raise ConfigurationError(
            f"The data in Redis has format {int(stored_format)}; this release knows formats up to {FORMAT}.",
            mend="Start the release that wrote it, or a newer one.",
        )
    return Keys(prefix, int(stored_buckets))


async def _refuse_old_server(redis: Redis) -> None:
    version = str((await redis.info("server")).get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST_REDIS:
        raise ConfigurationError(f"This Redis is {version or 'of an unknown version'}; it must be 6.2 or newer.")
