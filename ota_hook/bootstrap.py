"""Joins the adapters to the ports and runs the roles. The one place that names concrete adapters."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import structlog
import uvicorn
import uvloop
from prometheus_client import start_http_server
from pydantic import SecretStr
from ulid import ULID

from admin_api.app import create_app
from admin_api.auth import AdminToken, load_admin_token
from admin_api.connections import BoundedProtocol
from admin_api.context import AdminContext
from ota_hook.errors import ConfigurationError, DependencyError, OtaHookError
from ota_hook.exhook.listener import Listener, bind_tcp
from ota_hook.exhook.provider import HookOptions, HookProvider
from ota_hook.exhook.workers import WorkerPool, on_parent_gone
from ota_hook.log import configure_logging
from ota_hook.metrics import HookMetrics
from ota_hook.packages.store import LocalPackageStore
from ota_hook.ports.commands import Publisher
from ota_hook.publish.mqtt import MqttPublisher
from ota_hook.rollout.keeper import Keeper
from ota_hook.rollout.planner import Planner
from ota_hook.rollout.scheduler import Scheduler
from ota_hook.rollout.sender import Sender, SendOptions
from ota_hook.rollout.teller import Teller
from ota_hook.rollout.watch import FirmwareWatch, StopRule
from ota_hook.rollout.worker import Worker
from ota_hook.settings import Listen, Settings
from ota_hook.standin.redis import embedded_redis
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.command_ids import RedisCommandIds
from ota_hook.state.connection import RedisClient, connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.durability import DurableWriter, list_risks
from ota_hook.state.format import open_layout
from ota_hook.state.heartbeat import Heartbeat
from ota_hook.state.hot import HotCommandIds, HotDevices, HotOffers, HotPresence
from ota_hook.state.idempotency import RedisIdempotency
from ota_hook.state.keys import Keys
from ota_hook.state.notices import RedisNotices
from ota_hook.state.offers import RedisOffers
from ota_hook.state.pipes import PipeSet
from ota_hook.state.primaries import Primaries
from ota_hook.state.run_events import RedisRunEvents
from ota_hook.state.runs import RedisRuns
from ota_hook.state.stops import RedisFirmwareStops
from ota_hook.state.tasks import RedisTasks
from ota_hook.state.work import LEASE_MS, RedisWorkQueue

if TYPE_CHECKING:
    from ota_hook.exhook.grpcio_listener import GrpcioListener
    from ota_hook.publish.emqx_api import EmqxApiPublisher

_log = structlog.get_logger("ota_hook.bootstrap")
_GC_THRESHOLDS: Final = (5_000, 50, 1_000)
_SWITCH_S: Final = 0.000_5
_HEARTBEAT_S: Final = 1.0
_SWEEP_S: Final = 3_600.0
_DESCRIPTORS: Final = 65_536
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - said of a setting, not bound
_SHUTDOWN_S: Final = 5


class Role(StrEnum):
    """What a process does."""

    HOOK = "hook"
    ADMIN = "admin"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class StandinOptions:
    """An embedded MQTT broker beside the hook, which it asks as EMQX does."""

    listen: Listen
    package: Literal["v2", "v3"] = "v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What has started. Addresses are the real ones, where a setting left the port to the system."""

    hook_address: str | None = None
    admin_url: str | None = None
    admin_tls_url: str | None = None
    public_url: str
    mqtt_url: str | None = None
    token: str | None = None
    token_was_made: bool = False
    runs_pushes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """The adapters on Redis that more than one role uses."""

    primaries: Primaries
    redis: RedisClient
    keys: Keys
    writer: DurableWriter
    catalogue: RedisCatalogue
    offers: RedisOffers
    devices: RedisDevices
    tasks: RedisTasks
    runs: RedisRuns
    metrics: HookMetrics = field(default_factory=HookMetrics)


