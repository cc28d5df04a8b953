"""Where the primaries are: one that is named, one that Sentinels name, or one per range of a Cluster's slots.

Finds them through redis-py and remembers what it found until `refresh`. Must not know what is sent there, and sends
nothing itself but those questions.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from bisect import bisect_right
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import structlog
from redis import crc
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - redis-py's, as everywhere in this folder
    NoPermissionError,
    RedisError,
)

from ota_hook.endings import end_tasks
from ota_hook.state.packing import PACKED
from ota_hook.state.redis_url import Deployment, RedisUrl, parse_redis_url

SLOTS: Final = 16_384
ASK_SECONDS: Final = 1.0
"""How long to wait for one Sentinel or node that is asked where the primaries are."""

_log = structlog.get_logger("ota_hook.state.primaries")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is and how to log in there. `path` is a unix socket's; host and port are meaningless then."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    tls: ssl.SSLContext | None = field(default=None, compare=False, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    @property
    def login(self) -> tuple[tuple[str, ...], ...]:
        """The commands that a new connection begins with: AUTH and SELECT, where they are needed."""
        commands: list[tuple[str, ...]] = []
        if self.password is not None:
            user = () if self.username is None else (self.username,)
            commands.append(("AUTH", *user, self.password))
        if self.db:
            commands.append(("SELECT", str(self.db)))
        return tuple(commands)


class SlotRange(NamedTuple):
    """The slots from `first` to `last`, both included, and the primary that has them."""

    first: int
    last: int
    address: Address


class Primaries:
    """The primaries that a URL leads to. ConfigurationError for a URL that can't be read."""

    def __init__(self, url: str, *, ask_seconds: float = ASK_SECONDS) -> None:
        self.url: RedisUrl = parse_redis_url(url)
        self._ask_seconds = ask_seconds
        self._ranges: tuple[SlotRange, ...] = ()
        self._firsts: list[int] = []
        self._others: tuple[tuple[str, int], ...] = ()
        self._asking: asyncio.Task[None] | None = None
        if self.url.kind is Deployment.SINGLE:
            host, port = self.url.nodes[0] if self.url.nodes else ("", 0)
            self._adopt((SlotRange(0, SLOTS - 1, self.address_at(host, port)),))

    @staticmethod
    def key_slot(key: bytes) -> int:
        """The slot of a key: of what stands between its first braces, where there is something."""
        return crc.key_slot(key)

    def slots(self) -> Sequence[SlotRange]:
        """The ranges last found, ascending; empty before the first `refresh` or `locate`. Free.

        Without a Cluster it is one range of all slots. A slot that no primary serves is in none.
        """
        return self._ranges

    async def locate(self, slot: int | None = None) -> Address:
        """The primary of a slot; any primary for None. From memory: call `refresh` first where it may have moved.

        Raises what `refresh` raises; redis-py's ConnectionError where no primary serves the slot.
        """
        if not self._ranges:
            await self.refresh()
        if slot is None:
            return self._ranges[0].address
        at = bisect_right(self._firsts, slot) - 1
        if at < 0 or slot > self._ranges[at].last:
            raise ConnectionError(f"No primary of the Cluster serves slot {slot}")
        return self._ranges[at].address

    async def refresh(self) -> None:
        """Ask again who the primaries are. Callers at the same time share one question and its answer.

        Takes up to `ask_seconds` where a Sentinel or node is silent. Raises redis-py's RedisError (or OSError) where
        nobody could say; what was known stays.
        """
        if self.url.kind is Deployment.SINGLE:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="redis primaries")
            # Whoever waited may have been cancelled: the failure is then nobody's, and no news either.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._asking)

    async def aclose(self) -> None:
        """End a question that is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
            self._asking = None

    def address_at(self, host: str, port: int) -> Address:
        """A server of this deployment, as one that redirects names it."""
        url = self.url
        return Address(
            host=host,
            port=port,
            path=url.path,
            tls=url.tls,
            username=url.username,
            password=url.password,
            db=url.db,
        )

    def connection_options(self, address: Address, *, timeout_seconds: float) -> dict[str, Any]:
        """What redis-py's connections to it are made with; `timeout_seconds` bounds connecting, and each answer.

        The URL's own options win. Nothing is retried: a command that was cut off may have run, and only its author
        knows whether it may run again.
        """
        place = {"path": address.path} if address.path is not None else {"host": address.host, "port": address.port}
        options = _options(timeout_seconds) | place | dict(self.url.options)
        return options | {"connection_class": PACKED[options["connection_class"]]}

    # ---- asking

    async def _ask(self) -> None:
        before = {found.address for found in self._ranges}
        if self.url.kind is Deployment.SENTINEL:
            self._adopt((SlotRange(0, SLOTS - 1, await self._ask_sentinels()),))
        else:
            self._adopt(await self._ask_cluster())
        after = {found.address for found in self._ranges}
        if before and before != after:
            gone, new = sorted(map(str, before - after)), sorted(map(str, after - before))
            _log.warning("redis_primaries_changed", gone=gone, new=new)

    def _adopt(self, ranges: tuple[SlotRange, ...]) -> None:
        self._ranges = ranges
        self._firsts = [found.first for found in ranges]

    async def _ask_sentinels(self) -> Address:
        """Whom most of them name. All are asked at once: one that is silent or cut off neither delays nor misleads."""
        asked = [asyncio.create_task(self._ask_sentinel(host, port)) for host, port in self.url.nodes]
        votes: Counter[Address] = Counter()
        problems: list[Exception] = []
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    named = await answer
                except (RedisError, OSError) as exc:
                    problems.append(exc)
                    continue
                votes[named] += 1
                if votes[named] * 2 > len(asked):
                    return named
        finally:
            await end_tasks(asked)
            for task in asked:
                if not task.cancelled():
                    task.exception()
        if not votes:
            # That a login was refused says more than that another Sentinel is down.
            raise next((exc for exc in problems if isinstance(exc, AuthenticationError)), problems[0])
        (named, most), *others = votes.most_common(2)
        if others and others[0][1] == most:
            raise ConnectionError(f"the Sentinels disagree: {named} or {others[0][0]}")
        return named

    async def _ask_sentinel(self, host: str, port: int) -> Address:
        """Whom one Sentinel names, once that one says itself that it is the primary."""
        options = _options(self._ask_seconds) | dict(self.url.sentinel_options) | {"host": host, "port": port}
        sentinel = Sentinel([])  # type: ignore[no-untyped-call]
        sentinel.sentinels = [Redis.from_pool(BlockingConnectionPool(**options))]
        try:
            primary = self.address_at(*await sentinel.discover_master(self.url.service))
        except MasterNotFoundError as exc:
            if AuthenticationError.__name__ in str(exc):
                raise AuthenticationError(f"the Sentinel {host}:{port} refused the login") from exc
            raise ConnectionError(f"the Sentinel {host}:{port} names no primary of {self.url.service!r}") from exc
        finally:
            await _close(sentinel.aclose())
        redis = self._client_to_ask(primary)
        try:
            role = (await redis.execute_command("ROLE"))[0]  # type: ignore[no-untyped-call]
        except NoPermissionError:  # then the Sentinel is taken at its word
            role = b"master"
        finally:
            await _close(redis.aclose())
        if role not in {b"master", "master"}:
            raise ConnectionError(f"the Sentinel {host}:{port} names {primary}, which is no primary (yet)")
        return primary

    def _client_to_ask(self, address: Address) -> Redis:
        options = self.connection_options(address, timeout_seconds=self._ask_seconds)
        return Redis.from_pool(BlockingConnectionPool(**(options | _options(self._ask_seconds))))

    async def _ask_cluster(self) -> tuple[SlotRange, ...]:
        """The slot map of the first node that answers, in no fixed order: one that is misled is not asked for ever."""
        nodes = list(dict.fromkeys((*self._others, *self.url.nodes)))
        random.shuffle(nodes)
        problem: Exception = ConnectionError("the Cluster's nodes serve no slot (yet)")
        for host, port in nodes:
            try:
                found = await self._ask_node(host, port)
            except (RedisError, OSError) as exc:
                problem = exc
                if isinstance(exc, AuthenticationError):
                    break
                continue
            if found:
                return found
        raise problem

    async def _ask_node(self, host: str, port: int) -> tuple[SlotRange, ...]:
        redis = self._client_to_ask(self.address_at(host, port))
        try:
            rows = await redis.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        finally:
            await _close(redis.aclose())
        # A node that does not know its own name leaves it to the asker.
        places = [[((node[0] or b"").decode() or host, int(node[1])) for node in row[2:]] for row in rows]
        self._others = tuple(dict.fromkeys(place for places_of_row in places for place in places_of_row))
        found = (
            SlotRange(int(row[0]), int(row[1]), self.address_at(*primary))
            for row, (primary, *_) in zip(rows, places, strict=True)
        )
        return tuple(sorted(found, key=lambda slots: slots.first))


async def _close(closing: Coroutine[Any, Any, None]) -> None:
    """Close even where this task is cancelled meanwhile: half closed, connections would stay."""
    task = asyncio.create_task(closing)
    try:
        with contextlib.suppress(RedisError, OSError):
            await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def _options(timeout_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
