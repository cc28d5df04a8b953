"""The admin role: REST and downloads over HTTP and HTTPS, and the sweep of packages that no firmware has.

Owns what the admin API works with. Must not know the other roles.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import uvicorn

from admin_api.app import create_app
from admin_api.auth import AdminToken, load_admin_token
from admin_api.connections import BoundedProtocol
from admin_api.context import AdminContext
from ota_hook.bootstrap.process import background
from ota_hook.bootstrap.roles import Running
from ota_hook.bootstrap.sockets import address_of, bind_socket
from ota_hook.bootstrap.state import State
from ota_hook.errors import ConfigurationError, DependencyError, OtaHookError
from ota_hook.packages.store import LocalPackageStore
from ota_hook.settings import Settings
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.heartbeat import Heartbeat
from ota_hook.state.idempotency import RedisIdempotency
from ota_hook.state.stops import RedisFirmwareStops
from ota_hook.state.work import RedisWorkQueue

_log = structlog.get_logger("ota_hook.bootstrap")
_SWEEP_S: Final = 3_600.0
_SHUTDOWN_S: Final = 5


@dataclass(frozen=True, slots=True)
class AdminSockets:
    """The bound sockets, and the settings with the ports that the system chose."""

    http: socket.socket
    https: socket.socket | None
    settings: Settings


@contextmanager
def bound_sockets(settings: Settings) -> Iterator[AdminSockets]:
    """Bind what settings name. Raises ConfigurationError."""
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(bind_socket(settings.admin_listen, "OTA_HOOK_ADMIN_LISTEN"))
        chosen = {"admin_listen": address_of(http, settings.admin_listen)}
        https = None
        if settings.admin_tls_listen is not None:
            https = stack.enter_context(bind_socket(settings.admin_tls_listen, "OTA_HOOK_ADMIN_TLS_LISTEN"))
            chosen["admin_tls_listen"] = address_of(https, settings.admin_tls_listen)
        yield AdminSockets(http, https, settings.model_copy(update=chosen))


@asynccontextmanager
async def run_admin(
    settings: Settings, state: State, sockets: AdminSockets, running: Running
) -> AsyncIterator[Running]:
    """Serve the API and downloads; yields `running` with their addresses and the token."""
    configured = settings.admin_token.get_secret_value() if settings.admin_token is not None else None
    token, made = load_admin_token(settings.data_dir, configured)
    packages = LocalPackageStore(settings.data_dir / "packages")
    await sweep_packages(packages, state.catalogue)
    heartbeat = Heartbeat(state.redis, state.keys)
    closing = asyncio.Event()
    app = create_app(
        AdminContext(
            catalogue=state.catalogue,
            devices=state.devices,
            connections=state.connections if settings.presence else None,
            offers=state.offers,
            attempts=state.attempts,
            packages=packages,
            tasks=state.tasks,
            runs=state.runs,
            work=RedisWorkQueue(state.redis, state.keys, consumer="admin"),
            stops=RedisFirmwareStops(state.redis, state.keys),
            idempotency=RedisIdempotency(state.redis, state.keys),
            tokens=AdminToken(token),
            public_url=settings.effective_public_url,
            public_url_https=settings.public_url_https,
            has_broker=settings.can_publish,
            max_upload_bytes=settings.max_package_bytes,
            readiness_checks=(_readiness(state, heartbeat),),
            metrics=state.metrics.registry,
            closing=closing,
        )
    )
    serving = partial(uvicorn.Config, app, log_config=None, http=BoundedProtocol, timeout_graceful_shutdown=_SHUTDOWN_S)
    servers = [(serving(), sockets.http)]
    if sockets.https is not None:
        config = serving(ssl_certfile=settings.admin_tls_cert, ssl_keyfile=settings.admin_tls_key)
        servers.append((config, sockets.https))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(background(_keep_sweeping(packages, state.catalogue)))
        for config, bound in servers:
            await stack.enter_async_context(_serve_http(config, bound))
        stack.callback(closing.set)
        yield replace(
            running,
            admin_url=f"http://{settings.admin_listen}",
            admin_tls_url=f"https://{settings.admin_tls_listen}" if sockets.https is not None else None,
            token=token,
            token_was_made=made,
        )


class _AdminServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the command decides when the service ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _serve_http(config: uvicorn.Config, bound: socket.socket) -> AsyncIterator[None]:
    server = _AdminServer(config)
    _require_readable("OTA_HOOK_ADMIN_TLS_CERT", config.ssl_certfile)
    _require_readable("OTA_HOOK_ADMIN_TLS_KEY", config.ssl_keyfile)
    try:
        config.load()
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"The admin role's TLS certificate or key can't be used: {exc}.") from exc
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        while not server.started:
            if task.done():
                task.result()
                raise ConfigurationError("The admin role could not start.")
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task


def _require_readable(setting: str, file: str | os.PathLike[str] | None) -> None:
    """Which of its files is missing, ssl does not say."""
    try:
        if file is not None:
            Path(file).open("rb").close()
    except OSError as exc:
        raise ConfigurationError(f"{setting}: the file {file} can't be read: {exc.strerror}.") from exc


def _readiness(state: State, heartbeat: Heartbeat) -> Callable[[], Awaitable[list[str]]]:
    """Ready is: Redis answers, the catalogue is fresh, and some hook process accepts calls. The broker is no part."""

    async def check() -> list[str]:
        try:
            live = await heartbeat.count_live()
        except DependencyError as exc:
            return [exc.detail]
        problems = []
        if live == 0:
            problems.append("No hook process accepts calls.")
        if not state.catalogue.healthy:
            problems.append(f"The catalogue was last compared with Redis {state.catalogue.age_seconds:.1f} s ago.")
        return problems

    return check


async def _keep_sweeping(packages: LocalPackageStore, catalogue: RedisCatalogue) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        await sweep_packages(packages, catalogue)


async def sweep_packages(packages: LocalPackageStore, catalogue: RedisCatalogue) -> None:
    """Remove packages of no firmware. What Redis has counts, not the snapshot: that leaves out what can't be used."""
    try:
        removed = await packages.sweep(await catalogue.load_packages_in_use())
    except OtaHookError as exc:
        _log.warning("sweep_failed", problem=str(exc))
        return
    if removed:
        _log.info("swept_orphan_packages", removed=len(removed))
