"""The commands with simulated devices: `demo`, which brings everything, and `fleet` for a broker that is there.

They start what bootstrap/ and standin/ join, and print. No logic here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import quote

import orjson
import typer
import uvloop
from rich.console import Console

from ota_hook.cli_session import Session, open_session
from ota_hook.errors import ConfigurationError, ConflictError, InputError
from ota_hook.settings import Listen, Settings, load_settings
from ota_hook.terminal import count_text

if TYPE_CHECKING:  # as the roles' imports
    from ota_hook.standin.fleet import FleetOptions

_DEFAULT_BROKER: Final = Listen("127.0.0.1", 1883)
_FAULTS_SHOWN: Final = 5


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="End when the fleet has converged: status 0, else 1.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One summary object, last on standard output.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Keep the demo's data here [a temporary folder, removed at the end].", show_default=False),
    ] = None,
) -> None:
    """See a fleet upgrade: broker, Redis, hook, admin API and 50 simulated devices, some of them behind a gateway.

    All on this machine, on the usual ports where they are free. Goes on serving until Ctrl-C, so that you can try the
    API on it.

    \b
    Example: ota-hook demo --once --json
    """
    from ota_hook.log import configure_logging  # noqa: PLC0415 - `--help` needs none of this

    configure_logging("warning", "auto")
    with _demo_settings(data_dir) as (settings, broker):
        status = uvloop.run(_run_demo(settings, broker, once=once, as_json=as_json))
    if status:
        raise typer.Exit(status)


@contextlib.contextmanager
def _demo_settings(data_dir: Path | None) -> Iterator[tuple[Settings, Listen]]:
    """The defaults on free ports, nothing of the caller's own configuration: a demo must not touch a deployment."""
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ota-hook-demo-")))
        defaults = load_settings(flags={}, environ={})
        flags = {
            "data_dir": data_dir,
            "hook_listen": _free(defaults.hook_listen),
            "admin_listen": _free(defaults.admin_listen),
            # Broker, hook, API and devices share one loop here: a busy moment of it is no broken Redis.
            "answer_budget_ms": 1_000,
        }
        yield load_settings(flags=flags, environ={}), _free(_DEFAULT_BROKER)


