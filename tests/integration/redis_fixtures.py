"""One embedded Redis and one Cluster for the session; each test gets a prefix of its own, gone afterwards.

What asks for `redis`, `keys` or `redis_url` runs on both; with the marker `single_redis`, on the embedded one alone: it
speaks of a server's configuration, not of what is stored.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.commands import AsyncCoreCommands
from ulid import ULID

from ota_hook.standin.redis import embedded_redis
from ota_hook.state.connection import connect_redis
from ota_hook.state.format import open_layout
from ota_hook.state.keys import Keys
from ota_hook.state.routing import RoutedRedis
from tests.integration.redis_deployments import redis_cluster

BUCKETS = 16
"""Few, so that devices share one."""


@pytest.fixture(scope="session")
def embedded_url() -> Iterator[str]:
    """A Redis that lives in a thread with a loop of its own: the tests' loops come and go."""
    ready, done = threading.Event(), threading.Event()
    urls: list[str] = []

    async def serve(data_dir: Path) -> None:
        async with embedded_redis(data_dir) as url:
            urls.append(url)
            ready.set()
            await asyncio.to_thread(done.wait)

    def run() -> None:
        with tempfile.TemporaryDirectory() as data_dir:
            asyncio.run(serve(Path(data_dir)))

    thread = threading.Thread(target=run, name="redis for the tests")
    thread.start()
    try:
        assert ready.wait(30), "the embedded Redis did not start"
        yield urls[0]
    finally:
        done.set()
        thread.join(30)


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Cluster of three primaries and their replicas."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster.url


@pytest.fixture(scope="session", params=["embedded", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


class PokedCluster(RoutedRedis, AsyncCoreCommands):  # type: ignore[misc]  # redis-py's own bases disagree
    """The client under test with redis-py's commands on it, to look behind the stores on a Cluster too."""

    _event_dispatcher: Any = None

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        key = command[2] if command[0] == "OBJECT" else command[1]
        client = await self.primary_of(key)
        return await client.execute_command(*command, **options)  # type: ignore[no-untyped-call]

    async def scan_iter(  # type: ignore[override]  # declared sync there
        self, match: Any = None, count: int | None = None, *_: Any, **__: Any
    ) -> AsyncIterator[bytes]:
        for primary in await self.all_primaries():
            async for key in primary.scan_iter(match=match, count=count):
                yield key


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client that the stores are given, and that a test may look through; on a Cluster both are less than a Redis."""
    client = connect_redis(redis_url)
    if isinstance(client, RoutedRedis):
        client = PokedCluster(client.primaries, client._connect)
    yield cast("Redis", client)
    await client.aclose()


async def transaction_on(redis: Redis, key: str) -> Pipeline:
    """A transaction where the key is."""
    client: Redis | RoutedRedis = redis
    if isinstance(client, RoutedRedis):
        client = await client.primary_of(key)
    return client.pipeline(transaction=True)


@pytest.fixture
async def keys(redis: Redis) -> AsyncIterator[Keys]:
    prefix = f"test{ULID()}"
    yield await open_layout(redis, prefix=prefix, buckets=BUCKETS)
    async for key in redis.scan_iter(match=f"{prefix}:*", count=5_000):
        await redis.unlink(key)


@pytest.fixture
def content(redis: Redis, keys: Keys) -> Callable[[], Awaitable[dict[bytes, object]]]:
    """Everything that is stored under the test's prefix: equal before and after means that nothing was written."""

    async def read() -> dict[bytes, object]:
        return {key: await redis.dump(key) async for key in redis.scan_iter(match=f"{keys.prefix}:*", count=5_000)}

    return read
