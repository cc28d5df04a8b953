"""Connections as the hook notes them and others read them, on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from ota_hook.presence import Connection
from ota_hook.state.devices import RedisDevices
from ota_hook.state.hot import HotPresence
from ota_hook.state.keys import Keys
from ota_hook.state.presence import NODES_KEPT, RedisConnections
from tests.integration.hot_state import HotState, hot_state
from tests.integration.waiting import eventually


def connection(node: str = "n1", *, client: str = "c1", port: int = 7) -> str:
    return f"{client}\0{node}\0{port}"


class Hook:
    """What a hook notes, and what is read of it."""

    def __init__(self, redis: Redis, keys: Keys, hot: HotState) -> None:
        self.hot = hot
        self.presence = HotPresence(hot.pipes, keys)
        self.connections = RedisConnections(redis, keys)

    async def connection_of(self, *identifiers: str) -> list[Connection | None]:
        await self.hot.noted()
        return await self.connections.load_connections(identifiers)


@pytest.fixture
async def hook(redis: Redis, keys: Keys, redis_url: str) -> AsyncIterator[Hook]:
    devices = RedisDevices(redis, keys)
    for name in ("d1", "d2", "采集器"):
        await devices.create_device(name, "tracker", {})
    async with hot_state(redis_url, keys) as hot:
        yield Hook(redis, keys, hot)


async def test_a_device_has_the_connection_that_came_until_that_one_ends(hook: Hook) -> None:
    hook.presence.come("d1", connection(), at_ms=1_000)
    hook.presence.come("采集器", connection(client="\u5668\u0001"), at_ms=2_000)
    assert await hook.connection_of("d1", "d2", "采集器") == [Connection(1_000), None, Connection(2_000)]
    hook.presence.go("d1", connection(port=70))
    hook.presence.go("d1", connection("n"))
    hook.presence.go("d1", connection()[:-1])
    assert await hook.connection_of("d1") == [Connection(1_000)]
    hook.presence.go("d1", connection())
    assert await hook.connection_of("d1") == [None]


async def test_the_end_of_an_earlier_connection_ends_no_later_one(hook: Hook) -> None:
    hook.presence.come("d1", connection("n1"), at_ms=1_000)
    hook.presence.come("d1", connection("n2"), at_ms=2_000)
    hook.presence.go("d1", connection("n1"))
    assert await hook.connection_of("d1") == [Connection(2_000)]


async def test_a_device_that_is_not_registered_has_none(hook: Hook) -> None:
    hook.presence.come("stranger", connection(), at_ms=1_000)
    assert await hook.connection_of("stranger") == [None]


async def test_a_connection_says_since_when_its_node_tells(hook: Hook) -> None:
    hook.presence.come("d1", connection("n1"), at_ms=1_000)
    hook.presence.come("d2", connection("n2"), at_ms=1_000)
    hook.presence.attach("n1", at_ms=5_000)
    assert await hook.connection_of("d1", "d2") == [Connection(1_000, 5_000), Connection(1_000)]
    hook.presence.attach("n1", at_ms=9_000)
    hook.presence.attach("n1", at_ms=7_000)  # from a process that was slow
    assert await hook.connection_of("d1") == [Connection(1_000, 9_000)]


async def test_of_the_brokers_nodes_the_last_are_kept(hook: Hook, redis: Redis, keys: Keys) -> None:
    for number in range(NODES_KEPT + 10):
        hook.presence.attach(f"n{number}", at_ms=1_000 + number)
    await hook.hot.noted()
    assert await redis.zcard(keys.broker_nodes) == NODES_KEPT
    assert await redis.zscore(keys.broker_nodes, "n9") is None
    assert await redis.zscore(keys.broker_nodes, "n10") == 1_010


@pytest.mark.parametrize("stored", [b"", b"c1\0n1\x007", b"a\0b\0c\0d", b"\xff\0\xff\0\xff\0\xff"])
async def test_a_connection_that_can_not_be_read_is_one_of_which_nothing_is_known(
    hook: Hook, redis: Redis, keys: Keys, stored: bytes
) -> None:
    await redis.hset(keys.presence(keys.bucket_of("d1")), "d1", stored)
    assert await hook.connection_of("d1") == [Connection(0)]


async def test_that_a_node_attached_while_redis_was_away_is_noted_when_it_is_back(
    hook: Hook, redis: Redis, keys: Keys
) -> None:
    for pipe in hook.hot.all_pipes():
        await pipe.close()
    for at_ms in (1_000, 2_000):
        hook.presence.attach("n1", at_ms=at_ms)
    for pipe in hook.hot.all_pipes():
        await pipe.start()

    async def is_noted() -> bool:
        return await redis.zscore(keys.broker_nodes, "n1") == 2_000

    await eventually(is_noted)
    hook.presence.close()
