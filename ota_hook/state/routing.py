"""A client for deployments whose primaries move: behind Sentinels, or of a Cluster.

Sends each command to the primary that has its key, follows redirections, and looks for the new primary where one is
gone. To each primary it is a plain redis-py client, so all behaves there as on a single Redis. (redis-py's own Cluster
client can't say which connection took a write, which WAIT needs to know; it refuses where its connections are in use
instead of waiting; and it cuts the connections to healthy primaries while another one fails.)

**What is repeated.** A command that the server refused before it did anything (it was moved, the Cluster is down, a
demoted primary is read-only) is sent again, for about a second and a half. One whose answer was lost is not: it may
have run, and only its author knows whether it may run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog
from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from ota_hook.state.primaries import Address, Primaries

Argument = str | bytes | int
"""What a key or an argument of a command may be."""
Command = Sequence[Argument]

PAUSES_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Before each attempt after one that was refused."""
REDIRECTIONS_MAX: Final = 8
LOOK_AGAIN_SECONDS: Final = 0.1
"""At most so often is asked where the primaries are; while one is down, every command would."""
RETIRED_SECONDS: Final = 15.0
"""A server that is no primary (any more) keeps its connections so long: commands may still be under way there."""

_log = structlog.get_logger("ota_hook.state.routing")


class KeyedCommand(NamedTuple):
    """A command and one of its keys (all are in one slot)."""

    key: Argument
    command: Command


class Outcome(NamedTuple):
    """What came of a batch."""

    answers: list[Any]
    """One per command, in order; a ResponseError where the server refused it."""
    waited: list[list[Any]]
    """Per connection that ran some of the commands, the answers to what was sent behind them, errors included."""


class _Target(NamedTuple):
    address: Address
    asking: bool = False
    """The slot is on its way there: the server takes a command only behind ASKING."""


