"""How the state modules reach Redis: a client for each way to deploy it, its time limits, its errors, and Lua scripts.

Knows nothing of keys or of what is stored. Nothing here is repeated that may have run: what may safely run twice, the
caller says. What every module does on any deployment goes through the functions here: a Cluster's client needs to be
told a command's key, and its pipelines go to several servers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - redis-py's
    NoScriptError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from ota_hook.errors import DependencyError
from ota_hook.state.primaries import Address, Primaries
from ota_hook.state.redis_url import Deployment
from ota_hook.state.routing import Argument, Command, KeyedCommand, Outcome, RoutedRedis, is_read_only

__all__ = [
    "DEFAULT_CONNECTIONS",
    "DEFAULT_TIMEOUT_SECONDS",
    "Argument",
    "Call",
    "Command",
    "RedisClient",
    "Script",
    "ask_primaries",
    "connect_redis",
    "list_primaries",
    "redis_errors",
    "run_command",
    "run_commands",
    "run_pipelined",
    "slot_of",
]

DEFAULT_TIMEOUT_SECONDS: Final = 5.0
DEFAULT_CONNECTIONS: Final = 32

_Answer = TypeVar("_Answer")

RedisClient = Redis | RoutedRedis
"""A single Redis is redis-py's own client: nothing stands between it and the callers."""


def connect_redis(
    url: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, connections: int = DEFAULT_CONNECTIONS
) -> RedisClient:
    """A client for the URL (see redis_url.py); it connects when first used. Close it with `aclose()`.

    `connections` is the most to one server; `timeout_seconds` bounds each of: waiting for a pooled connection,
    connecting, waiting for an answer. A URL that can't be read raises ConfigurationError.
    """
    primaries = Primaries(url)

    def connect(address: Address) -> Redis:
        limits = {"max_connections": connections, "timeout": timeout_seconds}
        options = primaries.connection_options(address, timeout_seconds=timeout_seconds)
        return Redis.from_pool(BlockingConnectionPool(**(limits | options)))

    if primaries.url.kind is Deployment.SINGLE:
        return connect(primaries.slots()[0].address)
    return RoutedRedis(primaries, connect)


@contextmanager
def redis_errors(doing: str) -> Iterator[None]:
    """What redis-py raises inside becomes a DependencyError that says what was being done."""
    try:
        yield
    except (RedisError, OSError) as exc:
        raise DependencyError(f"Redis failed while {doing}: {str(exc).rstrip('.')}.", mend="Try again.") from exc


async def run_command(redis: RedisClient, *command: Argument, key: Argument | None = None) -> Any:  # noqa: ANN401 - see Redis
    """One command; `key` is one of its keys, unless that is its first argument. Raises what redis-py raises."""
    if isinstance(redis, RoutedRedis):
        return await redis.run(command[1] if key is None else key, command)
    try:
        return await redis.execute_command(*command)  # type: ignore[no-untyped-call]
    except ResponseError as exc:
        await _leave_replica(redis, exc)
        raise


async def run_commands(redis: RedisClient, commands: Sequence[Command]) -> list[Any]:
    """Many commands, each with a key as its first argument, pipelined. Raises redis-py's first error.

    Those of one primary run in order; others' commands may run between them.
    """
    outcome = await _send(redis, [KeyedCommand(command[1], command) for command in commands])
    return _checked(outcome.answers)


async def list_primaries(redis: RedisClient) -> list[Redis]:
    """The client of each primary, for what is asked of servers and not of keys. Raises what redis-py raises."""
    return await redis.all_primaries() if isinstance(redis, RoutedRedis) else [redis]


def slot_of(redis: RedisClient, key: str) -> int:
    """What a script's keys must share: their slot in a Cluster; elsewhere it is 0 for all keys."""
    in_cluster = isinstance(redis, RoutedRedis) and redis.primaries.url.kind is Deployment.CLUSTER
    return Primaries.key_slot(key.encode()) if in_cluster else 0


async def ask_primaries(redis: RedisClient, ask: Callable[[Redis], Awaitable[_Answer]]) -> list[_Answer]:
    """Ask each primary something about itself, all at once. One that is away is left out: its keys are away as well.

    Raises what redis-py raises where none answers, where one refuses the login, and what `ask` itself raises.
    """
    asked = await asyncio.gather(*map(ask, await list_primaries(redis)), return_exceptions=True)
    answers: list[_Answer] = []
    away: BaseException | None = None
    for answer in asked:
        if not isinstance(answer, BaseException):
            answers.append(answer)
        elif isinstance(answer, AuthenticationError) or not isinstance(
            answer, ConnectionError | TimeoutError | OSError
        ):
            raise answer
        else:
            away = answer
    if away is not None and not answers:
        raise away
    return answers


class Script:
    """A Lua script that runs by its digest; a Redis that does not know it yet is sent the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: RedisClient, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401
        """One round trip. Raises what redis-py raises."""
        try:
            return await run_command(redis, "EVALSHA", self.sha, len(keys), *keys, *arguments, key=keys[0])
        except NoScriptError:
            return await run_command(redis, "EVAL", self.text, len(keys), *keys, *arguments, key=keys[0])


Call = tuple[Sequence[Argument], Sequence[Argument]]
"""The keys and the arguments of one run of a script."""


async def run_pipelined(
    redis: RedisClient, script: Script, calls: Sequence[Call], *, then: Sequence[Command] = ()
) -> tuple[list[Any], list[list[Any]]]:
    """Run `script` once per call and the commands `then` behind it on each connection used, in one round trip.

    Returns the answers, and per connection what `then` was answered, errors included. Runs that a Redis refused
    because it does not know the script are sent again. Raises what redis-py raises for a script that fails.
    """
    commands = [
        KeyedCommand(keys[0], ("EVALSHA", script.sha, len(keys), *keys, *arguments)) for keys, arguments in calls
    ]
    answers, waited = await _send(redis, commands, then=then)
    unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if unknown:
        load: Command = ("SCRIPT", "LOAD", script.text)
        again = await _send(redis, [commands[index] for index in unknown], before=[load], then=then)
        for index, answer in zip(unknown, again.answers, strict=True):
            answers[index] = answer
        # Where nothing ran before, nothing was waited for.
        waited = again.waited if len(unknown) == len(calls) else waited + again.waited
    return _checked(answers), waited


async def _send(
    redis: RedisClient,
    calls: Sequence[KeyedCommand],
    *,
    before: Sequence[Command] = (),
    then: Sequence[Command] = (),
) -> Outcome:
    """See RoutedRedis.send."""
    if isinstance(redis, RoutedRedis):
        return await redis.send(calls, before=before, then=then)
    async with redis.pipeline(transaction=False) as pipe:
        for command in before:
            pipe.execute_command(*command)
        for call in calls:
            pipe.execute_command(*call.command)
        for command in then:
            pipe.execute_command(*command)
        results = await pipe.execute(raise_on_error=False)
    answers = results[len(before) : len(before) + len(calls)]
    if refusal := next(filter(is_read_only, answers), None):
        await _leave_replica(redis, refusal)
    return Outcome(answers, [results[len(before) + len(calls) :]])


async def _leave_replica(redis: Redis, answer: object) -> None:
    """Connect anew where the server became a replica: the same name may lead to the new primary (managed Redis)."""
    if is_read_only(answer):
        await redis.connection_pool.disconnect(inuse_connections=False)


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers
