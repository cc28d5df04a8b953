"""Many simulated devices at once, and what an observer sees of them. It must not know what they ought to become."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from ota_hook.errors import ConfigurationError
from ota_hook.publish.mqtt import BrokerAddress
from ota_hook.standin.device import (
    SETTLED,
    TOPICS,
    DeviceBehaviour,
    DeviceProgress,
    DeviceTopics,
    Phase,
    SimulatedDevice,
)

__all__ = [
    "TOPICS",
    "DeviceBehaviour",
    "DeviceProgress",
    "DeviceSpec",
    "DeviceTopics",
    "FleetOptions",
    "FleetReport",
    "FleetView",
    "Phase",
    "SimulatedFleet",
    "run_fleet",
]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device to simulate. Its identifier is its MQTT username and client id."""

    identifier: str
    device_type: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """A fleet and its broker. At most `connect_concurrency` devices connect at a time, `downloads_max` download."""

    mqtt_url: str
    devices: Sequence[DeviceSpec]
    behaviour: DeviceBehaviour = field(default_factory=DeviceBehaviour)
    connect_concurrency: int = 20
    downloads_max: int = 50
    http_timeout_s: float = 10.0


class FleetView:
    """The fleet as it is now."""

    def __init__(self, devices: Sequence[DeviceProgress]) -> None:
        self.devices = tuple(devices)

    @property
    def settled(self) -> bool:
        """Whether every device is current or failed."""
        return all(device.phase in SETTLED for device in self.devices)

    def count_versions(self) -> Counter[str]:
        return Counter(device.version for device in self.devices)

    def count_phases(self) -> Counter[Phase]:
        return Counter(device.phase for device in self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What came of it, in numbers of devices (`upgraded`, `failed`), commands (`offers`) and packages (`downloads`)."""

    devices: int
    upgraded: int
    offers: int
    downloads: int
    failed: int
    seconds: float


class SimulatedFleet:
    """Runs the devices; `view` is read at any time, `on_change` is called whenever a device enters a phase."""

    def __init__(self, options: FleetOptions, on_change: Callable[[FleetView], None] | None = None) -> None:
        self._options = options
        self._on_change = on_change
        self._broker = BrokerAddress(options.mqtt_url)
        self._settled = asyncio.Event()
        self._started_at = time.monotonic()
        self.view = FleetView(
            [
                DeviceProgress(identifier=spec.identifier, device_type=spec.device_type, version=spec.version)
                for spec in options.devices
            ]
        )

    async def run(self) -> FleetReport:
        """Run until every device is done; with `check_interval_s`, until cancelled.

        Raises ConfigurationError where SSL_CERT_FILE names no certificates.
        """
        options = self._options
        self._started_at = time.monotonic()
        self._changed()  # an empty fleet is settled from the start
        connect_slots = asyncio.Semaphore(options.connect_concurrency)
        limits = httpx.Limits(max_connections=options.downloads_max, max_keepalive_connections=options.downloads_max)
        # Waiting for a free connection is bounded by the download's own timeout.
        timeout = httpx.Timeout(options.http_timeout_s, pool=None)
        try:
            async with (
                # Without the environment's proxies: a device has none.
                httpx.AsyncClient(
                    limits=limits, timeout=timeout, verify=_trust(), trust_env=False, follow_redirects=True
                ) as http,
                asyncio.TaskGroup() as tasks,
            ):
                for position, progress in enumerate(self.view.devices):
                    device = SimulatedDevice(
                        progress,
                        options.behaviour,
                        broker=self._broker,
                        http=http,
                        connect_slots=connect_slots,
                        on_change=self._changed,
                    )
                    power_on_after_s = options.behaviour.start_spread_s * position / len(self.view.devices)
                    tasks.create_task(device.run(power_on_after_s=power_on_after_s))
        finally:
            self._settled.set()  # whoever waits must not wait for a fleet that ended otherwise
        return self.report()

    async def wait_settled(self) -> None:
        """Return when every device was current or failed at one moment, or `run` ended. Bound it with a timeout."""
        await self._settled.wait()

    def report(self) -> FleetReport:
        """The numbers so far."""
        devices = self.view.devices
        return FleetReport(
            devices=len(devices),
            upgraded=sum(device.upgrades > 0 for device in devices),
            offers=sum(device.offers for device in devices),
            downloads=sum(device.downloads for device in devices),
            failed=sum(device.phase is Phase.FAILED for device in devices),
            seconds=round(time.monotonic() - self._started_at, 3),
        )

    def _changed(self) -> None:
        if not self._settled.is_set() and self.view.settled:
            self._settled.set()
        if self._on_change is not None:
            self._on_change(self.view)


def _trust() -> ssl.SSLContext:
    """The authorities that SSL_CERT_FILE or SSL_CERT_DIR names, else the usual ones."""
    try:
        return httpx.create_ssl_context()
    except OSError as exc:
        raise ConfigurationError(
            f"The certificates that SSL_CERT_FILE names can't be used: {exc.strerror or exc}."
        ) from exc


async def run_fleet(options: FleetOptions, on_change: Callable[[FleetView], None] | None = None) -> FleetReport:
    """Run a fleet to its end. Raises ConfigurationError for a broker URL that is none."""
    return await SimulatedFleet(options, on_change).run()
