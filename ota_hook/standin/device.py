"""One simulated device: reports, asks, downloads, verifies, "reboots" into the new version, and asks again.

Owns the device's side of the protocol over real MQTT and real HTTP. It must not know firmware, rules or what it ought
to be offered: it does as it is told, and says where it was told wrongly.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

import aiomqtt
import httpx

from ota_hook.publish.mqtt import BrokerAddress
from ota_hook.standin.commands import METHOD, NoUpgradeCommand, UpgradeCommand, WireViolationError, read_command

_QUEUED_COMMANDS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTopics:
    """Where a device speaks and listens; `{device}` and `{device_type}` are filled in."""

    attributes: str
    event_report: str
    command_send: str
    command_reply: str


TOPICS: Final[Mapping[str, DeviceTopics]] = {
    "eztcloud": DeviceTopics(
        attributes="attributes/{device}",
        event_report="event_report/{device}",
        command_send="command_send/{device}",
        command_reply="command_reply/{device}",
    ),
    "typed": DeviceTopics(
        attributes="{device_type}/{device}/attributes",
        event_report="{device_type}/{device}/event_report",
        command_send="{device_type}/{device}/command_send",
        command_reply="{device_type}/{device}/command_reply",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBehaviour:
    """How a fleet's devices behave. Times in seconds; every wait and retry ends.

    The devices power on one after the other within `start_spread_s`.

    `check_interval_s` None: a device is done with its first `upgrade: false`. Set: it stays, takes what is pushed to
    it, asks again after so long, and after a failure starts over after so long.

    `asks` False: it reports where it would ask, and takes what is pushed to it.
    """

    topics: DeviceTopics = TOPICS["eztcloud"]
    version_attribute: str = "version"
    event: str = "otaCheck"
    module: str = "main"
    connect_attempts: int = 5
    check_attempts: int = 5
    answer_timeout_s: float = 10.0
    download_attempts: int = 5
    download_timeout_s: float = 120.0
    retry_pause_s: float = 0.5
    reboot_s: float = 0.2
    start_spread_s: float = 0.0
    upgrades_max: int = 10
    check_interval_s: float | None = None
    asks: bool = True


class Phase(StrEnum):
    """What a device is at."""

    CONNECTING = "connecting"
    CHECKING = "checking"
    DOWNLOADING = "downloading"
    REBOOTING = "rebooting"
    CURRENT = "current"
    FAILED = "failed"


SETTLED: Final = frozenset({Phase.CURRENT, Phase.FAILED})


@dataclass(slots=True, kw_only=True)
class DeviceProgress:
    """What an observer sees of a device; the device alone writes it. `fetched` are the URLs of verified downloads."""

    identifier: str
    device_type: str
    version: str
    phase: Phase = Phase.CONNECTING
    offers: int = 0
    upgrades: int = 0
    fetched: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def downloads(self) -> int:
        return len(self.fetched)


class InstallResult(IntEnum):
    """What a device replies as `ota_result`; 0 is success."""

    OK = 0
    DOWNLOAD_FAILED = 1
    SIZE_DIFFERS = 2
    DIGEST_DIFFERS = 3


class Fetched(NamedTuple):
    """What came of a download; `reason` says more of a failure, for people."""

    result: InstallResult
    reason: str = ""


class DeviceFailureError(Exception):
    """A device gave up; the text says why."""


class SimulatedDevice:
    """One device's lives, from power-on until it is current (or, with `check_interval_s`, for ever)."""

    def __init__(
        self,
        progress: DeviceProgress,
        behaviour: DeviceBehaviour,
        *,
        broker: BrokerAddress,
        http: httpx.AsyncClient,
        connect_slots: asyncio.Semaphore,
        on_change: Callable[[], None],
    ) -> None:
        self.progress = progress
        self._behaviour = behaviour
        self._broker = broker
        self._http = http
        self._connect_slots = connect_slots
        self._on_change = on_change

    async def run(self, *, power_on_after_s: float = 0.0) -> None:
        """Live. Never raises but when cancelled: a failure ends in the phase `failed` with its reason."""
        interval_s = self._behaviour.check_interval_s
        await asyncio.sleep(power_on_after_s)
        while True:
            try:
                rebooting = await self._live_once()
            except DeviceFailureError as exc:
                self.progress.error = str(exc)
                self._enter(Phase.FAILED)
                if interval_s is None:
                    return
                await asyncio.sleep(interval_s)
                continue
            if not rebooting:
                return
            await asyncio.sleep(self._behaviour.reboot_s)

    async def _live_once(self) -> bool:
        """One life, with its reconnects. Returns whether it ends in a reboot into another version."""
        failures = 0
        while True:
            try:
                async with AsyncExitStack() as stack:
                    async with self._connect_slots:
                        client = await stack.enter_async_context(self._client())
                    return await self._be_connected(client)
            except aiomqtt.MqttError as exc:
                failures += 1
                if failures >= self._behaviour.connect_attempts:
                    raise DeviceFailureError(f"broker: {exc}") from exc
            self._enter(Phase.CONNECTING)
            await asyncio.sleep(self._behaviour.retry_pause_s)

    def _client(self) -> aiomqtt.Client:
        return aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            username=self.progress.identifier,
            password=self._broker.password,
            identifier=self.progress.identifier,
            tls_context=self._broker.tls_context(),
            max_queued_incoming_messages=_QUEUED_COMMANDS,
        )

    async def _be_connected(self, client: aiomqtt.Client) -> bool:
        await client.subscribe(self._topic(self._behaviour.topics.command_send), qos=1)
        interval_s = self._behaviour.check_interval_s
        if self.progress.phase is not Phase.CURRENT:
            self._enter(Phase.CHECKING)
        while True:
            if self._behaviour.asks:
                command = await self._check(client)
                if isinstance(command, UpgradeCommand):
                    return await self._upgrade(client, command)
            else:
                await self._report(client)
            self.progress.error = None
            self._enter(Phase.CURRENT)
            if interval_s is None:
                return False
            pushed = await self._next_command(client, interval_s)
            if isinstance(pushed, UpgradeCommand):
                return await self._upgrade(client, pushed)

    async def _check(self, client: aiomqtt.Client) -> UpgradeCommand | NoUpgradeCommand:
        """Report and ask until answered, a bounded number of times. Silence may mean that neither arrived."""
        event = json.dumps({"method": self._behaviour.event, "params": {}})
        for _ in range(self._behaviour.check_attempts):
            await self._report(client)
            await client.publish(self._topic(self._behaviour.topics.event_report), event, qos=1)
            command = await self._next_command(client, self._behaviour.answer_timeout_s)
            if command is not None:
                return command
        raise DeviceFailureError(f"no answer to {self._behaviour.check_attempts} checks")

    async def _report(self, client: aiomqtt.Client) -> None:
        report = json.dumps({self._behaviour.version_attribute: self.progress.version})
        await client.publish(self._topic(self._behaviour.topics.attributes), report, qos=1)

    async def _next_command(self, client: aiomqtt.Client, timeout_s: float) -> UpgradeCommand | NoUpgradeCommand | None:
        """The next command for the module, None after the timeout. Other methods and modules are passed over."""
        try:
            async with asyncio.timeout(timeout_s):
                async for message in client.messages:
                    command = read_command(bytes(message.payload))
                    if command is not None and command.module == self._behaviour.module:
                        return command
        except TimeoutError:
            pass
        except WireViolationError as exc:
            raise DeviceFailureError(f"command against the protocol: {exc}") from exc
        return None

    async def _upgrade(self, client: aiomqtt.Client, command: UpgradeCommand) -> bool:
        """Download, verify, reply, and take the new version. Returns True: reboot now."""
        progress = self.progress
        progress.offers += 1
        if command.version == progress.version:
            raise DeviceFailureError(f"offered {command.version}, which it runs")
        if progress.upgrades >= self._behaviour.upgrades_max:
            raise DeviceFailureError(f"offered {command.version} after {progress.upgrades} upgrades already")
        self._enter(Phase.DOWNLOADING)
        result, reason = await fetch_package(
            self._http,
            command,
            attempts=self._behaviour.download_attempts,
            pause_s=self._behaviour.retry_pause_s,
            timeout_s=self._behaviour.download_timeout_s,
        )
        reply = json.dumps({"method": METHOD, "params": {"ota_result": int(result)}, "id": command.id})
        await client.publish(self._topic(self._behaviour.topics.command_reply), reply, qos=1)
        if result is not InstallResult.OK:
            raise DeviceFailureError(f"{result.name.lower()}: {command.url}{reason and f' ({reason})'}")
        progress.fetched.append(command.url)
        progress.version = command.version
        progress.upgrades += 1
        self._enter(Phase.REBOOTING)
        return True

    def _topic(self, template: str) -> str:
        return template.format(device=self.progress.identifier, device_type=self.progress.device_type)

    def _enter(self, phase: Phase) -> None:
        self.progress.phase = phase
        self._on_change()


