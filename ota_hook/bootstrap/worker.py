"""The worker role: what runs pushes, and tells people outside.

Owns what rollout/ works with. Must not know the other roles.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from ulid import ULID

from ota_hook.bootstrap.process import background, serve_metrics
from ota_hook.bootstrap.publisher import make_publisher
from ota_hook.bootstrap.state import State
from ota_hook.errors import ConfigurationError
from ota_hook.rollout.check_timer import CheckTimer
from ota_hook.rollout.keeper import Keeper
from ota_hook.rollout.planner import Planner
from ota_hook.rollout.scheduler import Scheduler
from ota_hook.rollout.sender import Sender, SendOptions
from ota_hook.rollout.teller import Teller
from ota_hook.rollout.watch import FirmwareWatch, StopRule
from ota_hook.rollout.worker import Worker
from ota_hook.settings import Settings
from ota_hook.state.clock import RedisClock
from ota_hook.state.command_ids import RedisCommandIds
from ota_hook.state.notices import RedisNotices
from ota_hook.state.overdue import RedisOverdueOffers
from ota_hook.state.run_events import RedisRunEvents
from ota_hook.state.stops import RedisFirmwareStops
from ota_hook.state.turns import RedisTurn
from ota_hook.state.work import LEASE_MS, RedisWorkQueue


@asynccontextmanager
async def run_worker(settings: Settings, state: State) -> AsyncIterator[None]:
    """Run pushes. Needs a broker to publish to."""
    publisher = make_publisher(settings)
    if publisher is None:
        raise ConfigurationError(
            "A worker publishes commands and knows no broker.", mend="Set OTA_HOOK_MQTT_URL to the broker's address."
        )
    consumer = f"{socket.gethostname()}:{os.getpid()}:{ULID()}"
    queue = RedisWorkQueue(state.redis, state.keys, consumer=consumer)
    events = RedisRunEvents(state.redis, state.keys, consumer=consumer)
    notices = RedisNotices(state.redis, state.keys, consumer=consumer)
    clock = RedisClock(state.redis, state.keys)
    await clock.start()
    await queue.open()
    await events.open()
    sender = Sender(
        SendOptions(
            dialect=settings.dialect,
            identity=settings.identity,
            http_base=settings.effective_public_url,
            https_base=settings.public_url_https,
        ),
        worker=consumer,
        lease_ms=LEASE_MS,
        snapshots=state.catalogue,
        devices=state.devices,
        offers=state.offers,
        runs=state.runs,
        command_ids=RedisCommandIds(state.redis, state.keys),
        publisher=publisher,
        clock_ms=clock.now_ms,
    )
    keeper = Keeper(
        snapshots=state.catalogue,
        devices=state.devices,
        connections=state.connections if settings.presence else None,
        offers=state.offers,
        runs=state.runs,
        queue=queue,
        notices=notices,
        clock_ms=clock.now_ms,
    )
    state.metrics.add_gauge(
        "run_counters_mended", "Counters of runs that were not what their devices' records say.", lambda: keeper.mended
    )
    worker = Worker(
        queue=queue,
        lease_ms=LEASE_MS,
        runs=state.runs,
        events=events,
        planner=Planner(state.catalogue, state.devices, state.runs, clock_ms=clock.now_ms),
        sender=sender,
        keeper=keeper,
        timer=CheckTimer(
            RedisTurn(state.redis, state.keys.check_timer, holder=consumer),
            timeout_ms=settings.check_timeout_seconds * 1000,
            snapshots=state.catalogue,
            devices=state.devices,
            offers=state.offers,
            overdue=RedisOverdueOffers(state.redis, state.keys),
            clock_ms=clock.now_ms,
        ),
        scheduler=Scheduler(state.tasks, new_id=lambda: str(ULID()), clock_ms=clock.now_ms),
        watch=FirmwareWatch(
            StopRule(settings.stop_percent, settings.stop_after),
            catalogue=state.catalogue,
            offers=state.offers,
            stops=RedisFirmwareStops(state.redis, state.keys),
            notices=notices,
            clock_ms=clock.now_ms,
        ),
        clock_ms=clock.now_ms,
    )
    async with AsyncExitStack() as stack:
        stack.callback(
            serve_metrics(settings.worker_metrics_listen, "OTA_HOOK_WORKER_METRICS_LISTEN", state.metrics.registry)
        )
        await publisher.start()
        stack.push_async_callback(publisher.stop)
        await stack.enter_async_context(background(clock.keep()))
        await stack.enter_async_context(background(worker.run()))
        if settings.webhook_url is not None and settings.webhook_secret is not None:
            from ota_hook.publish.webhook import Webhook  # noqa: PLC0415 - httpx takes long to import

            await notices.open()
            webhook = Webhook(settings.webhook_url, settings.webhook_secret.get_secret_value())
            stack.push_async_callback(webhook.aclose)
            await stack.enter_async_context(background(Teller(notices, webhook).run()))
        yield
