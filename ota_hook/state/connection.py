"""How the state modules reach Redis: one pooled client, its time limits, its errors, and Lua scripts.

Knows nothing of keys or of what is stored. Nothing here is retried: what may safely run twice, the caller says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from ota_hook.errors import ConfigurationError, DependencyError

DEFAULT_TIMEOUT_SECONDS: Final = 5.0
DEFAULT_CONNECTIONS: Final = 32

Argument = str | bytes | int
"""What a key or an argument of a command may be."""


def connect_redis(
    url: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, connections: int = DEFAULT_CONNECTIONS
) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`; it connects when first used. Close it with `aclose()`.

    `timeout_seconds` bounds each of: waiting for a pooled connection, connecting, waiting for an answer. A URL that
    can't be read raises ConfigurationError.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=timeout_seconds,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            # A command that was cut off may have run; only its author knows whether it may run again.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except ValueError as exc:
        raise ConfigurationError(
            "The Redis URL can't be read.",
            mend="Write redis://HOST:PORT/0, rediss://… or unix:///PATH.",
            field="redis_url",
        ) from exc
    return Redis.from_pool(pool)


@contextmanager
def redis_errors(doing: str) -> Iterator[None]:
    """What redis-py raises inside becomes a DependencyError that says what was being done."""
    try:
        yield
    except (RedisError, OSError) as exc:
        raise DependencyError(f"Redis failed while {doing}: {str(exc).rstrip('.')}.", mend="Try again.") from exc


async def run_command(redis: Redis, *command: Argument) -> Any:  # noqa: ANN401 - as many shapes as Redis has commands
    """One command, for those whose answer is wanted as it comes. Raises what redis-py raises."""
    return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


class Script:
    """A Lua script that runs by its digest; a Redis that does not know it yet is sent the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401
        """One round trip. Raises what redis-py raises."""
        try:
            return await run_command(redis, "EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await run_command(redis, "EVAL", self.text, len(keys), *keys, *arguments)


Call = tuple[Sequence[Argument], Sequence[Argument]]
"""The keys and the arguments of one run of a script."""


async def run_pipelined(
    redis: Redis, script: Script, calls: Sequence[Call], *, then: Sequence[Sequence[Argument]] = ()
) -> tuple[list[Any], list[Any]]:
    """Run `script` once per call and the commands `then` behind it on the same connection, in one round trip.

    Where Redis does not know the script, all of it runs a second time: the script must be safe to repeat. Raises what
    redis-py raises for a script that fails; an error of `then` is in its result.
    """
    for attempt in ("by digest", "by text"):
        async with redis.pipeline(transaction=False) as pipe:
            if attempt == "by text":
                pipe.execute_command("SCRIPT", "LOAD", script.text)
            for keys, arguments in calls:
                pipe.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
            for command in then:
                pipe.execute_command(*command)
            results = await pipe.execute(raise_on_error=False)
        if attempt == "by text":
            results = results[1:]
        if not any(isinstance(result, NoScriptError) for result in results):
            break
    answers = results[: len(calls)]
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers, results[len(calls) :]
