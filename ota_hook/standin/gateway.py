"""One simulated gateway: a direct device, which speaks for children over its connection once it is current itself.

Owns who hears what on a gateway's link, and when its children live. What a child does when is upgrading.py's, as for
any device; what is said of children looks as gathering.py has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import httpx

from ota_hook.standin.behaviour import SETTLED, DeviceBehaviour, DeviceFailureError, DeviceProgress, Phase
from ota_hook.standin.commands import METHOD, Command, WireViolationError, read_child_command
from ota_hook.standin.device import DirectLine
from ota_hook.standin.download import InstallResult
from ota_hook.standin.gathering import GatewayForm, Gatherer, Path, Saying
from ota_hook.standin.link import Connector, Heard, Link, live
from ota_hook.standin.upgrading import HttpFetcher, Upgrader

T = TypeVar("T")
_WAITING_MAX: Final = 16


class _Box(Generic[T]):
    """What came for one device and waits to be read; what does not fit is lost, as in any MQTT client."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[T] = asyncio.Queue(_WAITING_MAX)

    def put(self, one: T) -> None:
        if not self._waiting.full():
            self._waiting.put_nowait(one)

    async def next(self, timeout_s: float) -> T | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._waiting.get()
        except TimeoutError:
            return None


class _OwnInbox(_Box[Heard]):
    """link.Inbox of the gateway itself."""

    async def next_heard(self, timeout_s: float) -> Heard | None:
        """See link.Inbox."""
        return await self.next(timeout_s)


class _ChildLine:
    """upgrading.Line of a child: its gateway says for it what it has to say."""

    def __init__(self, gatherer: Gatherer, path: Path, behaviour: DeviceBehaviour) -> None:
        self.commands = _Box[Command]()
        self._gatherer = gatherer
        self._path = path
        self._behaviour = behaviour

    async def come(self, product: str) -> None:
        """Say that it is there, and of which device type it is."""
        await self._gatherer.say(Saying.CONNECT, self._path, {"product": product})

    async def go(self) -> None:
        """Say that it is gone."""
        await self._gatherer.say(Saying.DISCONNECT, self._path, {})

    async def report(self, version: str) -> None:
        """See upgrading.Line."""
        await self._gatherer.say(Saying.ATTRIBUTES, self._path, {self._behaviour.version_attribute: version})

    async def ask(self) -> None:
        """See upgrading.Line."""
        await self._gatherer.say(Saying.EVENT, self._path, {"event": {"method": self._behaviour.event, "params": {}}})

    async def reply(self, command_id: int, result: InstallResult) -> None:
        """See upgrading.Line. The id stands inside and outside, as both are in use."""
        command = {"method": METHOD, "params": {"ota_result": int(result)}, "id": command_id}
        await self._gatherer.say(Saying.REPLY, self._path, {"command": command, "id": command_id})

    async def next_command(self, timeout_s: float) -> Command | None:
        """See upgrading.Line."""
        return await self.commands.next(timeout_s)


class SimulatedChild:
    """One child's lives behind its gateway, which outlive a connection of the gateway's."""

    def __init__(self, progress: DeviceProgress, path: Path, behaviour: DeviceBehaviour, upgrader: Upgrader) -> None:
        self.progress = progress
        self.path = path
        self._behaviour = behaviour
        self._upgrader = upgrader

    async def run(self, line: _ChildLine, fetcher: HttpFetcher) -> None:
        """Live on this line until it is current, or for ever. Raises nothing but when cancelled."""

        async def live_once() -> bool:
            await line.come(self.progress.device_type)
            rebooting = await self._upgrader.live_on(line, fetcher)
            if rebooting:
                await line.go()
            return rebooting

        if self._behaviour.check_interval_s is None and self.progress.phase in SETTLED:
            return
        await live(self.progress, self._behaviour, live_once, self._upgrader.enter)

    def lose(self) -> None:
        """Its gateway's connection is cut."""
        if self.progress.phase not in SETTLED:
            self._upgrader.enter(Phase.CONNECTING)

    def fail(self, reason: str) -> None:
        """It can't go on, for its gateway can't."""
        self.progress.error = reason
        self._upgrader.enter(Phase.FAILED)


