"""Fixtures of the tests on a real Redis and of the admin API's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from tests.integration.admin_service import Admin, admin_role, redis_server
from tests.integration.redis_fixtures import cluster_url, content, embedded_url, keys, redis, redis_url
from tests.integration.rollout_deployment import deployed

__all__ = ["cluster_url", "content", "deployed", "embedded_url", "keys", "redis", "redis_url"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the tests that speak of one server's configuration off the Cluster."""
    items[:] = [
        item for item in items if item.get_closest_marker("single_redis") is None or "[cluster" not in item.name
    ]


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What is marked `both_loops` runs on production's loop too; asyncio's own says more when something is wrong."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops") is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(scope="session")
def admin_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that the admin API's tests share, each under a prefix of its own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def admin(admin_redis: str, tmp_path: Path) -> AsyncIterator[Admin]:
    """An admin role with an empty catalogue, no HTTPS base, and uploads of at most 4 MiB."""
    async with admin_role(admin_redis, tmp_path) as role:
        yield role
