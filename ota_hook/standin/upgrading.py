"""How a device comes to its version: it reports, asks, fetches, verifies, replies, and "reboots" into the new one.

Owns the order of what is said, for direct devices and children alike. It must not know how they say it, firmware, rules
or what they ought to be offered: a device does as it is told, and says where it was told wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import httpx

from ota_hook.standin.behaviour import DeviceBehaviour, DeviceFailureError, DeviceProgress, Phase
from ota_hook.standin.commands import Command, UpgradeCommand
from ota_hook.standin.download import Fetched, InstallResult, fetch_package


class Line(Protocol):
    """How a device speaks with the cloud: on its own connection, or through its gateway."""

    async def report(self, version: str) -> None:
        """Say what it runs."""
        ...

    async def ask(self) -> None:
        """Ask for something newer."""
        ...

    async def reply(self, command_id: int, result: InstallResult) -> None:
        """Say what came of a command."""
        ...

    async def next_command(self, timeout_s: float) -> Command | None:
        """The next command for its module, None after the timeout. DeviceFailureError for one against the protocol."""
        ...


class Fetcher(Protocol):
    """How a device comes to a package."""

    @property
    def unfinished(self) -> UpgradeCommand | None:
        """What it was at when its connection was cut, and goes on with before it asks for anything."""
        ...

    async def fetch(self, command: UpgradeCommand) -> Fetched:
        """Fetch and verify."""
        ...


class HttpFetcher:
    """Over HTTP, which does not care for the connection to the broker."""

    unfinished: UpgradeCommand | None = None

    def __init__(self, http: httpx.AsyncClient, behaviour: DeviceBehaviour) -> None:
        self._http = http
        self._behaviour = behaviour

    async def fetch(self, command: UpgradeCommand) -> Fetched:
        """See Fetcher."""
        return await fetch_package(
            self._http,
            command,
            attempts=self._behaviour.download_attempts,
            pause_s=self._behaviour.retry_pause_s,
            timeout_s=self._behaviour.download_timeout_s,
        )


class Upgrader:
    """One device, whatever line it is on."""

    def __init__(self, progress: DeviceProgress, behaviour: DeviceBehaviour, on_change: Callable[[], None]) -> None:
        self.progress = progress
        self._behaviour = behaviour
        self._on_change = on_change

    async def live_on(self, line: Line, fetcher: Fetcher) -> bool:
        """Become current and, where devices stay, stay so. Returns whether it reboots now into another version."""
        return await self.become_current(line, fetcher) or await self.stay_current(line, fetcher)

    async def become_current(self, line: Line, fetcher: Fetcher) -> bool:
        """Ask once, and take what is newer. Returns whether it reboots now into another version."""
        if fetcher.unfinished is not None:
            return await self._upgrade(line, fetcher, fetcher.unfinished)
        if self.progress.phase is not Phase.CURRENT:
            self.enter(Phase.CHECKING)
        if self._behaviour.asks:
            command = await self._check(line)
            if isinstance(command, UpgradeCommand):
                return await self._take_offer(line, fetcher, command)
        else:
            await line.report(self.progress.version)
        self.progress.error = None
        self.enter(Phase.CURRENT)
        return False

    async def stay_current(self, line: Line, fetcher: Fetcher) -> bool:
        """Where devices stay, take what is pushed and ask again. Returns whether it reboots into another version."""
        interval_s = self._behaviour.check_interval_s
        if interval_s is None:
            return False
        while True:
            pushed = await line.next_command(interval_s)
            if isinstance(pushed, UpgradeCommand):
                return await self._take_offer(line, fetcher, pushed)
            if await self.become_current(line, fetcher):
                return True

    def enter(self, phase: Phase) -> None:
        self.progress.phase = phase
        self._on_change()

    async def _check(self, line: Line) -> Command:
        """Report and ask until answered, a bounded number of times. Silence may mean that neither arrived."""
        for _ in range(self._behaviour.check_attempts):
            await line.report(self.progress.version)
            await line.ask()
            command = await line.next_command(self._behaviour.answer_timeout_s)
            if command is not None:
                return command
        raise DeviceFailureError(f"no answer to {self._behaviour.check_attempts} checks")

    async def _take_offer(self, line: Line, fetcher: Fetcher, command: UpgradeCommand) -> bool:
        progress = self.progress
        progress.offers += 1
        if command.version == progress.version:
            raise DeviceFailureError(f"offered {command.version}, which it runs")
        if progress.upgrades >= self._behaviour.upgrades_max:
            raise DeviceFailureError(f"offered {command.version} after {progress.upgrades} upgrades already")
        return await self._upgrade(line, fetcher, command)

    async def _upgrade(self, line: Line, fetcher: Fetcher, command: UpgradeCommand) -> bool:
        """Fetch, verify, reply, and take the new version. Returns True: reboot now."""
        progress = self.progress
        self.enter(Phase.DOWNLOADING)
        result, reason = await fetcher.fetch(command)
        await line.reply(command.id, result)
        if result is not InstallResult.OK:
            raise DeviceFailureError(f"{result.name.lower()}: {command.url}{reason and f' ({reason})'}")
        progress.fetched.append(command.url)
        progress.version = command.version
        progress.upgrades += 1
        self.enter(Phase.REBOOTING)
        return True