def _free(listen: Listen) -> Listen:
    """`listen`, or any port of the same host where that one is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(listen)
        except OSError:
            return Listen(listen.host, 0)
    return listen


async def _run_demo(settings: Settings, broker: Listen, *, once: bool, as_json: bool) -> int:
    from ota_hook.bootstrap.process import stop_signals  # noqa: PLC0415 - as above
    from ota_hook.bootstrap.roles import Role  # noqa: PLC0415
    from ota_hook.bootstrap.service import run_service  # noqa: PLC0415
    from ota_hook.bootstrap.standin import StandinOptions  # noqa: PLC0415
    from ota_hook.standin.demo import run_demo  # noqa: PLC0415

    console = Console(stderr=as_json, highlight=False)
    async with (
        stop_signals() as stop,
        run_service(settings, frozenset(Role), standin=StandinOptions(listen=broker)) as running,
    ):
        admin_url, mqtt_url, token = running.admin_url or "", running.mqtt_url or "", running.token or ""
        console.print(f"admin API {admin_url}   broker {mqtt_url}   hook {running.hook_address}", soft_wrap=True)
        console.print(f"export TOKEN={token}", markup=False, soft_wrap=True)
        showing = asyncio.create_task(
            run_demo(
                api_url=admin_url,
                token=token,
                mqtt_url=mqtt_url,
                once=once,
                as_json=as_json,
                console=console,
            )
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((showing, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if showing.done():
            return 0 if showing.result().succeeded else 1
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
    return 0


def fleet(
    *,
    mqtt_url: Annotated[
        str | None, typer.Option(help="The broker, mqtt://HOST:PORT [OTA_HOOK_MQTT_URL].", show_default=False)
    ] = None,
    device_type: Annotated[str, typer.Option("--type", help="The key of the devices' type.")] = "simulated",
    devices: Annotated[int, typer.Option(min=0, max=10_000, help="How many direct devices.")] = 10,
    chunked: Annotated[
        int, typer.Option(min=0, metavar="N", help="So many of them take their firmware over MQTT, in pieces.")
    ] = 0,
    cut: Annotated[
        bool, typer.Option("--cut", help="Those cut their connection once, in the middle of it, and go on there.")
    ] = False,
    gateways: Annotated[int, typer.Option(min=0, max=1_000, metavar="N", help="How many gateways.")] = 0,
    children: Annotated[
        int, typer.Option(min=0, max=1_000, metavar="M", help="How many children each gateway has.")
    ] = 5,
    gateway_family: Annotated[
        Literal["gateway", "sub", "mixed"],
        typer.Option(help="How gateways speak: for one level of children, for many, or each way in turn."),
    ] = "mixed",
    gateway_type: Annotated[str, typer.Option(help="The key of the gateways' own type.")] = "simulated-gateway",
    prefix: Annotated[
        str,
        typer.Option(help="Identifiers are PREFIX-00001, … and PREFIX-gateway-00001, …; also username and client id."),
    ] = "sim",
    version: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What they run; several are dealt out in turn [1.0.0].", show_default=False),
    ] = None,
    module: Annotated[str, typer.Option(help="Which module's commands they follow.")] = "main",
    topics: Annotated[Literal["eztcloud", "typed"], typer.Option(help="The topic dialect.")] = "eztcloud",
    register: Annotated[
        bool,
        typer.Option(
            "--register",
            help="Create types, devices and gateways through the admin API first; children register by themselves.",
        ),
    ] = False,
    check_every: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Stay, and ask again after so many seconds [ask until current, then end].", show_default=False
        ),
    ] = None,
    api: Annotated[str | None, typer.Option(help="The admin API, for --register.", show_default=False)] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where its token is kept.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One summary object on standard output.")] = False,
) -> None:
    """Run simulated devices against any broker: they report, ask, download, verify, "reboot" and report again.

    Children are of the type that --type names, as devices are; their gateways say so when they come.

    \b
    Example: ota-hook fleet --mqtt-url mqtt://127.0.0.1:1883 --type tracker --devices 100 --register
    Example: ota-hook fleet --mqtt-url mqtt://127.0.0.1:1883 --devices 0 --gateways 3 --children 20 --register
    """
    settings = load_settings(flags={"mqtt_url": mqtt_url, "data_dir": data_dir}, environ=os.environ, config=config)
    if settings.mqtt_url is None:
        raise ConfigurationError("No broker is named.", mend="Give --mqtt-url mqtt://HOST:PORT.")
    from ota_hook.standin.fleet import TOPICS, DeviceBehaviour, FleetOptions  # noqa: PLC0415 - as above
    from ota_hook.standin.fleet_plan import plan_devices, plan_gateways  # noqa: PLC0415

    versions = version or ["1.0.0"]
    options = FleetOptions(
        mqtt_url=settings.mqtt_url.get_secret_value(),
        devices=plan_devices(devices, prefix, device_type, versions, chunked=chunked, cut=cut),
        gateways=plan_gateways(
            gateways, prefix, gateway_type, device_type, versions, children=children, family=gateway_family
        ),
        behaviour=DeviceBehaviour(topics=TOPICS[topics], module=module, check_interval_s=check_every),
    )
    if register:
        types = {spec.identifier: spec.device_type for spec in options.devices}
        types |= {spec.identifier: spec.device_type for spec in options.gateways}
        with open_session(api=api, config=config, data_dir=data_dir, as_json=as_json) as session:
            _register(session, {device_type, *types.values()}, types)
    status = uvloop.run(_run_fleet(options, as_json=as_json))
    if status:
        raise typer.Exit(status)


def _register(session: Session, types: Iterable[str], devices: Mapping[str, str]) -> None:
    """Create types that are missing (those that are there stay as they are); register devices, each under its own."""
    for key in sorted(types):
        with contextlib.suppress(ConflictError):
            session.api.put(f"/device-types/{quote(key, safe='')}", {"name": key}, only_new=True)
    lines = (orjson.dumps({"identifier": name, "type": key}) + b"\n" for name, key in devices.items())
    answer = session.api.send_lines("POST", "/devices-import", lines)
    if answer["failed"]:
        raise InputError(f"{answer['failed']} devices were refused: {answer['errors'][0]['detail']}")


async def _run_fleet(options: FleetOptions, *, as_json: bool) -> int:
    """Until every device is current or failed, or – where they stay – until Ctrl-C. 1 where one failed."""
    from ota_hook.bootstrap.process import stop_signals  # noqa: PLC0415 - as above
    from ota_hook.standin.demo import show_progress  # noqa: PLC0415
    from ota_hook.standin.fleet import SimulatedFleet  # noqa: PLC0415

    simulated = SimulatedFleet(options)
    console = Console(stderr=True, highlight=False)
    async with stop_signals() as stop:
        tasks = [
            asyncio.create_task(simulated.run()),
            asyncio.create_task(stop.wait()),
            asyncio.create_task(show_progress(simulated.view, console)),
        ]
        await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]
    report = simulated.report()
    for device in [device for device in simulated.view.devices if device.error is not None][:_FAULTS_SHOWN]:
        console.print(f"{device.identifier}: {device.error}", markup=False)
    if as_json:
        sys.stdout.write(orjson.dumps(asdict(report)).decode() + "\n")
    else:
        console.print(
            f"{count_text(report.devices, 'device')}"
            f" ({count_text(report.gateways, 'gateway')}, {report.children:,} children):"
            f" {report.upgraded} upgraded, {report.failed} failed, {report.offers} offers,"
            f" {report.downloads} downloads, {report.seconds:.1f} s",
            soft_wrap=True,
        )
    return 1 if report.failed else 0