class RoutedRedis:
    """See the module. `connect` makes the client of one primary; each is closed with this one."""

    def __init__(self, primaries: Primaries, connect: Callable[[Address], Redis]) -> None:
        self.primaries = primaries
        self._connect = connect
        self._clients: dict[Address, Redis] = {}
        self._used_at: dict[Address, float] = {}
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Close every connection."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
            self._looking = None
        await self.primaries.aclose()
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    async def primary_of(self, key: Argument) -> Redis:
        """The client of the primary that has the key, as far as is known. Raises what redis-py raises."""
        return self._client(await self._locate(key))

    async def all_primaries(self) -> list[Redis]:
        """A client per primary, in the order of their slots. Raises what redis-py raises."""
        await self.primaries.locate()
        return [self._client(address) for address in dict.fromkeys(found.address for found in self.primaries.slots())]

    async def send(
        self, calls: Sequence[KeyedCommand], *, before: Sequence[Command] = (), then: Sequence[Command] = ()
    ) -> Outcome:
        """Run each command where its key is, those of one primary in one round trip and in order.

        `before` and `then` run on each connection that is used, in front of and behind its commands: WAIT speaks of
        the connection's own writes. Raises redis-py's error where a connection fails; some commands may have run.
        """
        answers: list[Any] = [None] * len(calls)
        waited: list[list[Any]] = []
        left: dict[int, _Target | None] = dict.fromkeys(range(len(calls)))
        refusals = iter(PAUSES_SECONDS)
        for _ in range(REDIRECTIONS_MAX):
            refused = False
            for indices, found, behind in await self._send_once(calls, left, before, then):
                done = 0
                for index, answer in zip(indices, found, strict=True):
                    answers[index] = answer
                    if _is_refusal(answer):
                        # One redirection is followed at once; servers that point at each other are given time.
                        hasty = left[index] is None and isinstance(answer, AskError)
                        refused = refused or not hasty
                        left[index] = self._redirection(answer)
                    else:
                        del left[index]
                        done += 1
                if done and then:
                    waited.append(behind)
            if not left:
                break
            pause = next(refusals, None) if refused else 0.0
            if pause is None:
                break
            await asyncio.sleep(pause)
        return Outcome(answers, waited)

    async def run(self, key: Argument, command: Command) -> Any:  # noqa: ANN401 - as many shapes as Redis has commands
        """One command, where its key is. Raises what redis-py raises."""
        answer = (await self.send([KeyedCommand(key, command)])).answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    # ---- one attempt

    async def _send_once(
        self,
        calls: Sequence[KeyedCommand],
        left: Mapping[int, _Target | None],
        before: Sequence[Command],
        then: Sequence[Command],
    ) -> list[tuple[list[int], list[Any], list[Any]]]:
        """Per connection: the calls that it was sent, their answers, the answers to `then`."""
        groups: dict[_Target, list[int]] = {}
        for index, target in left.items():
            groups.setdefault(target or _Target(await self._locate(calls[index].key)), []).append(index)
        outcomes = await asyncio.gather(
            *(
                self._send_to(target, [calls[index].command for index in indices], before, then)
                for target, indices in groups.items()
            ),
            return_exceptions=True,
        )
        sent = []
        for indices, outcome in zip(groups.values(), outcomes, strict=True):
            if isinstance(outcome, BaseException):
                if isinstance(outcome, RedisError | OSError):
                    self._look_again()
                raise outcome
            sent.append((indices, *outcome))
        return sent

    async def _send_to(
        self, target: _Target, commands: Sequence[Command], before: Sequence[Command], then: Sequence[Command]
    ) -> tuple[list[Any], list[Any]]:
        lead = ("ASKING",) if target.asking else None
        async with self._client(target.address).pipeline(transaction=False) as pipe:
            for command in before:
                pipe.execute_command(*command)
            for command in commands:
                if lead is not None:
                    pipe.execute_command(*lead)
                pipe.execute_command(*command)
            for command in then:
                pipe.execute_command(*command)
            results = await pipe.execute(raise_on_error=False)
        own = results[len(before) : len(results) - len(then)]
        return own[1::2] if target.asking else own, results[len(results) - len(then) :]

    def _redirection(self, refusal: ResponseError) -> _Target | None:
        """Where to send a refused command next; None: wherever the primary is by then."""
        if not isinstance(refusal, AskError):
            self._look_again()
            return None
        target = _Target(
            self.primaries.address_at(refusal.host, refusal.port), asking=not isinstance(refusal, MovedError)
        )
        if not target.asking:
            self._look_again()
        return target

    async def _locate(self, key: Argument) -> Address:
        raw = key if isinstance(key, bytes) else str(key).encode()
        try:
            return await self.primaries.locate(Primaries.key_slot(raw))
        except RedisError:
            self._look_again()
            raise

    def _client(self, address: Address) -> Redis:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._connect(address)
        self._used_at[address] = time.monotonic()
        return client

    # ---- following

    def _look_again(self) -> None:
        """Have it asked, beside what goes on, where the primaries are."""
        if self._looking is not None and not self._looking.done():
            return
        if time.monotonic() - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._looking = asyncio.create_task(self._look(), name="redis primaries")

    async def _look(self) -> None:
        try:
            await self.primaries.refresh()
        except (RedisError, OSError) as exc:
            _log.debug("redis_primaries_unknown", problem=str(exc))
        finally:
            self._looked_at = time.monotonic()
        await self._retire()

    async def _retire(self) -> None:
        """Close the clients of servers that are primaries no longer and have nothing under way."""
        in_use = {found.address for found in self.primaries.slots()}
        limit = time.monotonic() - RETIRED_SECONDS
        for address in [address for address, used_at in self._used_at.items() if used_at < limit]:
            if address not in in_use:
                del self._used_at[address]
                client = self._clients.pop(address, None)
                if client is not None:
                    await client.aclose()


def is_read_only(answer: object) -> bool:
    """Whether a server refused a write because it is a replica now. (Redis 6 hides it in a script's error.)"""
    return isinstance(answer, ReadOnlyError) or (isinstance(answer, ResponseError) and "-READONLY " in str(answer))


def _is_refusal(answer: object) -> bool:
    """Whether the server did nothing, and the same command may succeed elsewhere or later."""
    return isinstance(answer, AskError | ClusterDownError | TryAgainError) or is_read_only(answer)
