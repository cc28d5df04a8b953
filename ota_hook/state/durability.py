"""How an administrator's write is confirmed before it is answered, and where Redis is configured to forget.

Knows nothing of what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from ota_hook.errors import DependencyError
from ota_hook.state.connection import (
    Call,
    Command,
    RedisClient,
    Script,
    ask_primaries,
    redis_errors,
    run_command,
    run_pipelined,
)

_MARK: Final = Script("return redis.call('SET', KEYS[1], '', 'PX', 1000)")

DEFAULT_WAIT_MS: Final = 2_000
"""Longer than the second that `appendfsync everysec` may take, shorter than a command's time limit."""


@contextmanager
def maybe_written() -> Iterator[None]:
    """A DependencyError inside leaves open whether a write happened, and says so."""
    try:
        yield
    except DependencyError as exc:
        exc.maybe_written = True
        raise


class DurableWriter:
    """Runs scripts and waits until Redis has them on its disk (WAITAOF, where the server can) and on `replicas`.

    WAITAOF came with Redis 7.2 and needs the append-only file; whether all servers can is asked once, at the first
    write, and again after one refused. `wait_ms` bounds each wait and must be below the client's time limit.
    """

    def __init__(self, redis: RedisClient, *, replicas: int = 0, wait_ms: int = DEFAULT_WAIT_MS) -> None:
        self._redis = redis
        self._replicas = replicas
        self._wait_ms = wait_ms
        self._reaches_disk: bool | None = None

    async def write(self, script: Script, calls: Sequence[Call]) -> tuple[list[Any], str | None]:
        """Run `script` once per (keys, arguments), pipelined: the results, and why they are not confirmed, or None.

        The script must be safe to run twice. Raises DependencyError where Redis fails: then it is not known whether
        it ran.
        """
        waits = await self._list_waits()
        with maybe_written(), redis_errors("writing"):
            results, waited = await run_pipelined(self._redis, script, calls, then=waits)
        return results, next(filter(None, (self._judge(waits, answers) for answers in waited)), None)

    async def write_or_fail(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """`write`, with DependencyError where the confirmation is missing. Its text says that the write happened."""
        results, unconfirmed = await self.write(script, calls)
        if unconfirmed is not None:
            raise DependencyError(unconfirmed, mend="Look at what is there before you try again.", maybe_written=True)
        return results

    async def confirm(self, keys: Sequence[str]) -> None:
        """Wait for all that was written before, on whatever connection, to the servers of the keys.

        Each server waits for its connection's own writes alone, so each of the keys is written, for a second. Raises as
        `write_or_fail` does.
        """
        if await self._list_waits():
            await self.write_or_fail(_MARK, [((key,), ()) for key in keys])

    async def _list_waits(self) -> list[Command]:
        with redis_errors("asking whether writes reach the disk"):
            if self._reaches_disk is None:
                self._reaches_disk = all(await ask_primaries(self._redis, _can_wait_for_disk))
        waits: list[Command] = []
        if self._reaches_disk:
            waits.append(("WAITAOF", 1, 0, self._wait_ms))
        if self._replicas:
            waits.append(("WAIT", self._replicas, self._wait_ms))
        return waits

    def _judge(self, waits: Sequence[Command], answers: Iterable[Any]) -> str | None:
        for wait, answer in zip(waits, answers, strict=True):
            if wait[0] == "WAITAOF":
                if isinstance(answer, ResponseError):  # the server changed its configuration, or is another one now
                    self._reaches_disk = None
                elif isinstance(answer, Exception) or answer[0] < 1:
                    return f"It was written, but Redis did not say within {self._wait_ms} ms that its disk has it."
            elif isinstance(answer, Exception) or answer < self._replicas:
                said = f"did not say within {self._wait_ms} ms that they have it."
                return f"It was written, but {self._replicas} replica(s) {said}"
        return None


async def _can_wait_for_disk(redis: Redis) -> bool:
    """Whether WAITAOF works here and is not bound to time out (`appendfsync no` never tells)."""
    try:
        await run_command(redis, "WAITAOF", 1, 0, 1)
    except ResponseError:  # unknown before 7.2; refused without an append-only file
        return False
    try:
        return bool((await redis.config_get("appendfsync")).get("appendfsync") != "no")
    except ResponseError:  # nobody may read its configuration: it is taken at its word
        return True


async def list_server_runs(redis: RedisClient) -> frozenset[str]:
    """Tells these primaries from others, and from themselves after a restart. Raises what redis-py raises."""
    return frozenset(await ask_primaries(redis, _run_of))


async def _run_of(redis: Redis) -> str:
    try:
        return str((await redis.info("server"))["run_id"])
    except NoPermissionError:  # it says nothing of itself
        return ""


async def list_risks(redis: RedisClient) -> list[str]:
    """Plain sentences on how this Redis may lose what it acknowledged; empty where it may not. For start-up's log.

    Of several primaries, each sentence once: they are usually configured alike.
    """
    with redis_errors("reading the server's facts"):
        found = await ask_primaries(redis, _list_risks_of)
    return list(dict.fromkeys(risk for risks in found for risk in risks))


async def _list_risks_of(redis: Redis) -> list[str]:
    persistence = await redis.info("persistence")
    memory = await redis.info("memory")
    risks = []
    if not persistence.get("aof_enabled"):
        risks.append(
            "Redis keeps no append-only file: what it acknowledged since its last snapshot is lost when it ends."
        )
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        risks.append(f"Redis evicts keys when its memory is full ({policy}): set maxmemory-policy to noeviction.")
    try:
        fsync = (await redis.config_get("appendfsync")).get("appendfsync")
        waits = await _can_wait_for_disk(redis)
    except (RedisError, OSError):
        risks.append("Redis does not let its configuration be read: when it writes to disk could not be checked.")
        return risks
    if persistence.get("aof_enabled") and fsync == "no":
        risks.append(
            "Redis leaves writing to disk to the operating system (appendfsync no): a power cut loses seconds."
        )
    elif persistence.get("aof_enabled") and fsync == "everysec" and not waits:
        risks.append(
            "Redis before 7.2 with appendfsync everysec: a power cut may lose the last second of acknowledged writes."
        )
    return risks
