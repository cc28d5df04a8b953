"""One simulated direct device: its own connection to the broker, over which it says and hears everything.

Owns a direct device's messages. What it does when is upgrading.py's; how it is connected is link.py's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import httpx

from ota_hook.standin.behaviour import DeviceBehaviour, DeviceFailureError, DeviceProgress, Phase
from ota_hook.standin.commands import METHOD, Command, UpgradeCommand, WireViolationError, read_command
from ota_hook.standin.download import InstallResult
from ota_hook.standin.link import Connector, Heard, Inbox, Link, live
from ota_hook.standin.pieces import PieceFetcher, Pieces
from ota_hook.standin.upgrading import HttpFetcher, Upgrader


class DirectLine:
    """upgrading.Line and pieces.PieceLine on a device's own connection. `inbox`: where what is said to it comes in."""

    def __init__(self, link: Link, inbox: Inbox, behaviour: DeviceBehaviour) -> None:
        self._link = link
        self._inbox = inbox
        self._behaviour = behaviour
        self._commands: deque[Command] = deque()

    async def report(self, version: str) -> None:
        """See upgrading.Line."""
        await self._link.say("attributes", {self._behaviour.version_attribute: version})

    async def ask(self) -> None:
        """See upgrading.Line."""
        await self._link.say("event_report", {"method": self._behaviour.event, "params": {}})

    async def reply(self, command_id: int, result: InstallResult) -> None:
        """See upgrading.Line."""
        await self._link.say(
            "command_reply", {"method": METHOD, "params": {"ota_result": int(result)}, "id": command_id}
        )

    async def next_command(self, timeout_s: float) -> Command | None:
        """See upgrading.Line. Other methods and modules are passed over, and pieces that come late."""
        if self._commands:
            return self._commands.popleft()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (heard := await self._inbox.next_heard(deadline - loop.time())) is not None:
            if not self._is_piece(heard) and (command := self._read(heard)) is not None:
                return command
        return None

    async def ask_piece(self, command: UpgradeCommand, offset: int, length: int) -> None:
        """See pieces.PieceLine."""
        params = {"module": command.module, "version": command.version, "offset": offset, "length": length}
        await self._link.say("event_report", {"method": "otaChunk", "params": params})

    async def next_piece(self, timeout_s: float) -> bytes | None:
        """See pieces.PieceLine. A command that comes meanwhile waits."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (heard := await self._inbox.next_heard(deadline - loop.time())) is not None:
            if self._is_piece(heard):
                return heard.payload
            if (command := self._read(heard)) is not None:
                self._commands.append(command)
        return None

    def cut(self) -> None:
        """See pieces.PieceLine."""
        self._link.cut()

    def _is_piece(self, heard: Heard) -> bool:
        return heard.topic == self._link.topic("ota_chunk")

    def _read(self, heard: Heard) -> Command | None:
        try:
            command = read_command(heard.payload)
        except WireViolationError as exc:
            raise DeviceFailureError(f"command against the protocol: {exc}") from exc
        return command if command is not None and command.module == self._behaviour.module else None


class SimulatedDevice:
    """One device's lives, from power-on until it is current (or, with `check_interval_s`, for ever).

    With `pieces` it takes its firmware over MQTT, else over HTTP.
    """

    def __init__(
        self,
        progress: DeviceProgress,
        behaviour: DeviceBehaviour,
        *,
        connector: Connector,
        http: httpx.AsyncClient,
        on_change: Callable[[], None],
        pieces: Pieces | None = None,
    ) -> None:
        self.progress = progress
        self._behaviour = behaviour
        self._connector = connector
        self._upgrader = Upgrader(progress, behaviour, on_change)
        self._http_fetcher = HttpFetcher(http, behaviour)
        self._piece_fetcher = PieceFetcher(progress, behaviour, pieces) if pieces is not None else None

    async def run(self, *, power_on_after_s: float = 0.0) -> None:
        """Live. Never raises but when cancelled."""
        await asyncio.sleep(power_on_after_s)
        await live(self.progress, self._behaviour, self._live_once, self._upgrader.enter)

    async def _live_once(self) -> bool:
        return await self._connector.live_once(self.progress, self._be_connected, on_lost=self._lose)

    def _lose(self) -> None:
        self._upgrader.enter(Phase.CONNECTING)

    async def _be_connected(self, link: Link) -> bool:
        line = DirectLine(link, link, self._behaviour)
        if self._piece_fetcher is None:
            await link.hear("command_send")
            return await self._upgrader.live_on(line, self._http_fetcher)
        await link.hear("command_send", "ota_chunk")
        self._piece_fetcher.line = line
        try:
            return await self._upgrader.live_on(line, self._piece_fetcher)
        except WireViolationError as exc:
            raise DeviceFailureError(f"piece against the protocol: {exc}") from exc
