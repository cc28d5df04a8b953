"""The commands that people type: each reads settings, starts what bootstrap/ joins, and prints. No logic here."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
import typer
from typer.core import TyperCommand

from ota_hook.cli_attempts import attempts
from ota_hook.cli_devices import devices
from ota_hook.cli_firmware import check, firmware
from ota_hook.cli_rules import rules
from ota_hook.cli_runs import task
from ota_hook.cli_simulation import demo, fleet
from ota_hook.cli_types import types
from ota_hook.cli_versions import versions
from ota_hook.errors import ConfigurationError, OtaHookError
from ota_hook.settings import Listen, Settings, load_settings, parse_listen

if TYPE_CHECKING:  # the roles' imports take longer than most commands run
    from ota_hook.bootstrap.roles import Running

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2

app = typer.Typer(
    name="ota-hook",
    help="Over-the-air firmware upgrades for fleets on the EMQX MQTT broker.\n\n"
    "Start with `ota-hook demo`, then `ota-hook serve`. A setting is an environment variable OTA_HOOK_…,"
    " a line of the file given with --config, and the common ones are flags (flag > environment > file > default).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

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
    str | None,
    typer.Option(
        "--redis-url",
        help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// [embedded].",
        show_default=False,
    ),
]
PublicUrlOption = Annotated[
    str | None,
    typer.Option("--public-url", help="What devices download from [http:// + admin listen].", show_default=False),
]
TopicsOption = Annotated[
    str | None, typer.Option("--topics", help="Topic dialect: eztcloud, typed or your own.", show_default=False)
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Hook processes on the one port [1].", show_default=False)
]
IdentityOption = Annotated[
    str | None, typer.Option("--identity", help="What identifies a device: username or clientid.", show_default=False)
]
LogLevelOption = Annotated[
    str | None, typer.Option("--log-level", help="debug, info, warning or error.", show_default=False)
]


class PlainUsage(TyperCommand):
    """A command whose usage line shows an argument as people type it: DEVICE, not {DEVICE}."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer's own class has moved before
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer's way to call
    if asked:
        sys.stdout.write(f"ota-hook {package_version('ota-hook')}\n")
        raise typer.Exit