@asynccontextmanager
async def run_service(
    settings: Settings, roles: frozenset[Role], *, standin: StandinOptions | None = None
) -> AsyncIterator[Running]:
    """Start the roles in this process and end them in order when the context is left.

    Raises ConfigurationError where a setting can't work here, DependencyError where Redis can't be reached.
    """
    async with AsyncExitStack() as stack:
        _raise_descriptor_limit()
        _prepare_data_dir(settings.data_dir)
        # The port is bound before anything else starts: the addresses that devices are sent depend on it.
        sockets = stack.enter_context(_bound(settings)) if Role.ADMIN in roles else None
        if sockets is not None:
            settings = sockets.settings
        if standin is not None:
            standin, settings = _choose_broker_port(standin, settings)
        settings = await stack.enter_async_context(_with_redis(settings))
        state = await stack.enter_async_context(_open_state(settings))
        if settings.public_url is None and settings.admin_listen.host in _WILDCARDS:
            _log.warning(
                "public_url_unset",
                problem=f"Devices would download from {settings.effective_public_url}, which is no address.",
                mend="Set OTA_HOOK_PUBLIC_URL to what devices reach.",
            )
        running = Running(public_url=settings.effective_public_url)
        if Role.HOOK in roles:
            publisher = _make_publisher(settings) if settings.hook_workers == 1 else None
            if settings.hook_workers > 1:
                hook_address = await stack.enter_async_context(_run_workers(settings))
            else:
                hook_address = await stack.enter_async_context(_run_hook(settings, state, publisher))
            running = replace(running, hook_address=hook_address)
            if standin is not None:
                mqtt_url = await stack.enter_async_context(_run_standin(standin, hook_address))
                running = replace(running, mqtt_url=mqtt_url)
            if publisher is not None:
                await publisher.start()
                stack.push_async_callback(publisher.stop)
        if sockets is not None:
            running = await stack.enter_async_context(_run_admin(settings, state, sockets, running))
        if Role.WORKER in roles:
            await stack.enter_async_context(_run_worker_role(settings, state))
            running = replace(running, runs_pushes=True)
        _calm_interpreter()
        yield running


def _calm_interpreter() -> None:
    """Keep Python's cycle collector from walking what never dies, and threads from keeping the loop waiting.

    A check makes some tens of objects and no cycles; at the default thresholds the collector ran over the catalogue
    again and again, a third of a worker's time and nearly all of its p99 (benchmarks/check.py). While a thread makes
    the next snapshot, each turn of the loop waits for the interpreter's lock as long as the switch interval.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_S)


@asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set. A second signal ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def ask(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _raise_descriptor_limit() -> None:
    """A connection is a descriptor, and the usual soft limit of 1,024 is for programs that call select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _prepare_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The data directory {data_dir} can't be made: {exc.strerror}.", mend="Choose another: OTA_HOOK_DATA_DIR."
        ) from exc


# ---- state


