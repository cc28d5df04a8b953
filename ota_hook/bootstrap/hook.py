"""The hook role: ExHook in this process, or in several on one port.

Owns what stands behind a device's message. Must not know the other roles, or what a process of several runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ota_hook.bootstrap.process import background, serve_metrics
from ota_hook.bootstrap.sockets import address_of
from ota_hook.bootstrap.state import State
from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.exhook.context import HookContext, HookOptions
from ota_hook.exhook.listener import Listener, bind_tcp
from ota_hook.exhook.provider import HookProvider
from ota_hook.exhook.workers import WorkerPool
from ota_hook.packages.blocks import BlockSource, CachedBlocks
from ota_hook.packages.urls import package_url
from ota_hook.ports.commands import Publisher
from ota_hook.settings import Listen, Settings
from ota_hook.state.heartbeat import Heartbeat
from ota_hook.state.hot import HotCommandIds, HotDevices, HotOffers, HotPresence
from ota_hook.state.hot_children import HotChildren
from ota_hook.state.pipes import PipeSet

if TYPE_CHECKING:
    from ota_hook.exhook.grpcio_listener import GrpcioListener

_log = structlog.get_logger("ota_hook.bootstrap")
_HEARTBEAT_S: Final = 1.0


@asynccontextmanager
async def run_hook(settings: Settings, state: State, publisher: Publisher | None) -> AsyncIterator[str]:
    """Serve ExHook; yields the address that the broker connects to."""
    async with AsyncExitStack() as stack:
        pipes = PipeSet(state.primaries, budget_ms=settings.answer_budget_ms)
        stack.push_async_callback(pipes.close)
        await pipes.start()
        command_ids = HotCommandIds(pipes, state.keys)
        command_ids.start()
        stack.callback(command_ids.close)
        offers = HotOffers(pipes, state.keys, attempts_max=settings.attempts_max)
        stack.callback(offers.close)
        state.metrics.add_gauge("redis_available", "Whether Redis takes commands: 1 or 0.", lambda: pipes.available)
        state.metrics.add_gauge("offers_not_noted", "Offers whose bookkeeping was lost.", lambda: offers.lost)
        presence = HotPresence(pipes, state.keys)
        stack.callback(presence.close)
        source = BlockSource(
            settings.data_dir / "packages",
            partial(package_url, http_base=settings.effective_public_url, https_base=settings.public_url_https),
        )
        stack.push_async_callback(source.close)
        blocks = CachedBlocks(source.load, cache_bytes=settings.chunk_cache_bytes)
        stack.push_async_callback(blocks.close)
        provider = HookProvider(
            HookContext(
                options=HookOptions(
                    dialect=settings.dialect,
                    identity=settings.identity,
                    reply=settings.reply,
                    payload_bytes=settings.hook_payload_bytes,
                    presence=settings.presence,
                    report_interval_ms=settings.report_interval_ms,
                    http_base=settings.effective_public_url,
                    https_base=settings.public_url_https,
                ),
                snapshots=state.catalogue,
                devices=HotDevices(pipes, state.keys),
                children=HotChildren(pipes, state.keys, children_max=settings.children_max),
                offers=offers,
                presence=presence,
                blocks=blocks,
                command_ids=command_ids,
                publisher=publisher,
                metrics=state.metrics,
            )
        )
        stack.push_async_callback(provider.close)
        listener = _make_listener(settings, provider)
        await listener.start()
        stack.push_async_callback(listener.stop)
        stack.callback(
            serve_metrics(settings.hook_metrics_listen, "OTA_HOOK_HOOK_METRICS_LISTEN", state.metrics.registry)
        )
        heartbeat = Heartbeat(state.redis, state.keys)
        await heartbeat.beat()
        await stack.enter_async_context(background(_keep_beating(heartbeat)))
        stack.push_async_callback(_say_goodbye, heartbeat)
        yield str(Listen(settings.hook_listen.host, listener.port))


@asynccontextmanager
async def run_hook_processes(
    settings: Settings, process: Callable[[Settings, int, Callable[[], None]], None]
) -> AsyncIterator[str]:
    """Serve ExHook with several processes on one port; yields its address once each accepts calls.

    `process` is what each of them runs: see exhook.workers.WorkerPool.
    """
    listen = settings.hook_listen
    try:
        # Bound and never listened on: it holds the port, whichever worker is away.
        held = bind_tcp(listen.host, listen.port, reuse_port=True)
    except OSError as exc:
        raise ConfigurationError(
            f"OTA_HOOK_HOOK_LISTEN: {listen} can't be bound: {exc.strerror}.",
            mend="Is another ota-hook running? Choose another port with --hook-listen.",
        ) from exc
    with held:
        listen = address_of(held, listen)
        pool = WorkerPool(settings.hook_workers, process, (settings.model_copy(update={"hook_listen": listen}),))
        await pool.start()
        try:
            await pool.wait_ready()
            yield str(listen)
        finally:
            await pool.stop()


def _make_listener(settings: Settings, provider: HookProvider) -> Listener | GrpcioListener:
    if settings.hook_transport == "grpcio":
        from ota_hook.exhook.grpcio_listener import GrpcioListener  # noqa: PLC0415 - grpc is a second of start-up

        return GrpcioListener(
            provider,
            listen=str(settings.hook_listen),
            message_bytes=settings.hook_message_bytes,
            tls_cert=settings.hook_tls_cert,
            tls_key=settings.hook_tls_key,
            tls_client_ca=settings.hook_tls_client_ca,
        )
    return Listener(
        provider,
        host=settings.hook_listen.host,
        port=settings.hook_listen.port,
        message_bytes=settings.hook_message_bytes,
        reuse_port=multiprocessing.parent_process() is not None,
        tls_cert=settings.hook_tls_cert,
        tls_key=settings.hook_tls_key,
        tls_client_ca=settings.hook_tls_client_ca,
    )


async def _keep_beating(heartbeat: Heartbeat) -> None:
    while True:
        await asyncio.sleep(_HEARTBEAT_S)
        try:
            await heartbeat.beat()
        except DependencyError as exc:
            _log.warning("heartbeat_failed", problem=str(exc))


async def _say_goodbye(heartbeat: Heartbeat) -> None:
    with contextlib.suppress(DependencyError):  # where Redis is gone, the beat runs out by itself
        await heartbeat.remove()