class SimulatedGateway:
    """One gateway's lives with its children's, from power-on until all are current (or, where they stay, for ever)."""

    def __init__(
        self,
        progress: DeviceProgress,
        children: Sequence[tuple[Path, DeviceProgress]],
        behaviour: DeviceBehaviour,
        *,
        form: GatewayForm,
        connector: Connector,
        http: httpx.AsyncClient,
        on_change: Callable[[], None],
    ) -> None:
        self.progress = progress
        self._behaviour = behaviour
        self._form = form
        self._connector = connector
        self._fetcher = HttpFetcher(http, behaviour)
        self._upgrader = Upgrader(progress, behaviour, on_change)
        self._children = [
            SimulatedChild(child, path, behaviour, Upgrader(child, behaviour, on_change)) for path, child in children
        ]

    async def run(self, *, power_on_after_s: float = 0.0) -> None:
        """Live. Never raises but when cancelled."""
        await asyncio.sleep(power_on_after_s)
        await live(self.progress, self._behaviour, self._live_once, self._upgrader.enter)

    async def _live_once(self) -> bool:
        try:
            return await self._connector.live_once(
                self.progress, self._be_connected, on_lost=self._lose, speaks_for=len(self._children)
            )
        except DeviceFailureError as exc:
            for child in self._children:
                if child.progress.phase not in SETTLED:
                    child.fail(f"its gateway {self.progress.identifier} failed: {exc}")
            raise

    def _lose(self) -> None:
        self._upgrader.enter(Phase.CONNECTING)
        for child in self._children:
            child.lose()

    async def _be_connected(self, link: Link) -> bool:
        await link.hear("command_send", f"{self._form.family}command_send")
        inbox, gatherer = _OwnInbox(), Gatherer(link, self._form)
        lines = {child.path: _ChildLine(gatherer, child.path, self._behaviour) for child in self._children}
        try:
            async with asyncio.TaskGroup() as tasks:
                ears = tasks.create_task(self._listen(link, inbox, lines))
                mouth = tasks.create_task(gatherer.run())
                rebooting = await self._live_on(DirectLine(link, inbox, self._behaviour), lines)
                ears.cancel()
                mouth.cancel()
                return rebooting
        except ExceptionGroup as group:  # one is enough, and ended the others
            raise _first_of(group) from group

    async def _live_on(self, line: DirectLine, lines: dict[Path, _ChildLine]) -> bool:
        """Become current, then have the children live; its own reboot takes them along."""
        if await self._upgrader.become_current(line, self._fetcher):
            return True
        living = [asyncio.create_task(child.run(lines[child.path], self._fetcher)) for child in self._children]
        try:
            if self._behaviour.check_interval_s is not None:
                return await self._upgrader.stay_current(line, self._fetcher)
            await asyncio.gather(*living)
            return False
        finally:
            for task in living:
                task.cancel()
            await asyncio.gather(*living, return_exceptions=True)

    async def _listen(self, link: Link, inbox: _OwnInbox, lines: dict[Path, _ChildLine]) -> None:
        """Hand each message to whom it is for."""
        own = link.topic("command_send")
        async for heard in link.each_heard():
            if heard.topic == own:
                inbox.put(heard)
                continue
            try:
                sent = read_child_command(heard.payload)
            except WireViolationError as exc:
                raise DeviceFailureError(f"child's command against the protocol: {exc}") from exc
            if sent is None or sent.command.module != self._behaviour.module:
                continue
            path = (sent.device,) if isinstance(sent.device, str) else tuple(sent.device)
            line = lines.get(path)
            if line is None or sent.device != self._form.name_child(path):
                raise DeviceFailureError(f"a command for {sent.device!r}, which is no child's name in its form")
            line.commands.put(sent.command)


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first
