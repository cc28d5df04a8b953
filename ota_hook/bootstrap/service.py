"""A service: the roles that were asked for, in one process, from start to end.

Owns the order in which things start and end. Must not know how a role is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final

import structlog
import uvloop

from ota_hook.bootstrap.admin import bound_sockets, run_admin
from ota_hook.bootstrap.hook import run_hook, run_hook_processes
from ota_hook.bootstrap.process import calm_interpreter, prepare_data_dir, raise_descriptor_limit, stop_signals
from ota_hook.bootstrap.publisher import make_publisher
from ota_hook.bootstrap.roles import Role, Running
from ota_hook.bootstrap.standin import StandinOptions, choose_broker_port, run_standin
from ota_hook.bootstrap.state import open_state, with_redis
from ota_hook.bootstrap.worker import run_worker
from ota_hook.exhook.workers import on_parent_gone
from ota_hook.log import configure_logging
from ota_hook.settings import Listen, Settings

_log = structlog.get_logger("ota_hook.bootstrap")
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - said of a setting, not bound


@asynccontextmanager
async def run_service(
    settings: Settings, roles: frozenset[Role], *, standin: StandinOptions | None = None
) -> AsyncIterator[Running]:
    """Start the roles in this process and end them in order when the context is left.

    Raises ConfigurationError where a setting can't work here, DependencyError where Redis can't be reached.
    """
    async with AsyncExitStack() as stack:
        raise_descriptor_limit()
        prepare_data_dir(settings.data_dir)
        # The port is bound before anything else starts: the addresses that devices are sent depend on it.
        sockets = stack.enter_context(bound_sockets(settings)) if Role.ADMIN in roles else None
        if sockets is not None:
            settings = sockets.settings
        if standin is not None:
            standin, settings = choose_broker_port(standin, settings)
        settings = await stack.enter_async_context(with_redis(settings))
        state = await stack.enter_async_context(open_state(settings))
        if settings.public_url is None and settings.admin_listen.host in _WILDCARDS:
            _log.warning(
                "public_url_unset",
                problem=f"Devices would download from {settings.effective_public_url}, which is no address.",
                mend="Set OTA_HOOK_PUBLIC_URL to what devices reach.",
            )
        running = Running(public_url=settings.effective_public_url)
        if Role.HOOK in roles:
            publisher = make_publisher(settings) if settings.hook_workers == 1 else None
            if settings.hook_workers > 1:
                hook_address = await stack.enter_async_context(run_hook_processes(settings, run_hook_process))
            else:
                hook_address = await stack.enter_async_context(run_hook(settings, state, publisher))
            running = replace(running, hook_address=hook_address)
            if standin is not None:
                mqtt_url = await stack.enter_async_context(run_standin(standin, hook_address))
                running = replace(running, mqtt_url=mqtt_url)
            if publisher is not None:
                await publisher.start()
                stack.push_async_callback(publisher.stop)
        if sockets is not None:
            running = await stack.enter_async_context(run_admin(settings, state, sockets, running))
        if Role.WORKER in roles:
            await stack.enter_async_context(run_worker(settings, state))
            running = replace(running, runs_pushes=True)
        calm_interpreter()
        yield running


def run_hook_process(settings: Settings, number: int, ready: Callable[[], None]) -> None:
    """One process of a hook of several, until SIGTERM or its parent's end."""
    configure_logging(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=number)
    metrics = settings.hook_metrics_listen
    settings = settings.model_copy(
        update={
            "hook_workers": 1,
            "hook_metrics_listen": None if metrics is None else Listen(metrics.host, metrics.port + number),
        }
    )

    async def serve() -> None:
        async with stop_signals() as stop:
            on_parent_gone(stop.set)
            async with run_service(settings, frozenset({Role.HOOK})):
                ready()
                await stop.wait()

    uvloop.run(serve())
