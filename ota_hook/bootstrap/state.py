"""What every role has in common: Redis, the catalogue in force, and the stores that more than one role uses.

Owns their connections. Must not know which role uses what.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import structlog
from pydantic import SecretStr

from ota_hook.errors import DependencyError
from ota_hook.metrics import HookMetrics
from ota_hook.settings import Settings
from ota_hook.standin.redis import embedded_redis
from ota_hook.state.attempts import RedisAttempts
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.connection import RedisClient, connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.durability import DurableWriter, list_risks
from ota_hook.state.format import open_layout
from ota_hook.state.keys import Keys
from ota_hook.state.offers import RedisOffers
from ota_hook.state.presence import RedisConnections
from ota_hook.state.primaries import Primaries
from ota_hook.state.runs import RedisRuns
from ota_hook.state.tasks import RedisTasks

_log = structlog.get_logger("ota_hook.bootstrap")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The adapters on Redis that more than one role uses."""

    primaries: Primaries
    redis: RedisClient
    keys: Keys
    writer: DurableWriter
    catalogue: RedisCatalogue
    offers: RedisOffers
    attempts: RedisAttempts
    devices: RedisDevices
    connections: RedisConnections
    tasks: RedisTasks
    runs: RedisRuns
    metrics: HookMetrics = field(default_factory=HookMetrics)


@asynccontextmanager
async def with_redis(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with the address of a Redis: theirs, or an embedded one's that ends with the context."""
    if settings.redis_url is not None:
        yield settings
        return
    async with embedded_redis(settings.data_dir) as url:
        yield settings.model_copy(update={"redis_url": SecretStr(url)})


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[State]:
    """Connect to Redis, read the layout, load the catalogue and keep it fresh."""
    async with AsyncExitStack() as stack:
        url = settings.redis_url.get_secret_value() if settings.redis_url is not None else ""
        redis = connect_redis(url)
        stack.push_async_callback(redis.aclose)
        keys = await _open_layout(redis, settings)
        for risk in await list_risks(redis):
            _log.warning("redis_may_forget", problem=risk)
        writer = DurableWriter(redis, replicas=settings.redis_wait_replicas)
        catalogue = RedisCatalogue(redis, keys, writer=writer)
        await catalogue.start()
        stack.push_async_callback(catalogue.close)
        primaries = Primaries(url)
        stack.push_async_callback(primaries.aclose)
        state = State(
            primaries=primaries,
            redis=redis,
            keys=keys,
            writer=writer,
            catalogue=catalogue,
            offers=RedisOffers(redis, keys, attempts_max=settings.attempts_max),
            attempts=RedisAttempts(redis, keys, writer=writer),
            devices=RedisDevices(redis, keys, writer=writer),
            connections=RedisConnections(redis, keys),
            tasks=RedisTasks(redis, keys, writer=writer),
            runs=RedisRuns(redis, keys, writer=writer),
        )
        state.metrics.add_gauge(
            "catalogue_revision", "The revision in force in this process.", lambda: catalogue.current.revision
        )
        state.metrics.add_gauge(
            "refused_documents", "Documents that can't be used; the last good ones are.", lambda: len(catalogue.refused)
        )
        yield state


async def _open_layout(redis: RedisClient, settings: Settings) -> Keys:
    try:
        return await open_layout(redis, prefix=settings.redis_prefix)
    except DependencyError as exc:
        raise DependencyError(exc.detail, mend="Is it running, and is it where OTA_HOOK_REDIS_URL says?") from exc
