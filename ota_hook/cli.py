"""The commands that people type: each reads settings, starts what bootstrap.py joins, and prints. No logic here."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import orjson
import typer
import uvloop
from rich.console import Console

from ota_hook.bootstrap import Role, Running, StandinOptions, run_service
from ota_hook.errors import ConfigurationError, OtaHookError
from ota_hook.log import configure_logging
from ota_hook.settings import Listen, Settings, load_settings, parse_listen

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2

app = typer.Typer(
    name="ota-hook",
    help="Over-the-air firmware upgrades for fleets on the EMQX MQTT broker.\n\n"
    "Start with `ota-hook demo`, then `ota-hook serve`. Every setting is a flag of some command, an environment variable"
    " OTA_HOOK_…, or a line of the file given with --config (flag > environment > file > default).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# The terminal is for people, standard output for what a command answers.
_err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.", show_default=False)]
HookListenOption = Annotated[
    str | None,
    typer.Option("--hook-listen", help="HOST:PORT that the broker reaches [127.0.0.1:9000].", show_default=False),
]
AdminListenOption = Annotated[
    str | None,
    typer.Option("--admin-listen", help="HOST:PORT of API and downloads [127.0.0.1:8080].", show_default=False),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Packages, token, embedded Redis [./ota-hook-data].", show_default=False),
]
RedisUrlOption = Annotated[
    str | None, typer.Option("--redis-url", help="redis://, rediss:// or unix:// [embedded].", show_default=False)
]
PublicUrlOption = Annotated[
    str | None,
    typer.Option("--public-url", help="What devices download from [http:// + admin listen].", show_default=False),
]
TopicsOption = Annotated[
    str | None, typer.Option("--topics", help="Topic dialect: eztcloud, typed or your own.", show_default=False)
]
IdentityOption = Annotated[
    str | None, typer.Option("--identity", help="What identifies a device: username or clientid.", show_default=False)
]
LogLevelOption = Annotated[
    str | None, typer.Option("--log-level", help="debug, info, warning or error.", show_default=False)
]


def _settings(config: Path | None, **flags: object) -> Settings:
    settings = load_settings(flags=flags, environ=os.environ, config=config)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status: 2 for a setting that can't work, 1 for anything that failed."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except ConfigurationError as exc:
        _err.print(f"ota-hook: {exc}", markup=False)
        return EXIT_CONFIGURATION
    except OtaHookError as exc:
        _err.print(f"ota-hook: {exc}", markup=False)
        return EXIT_FAILED
    except typer.Abort:
        return EXIT_FAILED
    except Exception as exc:
        # click's own errors carry their exit status and know how to show themselves.
        show = getattr(exc, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(exc, "exit_code", EXIT_FAILED))
    return result if isinstance(result, int) else 0


def _run(work: Coroutine[Any, Any, int]) -> None:
    status = uvloop.run(work)
    if status:
        raise typer.Exit(status)


@asynccontextmanager
async def _stop_signals() -> AsyncIterator[asyncio.Event]:
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


async def _serve(settings: Settings, roles: frozenset[Role], standin: StandinOptions | None = None) -> int:
    async with _stop_signals() as stop, run_service(settings, roles, standin=standin) as running:
        _announce(settings, running)
        await stop.wait()
        _err.print("ota-hook: stopping")
    return 0


def _announce(settings: Settings, running: Running) -> None:
    lines = [f"ota-hook {package_version('ota-hook')} is serving"]
    if running.hook_address is not None:
        lines.append(
            f"  hook    {running.hook_address}   (EMQX: an ExHook server with url = http://{running.hook_address})"
        )
    if running.admin_url is not None:
        lines.append(f"  admin   {running.admin_url}/api/v1   (devices download from {running.public_url})")
    if running.admin_tls_url is not None:
        lines.append(f"  admin   {running.admin_tls_url}/api/v1")
    if running.mqtt_url is not None:
        lines.append(f"  broker  {running.mqtt_url}   (a stand-in for development, not EMQX)")
    if running.token_was_made:
        lines.append(
            f"  token   {running.token}   (made now and shown once; kept in {settings.data_dir / 'admin-token'})"
        )
    for line in lines:
        _err.print(line, markup=False)


@app.command()
def serve(
    *,
    config: ConfigOption = None,
    hook_listen: HookListenOption = None,
    admin_listen: AdminListenOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
    public_url: PublicUrlOption = None,
    topics: TopicsOption = None,
    identity: IdentityOption = None,
    log_level: LogLevelOption = None,
    standin: Annotated[bool, typer.Option("--standin", help="Bring a stand-in MQTT broker, for development.")] = False,
    standin_listen: Annotated[str, typer.Option(help="HOST:PORT of the stand-in.")] = "127.0.0.1:1883",
    standin_package: Annotated[
        Literal["v2", "v3"], typer.Option(help="What the stand-in speaks: v2 (EMQX 5.0 - 5.8) or v3 (5.9 and later).")
    ] = "v2",
) -> None:
    """Run everything in one process: hook, admin API, downloads and, without a Redis URL, an embedded Redis."""
    settings = _settings(
        config,
        hook_listen=hook_listen,
        admin_listen=admin_listen,
        data_dir=data_dir,
        redis_url=redis_url,
        public_url=public_url,
        topics=topics,
        identity=identity,
        log_level=log_level,
    )
    options = StandinOptions(listen=_listen(standin_listen), package=standin_package) if standin else None
    _run(_serve(settings, frozenset(Role), options))


@app.command()
def hook(
    *,
    config: ConfigOption = None,
    hook_listen: HookListenOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
    public_url: PublicUrlOption = None,
    topics: TopicsOption = None,
    identity: IdentityOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Run the hook role alone: the ExHook gRPC server that the broker calls."""
    settings = _settings(
        config,
        hook_listen=hook_listen,
        data_dir=data_dir,
        redis_url=redis_url,
        public_url=public_url,
        topics=topics,
        identity=identity,
        log_level=log_level,
    )
    _run(_serve(settings, frozenset({Role.HOOK})))


@app.command()
def admin(
    *,
    config: ConfigOption = None,
    admin_listen: AdminListenOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
    public_url: PublicUrlOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Run the admin role alone: the REST API and the package downloads."""
    settings = _settings(
        config,
        admin_listen=admin_listen,
        data_dir=data_dir,
        redis_url=redis_url,
        public_url=public_url,
        log_level=log_level,
    )
    _run(_serve(settings, frozenset({Role.ADMIN})))


@app.command()
def version(*, as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Print the version."""
    number = package_version("ota-hook")
    if as_json:
        sys.stdout.write(orjson.dumps({"version": number, "python": platform.python_version()}).decode() + "\n")
    else:
        sys.stdout.write(f"ota-hook {number}\n")


def _listen(text: str) -> Listen:
    try:
        return parse_listen(text)
    except ValueError as exc:
        raise ConfigurationError(f"{text!r}: {exc}.") from exc