@app.callback()
def _before_any_command(
    *,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None: ...


def _settings(config: Path | None, defaults: Mapping[str, object] = MappingProxyType({}), **flags: object) -> Settings:
    from ota_hook.log import configure_logging  # noqa: PLC0415 - see above

    settings = load_settings(flags=flags, environ=os.environ, config=config, defaults=defaults)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status: 2 for a setting that can't work, 1 for anything that failed."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except ConfigurationError as exc:
        _tell(f"ota-hook: {exc}")
        return EXIT_CONFIGURATION
    except OtaHookError as exc:
        _tell(f"ota-hook: {exc}")
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


def _serve(
    settings: Settings,
    *roles: str,
    standin_listen: Listen | None = None,
    standin_package: Literal["v2", "v3"] = "v2",
) -> None:
    """Run the roles until a signal comes."""
    import uvloop  # noqa: PLC0415 - see above

    from ota_hook.bootstrap.process import stop_signals  # noqa: PLC0415
    from ota_hook.bootstrap.roles import Role  # noqa: PLC0415
    from ota_hook.bootstrap.service import run_service  # noqa: PLC0415
    from ota_hook.bootstrap.standin import StandinOptions  # noqa: PLC0415

    standin = StandinOptions(listen=standin_listen, package=standin_package) if standin_listen is not None else None

    async def serve_until_stopped() -> None:
        async with (
            stop_signals() as stop,
            run_service(settings, frozenset(map(Role, roles)), standin=standin) as running,
        ):
            _announce(settings, running)
            await stop.wait()
            _tell("ota-hook: stopping")

    uvloop.run(serve_until_stopped())


def _tell(line: str) -> None:
    """The terminal is for people; standard output is for what a command answers."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


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
    if running.runs_pushes:
        lines.append("  worker  runs tasks")
    if running.mqtt_url is not None:
        lines.append(f"  broker  {running.mqtt_url}   (a stand-in for development, not EMQX: MQTT 3.1.1 alone)")
    if running.token_was_made:
        lines.append(
            f"  token   {running.token}   (made now and shown once; kept in {settings.data_dir / 'admin-token'})"
        )
    for line in lines:
        _tell(line)


@app.command()
def serve(
    *,
    config: ConfigOption = None,
    hook_listen: HookListenOption = None,
    workers: WorkersOption = None,
    admin_listen: AdminListenOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
    public_url: PublicUrlOption = None,
    topics: TopicsOption = None,
    identity: IdentityOption = None,
    log_level: LogLevelOption = None,
    standin: Annotated[
        bool, typer.Option("--standin", help="Bring a stand-in broker (MQTT 3.1.1), for development.")
    ] = False,
    standin_listen: Annotated[str, typer.Option(help="HOST:PORT of the stand-in.")] = "127.0.0.1:1883",
    standin_package: Annotated[
        Literal["v2", "v3"], typer.Option(help="What the stand-in speaks: v2 (EMQX 5.0 - 5.8) or v3 (5.9 and later).")
    ] = "v2",
) -> None:
    """Run everything in one process: hook, admin API, downloads and, without a Redis URL, an embedded Redis.

    It keeps the terminal until Ctrl-C; give the other commands another one. Tasks run too, where a broker is configured
    (OTA_HOOK_MQTT_URL) or brought (--standin).

    \b
    Example: ota-hook serve --admin-listen 127.0.0.1:8081
    Example: ota-hook serve --standin
    """
    broker = _listen(standin_listen) if standin else None
    settings = _settings(
        config,
        # With port 0 nobody knows it yet.
        {"mqtt_url": f"mqtt://{broker}"} if broker is not None and broker.port else {},
        hook_listen=hook_listen,
        hook_workers=workers,
        admin_listen=admin_listen,
        data_dir=data_dir,
        redis_url=redis_url,
        public_url=public_url,
        topics=topics,
        identity=identity,
        log_level=log_level,
    )
    pushes = ["worker"] if standin or settings.can_publish else []
    _serve(
        settings,
        "hook",
        "admin",
        *pushes,
        standin_listen=broker,
        standin_package=standin_package,
    )


@app.command()
def hook(
    *,
    config: ConfigOption = None,
    hook_listen: HookListenOption = None,
    workers: WorkersOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
    public_url: PublicUrlOption = None,
    topics: TopicsOption = None,
    identity: IdentityOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Run the hook role alone: the ExHook gRPC server that the broker calls.

    \b
    Example: ota-hook hook --workers 4 --redis-url redis://10.0.0.2:6379
    """
    settings = _settings(
        config,
        hook_listen=hook_listen,
        hook_workers=workers,
        data_dir=data_dir,
        redis_url=redis_url,
        public_url=public_url,
        topics=topics,
        identity=identity,
        log_level=log_level,
    )
    _serve(settings, "hook")


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
    """Run the admin role alone: the REST API and the package downloads.

    \b
    Example: ota-hook admin --redis-url redis://10.0.0.2:6379 --public-url http://firmware.example.com
    """
    settings = _settings(
        config,
        admin_listen=admin_listen,
        data_dir=data_dir,
        redis_url=redis_url,
        public_url=public_url,
        log_level=log_level,
    )
    _serve(settings, "admin")


@app.command()
def worker(
    *,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
    mqtt_url: Annotated[
        str | None,
        typer.Option("--mqtt-url", help="mqtt:// or mqtts:// of the broker that runs publish to.", show_default=False),
    ] = None,
    public_url: PublicUrlOption = None,
    topics: TopicsOption = None,
    identity: IdentityOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Run the worker role alone: schedules and pushes. Any number of them share the work.

    \b
    Example: ota-hook worker --redis-url redis://10.0.0.2:6379 --mqtt-url mqtt://10.0.0.7
    """
    settings = _settings(
        config,
        data_dir=data_dir,
        redis_url=redis_url,
        mqtt_url=mqtt_url,
        public_url=public_url,
        topics=topics,
        identity=identity,
        log_level=log_level,
    )
    _serve(settings, "worker")


app.command()(demo)
app.command()(fleet)
app.add_typer(types, name="types")
app.add_typer(devices, name="devices")
app.add_typer(firmware, name="firmware")
app.add_typer(attempts, name="attempts")
app.add_typer(rules, name="rules")
app.add_typer(versions, name="versions")
app.add_typer(task, name="task")
app.command()(check)


@app.command()
def version(*, as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Print the version.

    \b
    Example: ota-hook version --json
    """
    number = package_version("ota-hook")
    if as_json:
        sys.stdout.write(orjson.dumps({"version": number, "python": platform.python_version()}).decode() + "\n")
    else:
        sys.stdout.write(f"ota-hook {number}\n")


for _group in (app, types, devices, firmware, rules, versions, task):
    for _command in _group.registered_commands:
        _command.cls = PlainUsage


def _listen(text: str) -> Listen:
    try:
        return parse_listen(text)
    except ValueError as exc:
        raise ConfigurationError(f"{text!r}: {exc}.") from exc
