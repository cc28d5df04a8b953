"""One embedded Redis for the session; each test gets a prefix of its own, and its keys are gone afterwards."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from ulid import ULID

from ota_hook.standin.redis import embedded_redis
from ota_hook.state.connection import connect_redis
from ota_hook.state.format import open_layout
from ota_hook.state.keys import Keys

BUCKETS = 16
"""Few, so that devices share one."""


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
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


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect_redis(redis_url)
    yield client
    await client.aclose()


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
