"""The demo: sets up its plan, runs the fleet, shows it converge, and says whether every device became what it should.

Owns what is shown. It must not know how the parts are started: it is given their addresses.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ota_hook.api_client import ApiClient
from ota_hook.standin.demo_plan import DEVICE_TYPE, GATEWAY, DemoPlan, prepare
from ota_hook.standin.fleet import (
    DeviceBehaviour,
    DeviceSpec,
    FleetOptions,
    FleetReport,
    FleetView,
    Phase,
    SimulatedFleet,
)

TIME_LIMIT_S: Final = 120.0
_CHECK_INTERVAL_S: Final = 10.0
_BRISK: Final = DeviceBehaviour(start_spread_s=1.5)
"""Not all in one instant: broker, hook, admin API and devices share one process here."""
_UNHURRIED: Final = DeviceBehaviour(check_interval_s=_CHECK_INTERVAL_S, start_spread_s=4.0, reboot_s=1.5)
"""For people who watch: all at once would be over before the table is read."""
_LINE_INTERVAL_S: Final = 1.0
_FAULTS_SHOWN: Final = 5
_BAR_WIDTH: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """The numbers, and why the demo failed (None: every device is what it should be)."""

    summary: FleetReport
    reason: str | None

    @property
    def succeeded(self) -> bool:
        return self.reason is None


async def run_demo(
    *,
    api_url: str,
    token: str,
    mqtt_url: str,
    once: bool,
    as_json: bool,
    console: Console,
    time_limit_s: float = TIME_LIMIT_S,
) -> DemoResult:
    """Prepare, run 50 devices, some of them a gateway and its children, until all are current, and judge.

    `once`: return then. Otherwise say what to try next, keep the devices asking, and run until cancelled. `as_json`:
    the progress goes to stderr and one JSON object to stdout as soon as the result is there. Raises OtaHookError where
    the admin API refuses or does not answer.
    """
    progress = Console(stderr=True) if as_json else console
    with ApiClient(api_url, token) as api:
        plan = await asyncio.to_thread(prepare, api)
    behaviour = _BRISK if once else _UNHURRIED
    devices = [DeviceSpec(device.identifier, DEVICE_TYPE, device.version) for device in plan.direct]
    options = FleetOptions(mqtt_url=mqtt_url, devices=devices, gateways=[GATEWAY], behaviour=behaviour)
    fleet = SimulatedFleet(options)
    running = asyncio.create_task(fleet.run())
    try:
        in_time = await watch(fleet, plan, progress, time_limit_s=time_limit_s)
        if running.done():
            running.result()
        result = judge(plan, fleet.view, fleet.report(), in_time=in_time, time_limit_s=time_limit_s)
        _show_result(result, progress, as_json=as_json)
        if not once:
            _show_next_steps(progress, api_url=api_url, mqtt_url=mqtt_url)
            await _show_upgrades(fleet, progress)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return result


def judge(plan: DemoPlan, view: FleetView, summary: FleetReport, *, in_time: bool, time_limit_s: float) -> DemoResult:
    """Hold each device against the plan."""
    faults = [
        fault
        for planned, seen in zip(plan.devices, view.devices, strict=True)
        if (fault := planned.find_fault(seen)) is not None
    ]
    if not faults:
        return DemoResult(summary=summary, reason=None)
    reason = "; ".join(faults[:_FAULTS_SHOWN])
    if len(faults) > _FAULTS_SHOWN:
        reason += f"; and {len(faults) - _FAULTS_SHOWN} more"
    if not in_time:
        reason = f"not done after {time_limit_s:g} s: {reason}"
    if plan.foreign:
        reason += f" (there is firmware that is not the demo's: {', '.join(plan.foreign)})"
    return DemoResult(summary=summary, reason=reason)


async def watch(fleet: SimulatedFleet, plan: DemoPlan, console: Console, *, time_limit_s: float) -> bool:
    """Show the fleet until it has settled; returns whether it did within the time limit. Plain lines without a TTY."""
    expected = [device.expected for device in plan.devices]
    shown = ""
    deadline = asyncio.get_running_loop().time() + time_limit_s
    with _live_table(fleet.view, expected, console) as live:
        while (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                async with asyncio.timeout(min(left_s, _LINE_INTERVAL_S)):
                    await fleet.wait_settled()
                    return True
            except TimeoutError:
                pass
            finally:
                line = _progress_line(fleet.view, expected)
                if not live and line != shown:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
                    shown = line
    return False


async def show_progress(view: FleetView, console: Console) -> None:
    """A line a second where something changed, until cancelled. For fleets whose ends nobody planned."""
    shown = ""
    while True:
        line = _state_line(view)
        if line != shown:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            shown = line
        await asyncio.sleep(_LINE_INTERVAL_S)


@contextmanager
def _live_table(view: FleetView, expected: list[str], console: Console) -> Iterator[bool]:
    """A table that refreshes itself while the context lasts, where the console is a terminal; yields whether it is."""
    if not console.is_terminal:
        yield False
        return
    with Live(get_renderable=lambda: _table(view, expected), console=console, refresh_per_second=8):
        yield True


def _arrived(view: FleetView, expected: list[str]) -> int:
    return sum(
        device.phase is Phase.CURRENT and device.version == version
        for device, version in zip(view.devices, expected, strict=True)
    )


def _table(view: FleetView, expected: list[str]) -> Group:
    total, arrived = len(view.devices), _arrived(view, expected)
    versions = Table(title=f"{total} devices, some of them behind a gateway", title_justify="left")
    versions.add_column("version")
    versions.add_column("devices", justify="right")
    versions.add_column("", width=_BAR_WIDTH)
    for version, count in sorted(view.count_versions().items()):
        versions.add_row(version, str(count), _bar(count, total))
    phases = Table.grid(padding=(0, 3))
    counts = view.count_phases()
    phases.add_row(*(Text(f"{phase} {counts[phase]}", style=_style(phase, counts[phase])) for phase in Phase))
    converged = Table.grid(padding=(0, 2))
    converged.add_row("converged", _bar(arrived, total), f"{arrived}/{total}")
    return Group(versions, phases, converged)


def _bar(completed: int, total: int) -> ProgressBar:
    # Named colours: the theme's own "finished" looks empty on a terminal of sixteen.
    return ProgressBar(
        total=total, completed=completed, width=_BAR_WIDTH, complete_style="cyan", finished_style="green"
    )


def _style(phase: Phase, count: int) -> str:
    if not count:
        return "dim"
    return {Phase.FAILED: "bold red", Phase.CURRENT: "green"}.get(phase, "")


def _progress_line(view: FleetView, expected: list[str]) -> str:
    return f"{_arrived(view, expected)}/{len(view.devices)} converged  |  {_state_line(view)}"


def _state_line(view: FleetView) -> str:
    versions = ", ".join(f"{version}: {count}" for version, count in sorted(view.count_versions().items()))
    counts = view.count_phases()
    phases = ", ".join(f"{counts[phase]} {phase}" for phase in Phase if counts[phase])
    return f"{versions}  |  {phases}"


def _show_result(result: DemoResult, console: Console, *, as_json: bool) -> None:
    summary = result.summary
    if result.reason is None:
        console.print(
            f"All {summary.devices} devices ({summary.children} of them behind {summary.gateways} gateway) are where"
            f" they should be: {summary.upgraded} upgraded, {summary.offers} offers, {summary.downloads} downloads,"
            f" in {summary.seconds:.1f} s.",
            style="green",
            soft_wrap=True,
        )
    else:
        console.print(
            f"The demo failed: {result.reason}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
    if as_json:
        sys.stdout.write(json.dumps(asdict(summary)) + "\n")
        sys.stdout.flush()


def _show_next_steps(console: Console, *, api_url: str, mqtt_url: str) -> None:
    api = api_url.rstrip("/") + "/api/v1"
    auth = '-H "Authorization: Bearer $TOKEN"'
    host, _, port = mqtt_url.removeprefix("mqtt://").rpartition(":")
    lines = [
        "",
        "Everything keeps running; the devices ask again every 10 s. What to try next, with the admin token in TOKEN:",
        "",
        "  A newer firmware for everyone, and see the devices take it below:",
        "    head -c 100000 /dev/urandom > firmware.bin",
        f"    curl {auth} -F device_type={DEVICE_TYPE} -F version=3.0.0 -F file=@firmware.bin {api}/firmware",
        "  Why a device would get what it would get:",
        f'    curl {auth} "{api}/check?device={DEVICE_TYPE}-01"',
        "  What the devices are told:",
        f"    mosquitto_sub -h {host} -p {port} -v -t 'command_send/#' -t 'sub_command_send/#'",
        "  Or see all of a gateway's children:",
        f'    curl {auth} "{api}/devices?gateway={GATEWAY.identifier}"',
        "",
        "Ctrl-C ends it.",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


async def _show_upgrades(fleet: SimulatedFleet, console: Console) -> None:
    """One line for each device that reaches another version, or fails, until cancelled."""
    known = {device.identifier: (device.version, device.error) for device in fleet.view.devices}
    while True:
        await asyncio.sleep(_LINE_INTERVAL_S)
        for device in fleet.view.devices:
            version, error = known[device.identifier]
            if device.error is not None and device.error != error:
                console.print(f"{device.identifier} failed: {device.error}", markup=False, highlight=False)
            elif device.phase is Phase.CURRENT and device.version != version:
                console.print(f"{device.identifier}: {version} -> {device.version}", markup=False, highlight=False)
            elif device.phase is not Phase.CURRENT:
                continue
            known[device.identifier] = (device.version, device.error)