@asynccontextmanager
async def _with_redis(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with the address of a Redis: theirs, or an embedded one's that ends with the context."""
    if settings.redis_url is not None:
        yield settings
        return
    async with embedded_redis(settings.data_dir) as url:
        yield settings.model_copy(update={"redis_url": SecretStr(url)})


@asynccontextmanager
async def _open_state(settings: Settings) -> AsyncIterator[_State]:
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
        state = _State(
            primaries=primaries,
            redis=redis,
            keys=keys,
            writer=writer,
            catalogue=catalogue,
            offers=RedisOffers(redis, keys),
            devices=RedisDevices(redis, keys, writer=writer),
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


# ---- the hook


def _make_publisher(settings: Settings) -> MqttPublisher | EmqxApiPublisher | None:
    url, key, secret = settings.emqx_api_url, settings.emqx_api_key, settings.emqx_api_secret
    if settings.publisher == "emqx_api" and url is not None and key is not None and secret is not None:
        from ota_hook.publish.emqx_api import EmqxApiPublisher  # noqa: PLC0415 - httpx takes long to import

        return EmqxApiPublisher(url, key=key, secret=secret.get_secret_value())
    return None if settings.mqtt_url is None else MqttPublisher(settings.mqtt_url.get_secret_value())


@asynccontextmanager
async def _run_hook(settings: Settings, state: _State, publisher: Publisher | None) -> AsyncIterator[str]:
    """Serve ExHook; yields the address that the broker connects to."""
    async with AsyncExitStack() as stack:
        pipes = PipeSet(state.primaries, budget_ms=settings.answer_budget_ms)
        stack.push_async_callback(pipes.close)
        await pipes.start()
        command_ids = HotCommandIds(pipes, state.keys)
        command_ids.start()
        stack.callback(command_ids.close)
        offers = HotOffers(pipes, state.keys)
        stack.callback(offers.close)
        state.metrics.add_gauge("redis_available", "Whether Redis takes commands: 1 or 0.", lambda: pipes.available)
        state.metrics.add_gauge("offers_not_noted", "Offers whose bookkeeping was lost.", lambda: offers.lost)
        provider = HookProvider(
            HookOptions(
                dialect=settings.dialect,
                identity=settings.identity,
                reply=settings.reply,
                payload_bytes=settings.hook_payload_bytes,
                presence=settings.presence,
                http_base=settings.effective_public_url,
                https_base=settings.public_url_https,
            ),
            snapshots=state.catalogue,
            devices=HotDevices(pipes, state.keys),
            offers=offers,
            presence=HotPresence(pipes, state.keys),
            command_ids=command_ids,
            publisher=publisher,
            metrics=state.metrics,
        )
        stack.push_async_callback(provider.close)
        listener = _make_listener(settings, provider)
        await listener.start()
        stack.push_async_callback(listener.stop)
        stack.callback(_serve_metrics(settings, state))
        heartbeat = Heartbeat(state.redis, state.keys)
        await heartbeat.beat()
        await stack.enter_async_context(_background(_keep_beating(heartbeat)))
        stack.push_async_callback(_say_goodbye, heartbeat)
        yield str(Listen(settings.hook_listen.host, listener.port))


@asynccontextmanager
async def _run_workers(settings: Settings) -> AsyncIterator[str]:
    """Serve ExHook with several processes on one port; yields its address once each worker accepts calls."""
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
        listen = _address_of(held, listen)
        pool = WorkerPool(settings.hook_workers, run_worker, (settings.model_copy(update={"hook_listen": listen}),))
        await pool.start()
        try:
            await pool.wait_ready()
            yield str(listen)
        finally:
            await pool.stop()


def run_worker(settings: Settings, number: int, ready: Callable[[], None]) -> None:
    """One worker process of a pool, until SIGTERM or its parent's end."""
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


def _serve_metrics(settings: Settings, state: _State) -> Callable[[], None]:
    """Serve this process's metrics, where a setting says so; returns what ends it."""
    listen = settings.hook_metrics_listen
    if listen is None:
        return lambda: None
    try:
        server, thread = start_http_server(listen.port, listen.host, state.metrics.registry)
    except OSError as exc:
        raise ConfigurationError(f"OTA_HOOK_HOOK_METRICS_LISTEN: {listen} can't be bound: {exc.strerror}.") from exc

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


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


@asynccontextmanager
async def _background(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# ---- the worker role


@asynccontextmanager
async def _run_worker_role(settings: Settings, state: _State) -> AsyncIterator[None]:
    """Run pushes. Needs a broker to publish to."""
    publisher = _make_publisher(settings)
    if publisher is None:
        raise ConfigurationError(
            "A worker publishes commands and knows no broker.", mend="Set OTA_HOOK_MQTT_URL to the broker's address."
        )
    consumer = f"{socket.gethostname()}:{os.getpid()}:{ULID()}"
    clock_ms = _clock_ms
    queue = RedisWorkQueue(state.redis, state.keys, consumer=consumer)
    events = RedisRunEvents(state.redis, state.keys, consumer=consumer)
    notices = RedisNotices(state.redis, state.keys, consumer=consumer)
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
        clock_ms=clock_ms,
    )
    worker = Worker(
        queue=queue,
        lease_ms=LEASE_MS,
        runs=state.runs,
        events=events,
        planner=Planner(state.catalogue, state.devices, state.runs, clock_ms=clock_ms),
        sender=sender,
        keeper=Keeper(
            snapshots=state.catalogue,
            devices=state.devices,
            waits_for_absent=settings.presence,
            offers=state.offers,
            runs=state.runs,
            queue=queue,
            notices=notices,
            clock_ms=clock_ms,
        ),
        scheduler=Scheduler(state.tasks, new_id=lambda: str(ULID()), clock_ms=clock_ms),
        watch=FirmwareWatch(
            StopRule(settings.stop_percent, settings.stop_after),
            catalogue=state.catalogue,
            offers=state.offers,
            stops=RedisFirmwareStops(state.redis, state.keys),
            notices=notices,
            clock_ms=clock_ms,
        ),
        clock_ms=clock_ms,
    )
    async with AsyncExitStack() as stack:
        await publisher.start()
        stack.push_async_callback(publisher.stop)
        await stack.enter_async_context(_background(worker.run()))
        if settings.webhook_url is not None and settings.webhook_secret is not None:
            from ota_hook.publish.webhook import Webhook  # noqa: PLC0415 - httpx takes long to import

            await notices.open()
            webhook = Webhook(settings.webhook_url, settings.webhook_secret.get_secret_value())
            stack.push_async_callback(webhook.aclose)
            await stack.enter_async_context(_background(Teller(notices, webhook).run()))
        yield


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


# ---- the admin role


@dataclass(frozen=True, slots=True)
class _AdminSockets:
    """The bound sockets, and the settings with the ports that the system chose."""

    http: socket.socket
    https: socket.socket | None
    settings: Settings


@contextmanager
def _bound(settings: Settings) -> Iterator[_AdminSockets]:
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(_bind(settings.admin_listen, "OTA_HOOK_ADMIN_LISTEN"))
        chosen = {"admin_listen": _address_of(http, settings.admin_listen)}
        https = None
        if settings.admin_tls_listen is not None:
            https = stack.enter_context(_bind(settings.admin_tls_listen, "OTA_HOOK_ADMIN_TLS_LISTEN"))
            chosen["admin_tls_listen"] = _address_of(https, settings.admin_tls_listen)
        yield _AdminSockets(http, https, settings.model_copy(update=chosen))


def _bind(listen: Listen, setting: str) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as exc:
        raise ConfigurationError(
            f"{setting}: {listen} can't be bound: {exc.strerror}.",
            mend="Is another ota-hook running? Choose another port.",
        ) from exc
    return bound


def _address_of(bound: socket.socket, listen: Listen) -> Listen:
    return Listen(listen.host, bound.getsockname()[1])


class _AdminServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the command decides when the service ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _run_admin(
    settings: Settings, state: _State, sockets: _AdminSockets, running: Running
) -> AsyncIterator[Running]:
    configured = settings.admin_token.get_secret_value() if settings.admin_token is not None else None
    token, made = load_admin_token(settings.data_dir, configured)
    packages = LocalPackageStore(settings.data_dir / "packages")
    await _sweep(packages, state.catalogue)
    heartbeat = Heartbeat(state.redis, state.keys)
    closing = asyncio.Event()
    app = create_app(
        AdminContext(
            catalogue=state.catalogue,
            devices=state.devices,
            offers=state.offers,
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
        await stack.enter_async_context(_background(_keep_sweeping(packages, state.catalogue)))
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


def _readiness(state: _State, heartbeat: Heartbeat) -> Callable[[], Awaitable[list[str]]]:
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
        await _sweep(packages, catalogue)


async def _sweep(packages: LocalPackageStore, catalogue: RedisCatalogue) -> None:
    """Remove packages of no firmware. What Redis has counts, not the snapshot: that leaves out what can't be used."""
    try:
        removed = await packages.sweep(await catalogue.load_packages_in_use())
    except OtaHookError as exc:
        _log.warning("sweep_failed", problem=str(exc))
        return
    if removed:
        _log.info("swept_orphan_packages", removed=len(removed))


# ---- the stand-in broker


def _choose_broker_port(standin: StandinOptions, settings: Settings) -> tuple[StandinOptions, Settings]:
    """Fix the broker's port before the hook starts: its publisher needs the address, the broker needs the hook's."""
    listen = standin.listen
    with _bind(listen, "--standin-listen") as probe:
        listen = _address_of(probe, listen)
    if settings.mqtt_url is None:
        settings = settings.model_copy(update={"mqtt_url": SecretStr(f"mqtt://{listen}")})
    return replace(standin, listen=listen), settings


@asynccontextmanager
async def _run_standin(standin: StandinOptions, hook_address: str) -> AsyncIterator[str]:
    from ota_hook.standin.broker import ExhookOptions, StandinBroker  # noqa: PLC0415 - as above, and an extra

    broker = StandinBroker(
        host=standin.listen.host,
        port=standin.listen.port,
        exhook=ExhookOptions(url=hook_address, package=standin.package, auto_reconnect_s=1.0),
    )
    await broker.start()
    try:
        await broker.wait_loaded()
        yield broker.mqtt_url
    finally:
        await broker.stop()