async def fetch_package(
    http: httpx.AsyncClient, command: UpgradeCommand, *, attempts: int, pause_s: float, timeout_s: float
) -> Fetched:
    """Download and verify without keeping the bytes; a cut download is resumed where it was cut."""
    download = _Download(command)
    reason = ""
    try:
        async with asyncio.timeout(timeout_s):
            for attempt in range(attempts):
                if attempt:
                    await asyncio.sleep(pause_s)
                try:
                    finished = await download.go_on(http)
                except httpx.TransportError as exc:
                    reason = _reason_of(exc)
                    continue
                if finished:
                    return download.verify()
                reason = download.refusal
    except TimeoutError:
        reason = f"not done in {timeout_s:g} s" + (f"; before that: {reason}" if reason else "")
    except (httpx.InvalidURL, httpx.TooManyRedirects) as exc:
        reason = _reason_of(exc)
    return Fetched(InstallResult.DOWNLOAD_FAILED, reason)


def _reason_of(exc: Exception) -> str:
    return str(exc).rstrip(".") or type(exc).__name__  # some of httpx's have no text


class _Download:
    """What is there of a package so far: a count and running digests. `refusal` is the server's, empty where none."""

    def __init__(self, command: UpgradeCommand) -> None:
        self.refusal = ""
        self._command = command
        self._etag: str | None = None
        self._restart()

    def _restart(self) -> None:
        self._received = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._crc32 = 0

    async def go_on(self, http: httpx.AsyncClient) -> bool:
        """Fetch what is missing. False: the server may do better next time. Raises TransportError where it was cut."""
        self.refusal = ""
        headers = {"Accept-Encoding": "identity"}
        if self._received:
            headers["Range"] = f"bytes={self._received}-"
            if self._etag:
                headers["If-Range"] = self._etag
        async with http.stream("GET", self._command.url, headers=headers) as response:
            if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                self.refusal = _status_of(response)
                return False
            resumed = (
                response.status_code == httpx.codes.PARTIAL_CONTENT
                and self._received > 0
                and response.headers.get("content-range", "").startswith(f"bytes {self._received}-")
            )
            if not resumed:
                self._restart()
                if response.status_code != httpx.codes.OK:
                    self.refusal = _status_of(response)
                    return True
                self._etag = response.headers.get("etag")
            async for chunk in response.aiter_raw():
                self._take(chunk)
                if self._received > self._command.size_bytes:
                    return True
        return True

    def _take(self, chunk: bytes) -> None:
        self._received += len(chunk)
        self._md5.update(chunk)
        self._sha256.update(chunk)
        self._crc32 = zlib.crc32(chunk, self._crc32)

    def verify(self) -> Fetched:
        """Size, then every digest that the command carries."""
        size_bytes = self._command.size_bytes
        if self.refusal:
            return Fetched(InstallResult.DOWNLOAD_FAILED, self.refusal)
        if self._received != size_bytes:
            shown = f"more than {size_bytes}" if self._received > size_bytes else f"{self._received} of {size_bytes}"
            return Fetched(InstallResult.SIZE_DIFFERS, f"{shown} bytes came")
        extras = self._command.extras
        right = (
            self._md5.hexdigest() == self._command.md5
            and self._sha256.hexdigest() == extras.get("sha256", self._sha256.hexdigest())
            and f"{self._crc32:08x}" == extras.get("crc32", f"{self._crc32:08x}")
        )
        return Fetched(InstallResult.OK if right else InstallResult.DIGEST_DIFFERS)


def _status_of(response: httpx.Response) -> str:
    return f"HTTP {response.status_code} {response.reason_phrase}".rstrip()
