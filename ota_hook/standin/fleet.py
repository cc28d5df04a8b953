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
from ota_hook.identifiers import child_identifier
from ota_hook.publish.mqtt import BrokerAddress
from ota_hook.standin.behaviour import SETTLED, TOPICS, DeviceBehaviour, DeviceProgress, Phase
from ota_hook.standin.device import SimulatedDevice
from ota_hook.standin.gateway import SimulatedGateway
from ota_hook.standin.gathering import GatewayForm
from ota_hook.standin.link import Connector
from ota_hook.standin.pieces import Pieces

__all__ = [
    "TOPICS",
    "ChildSpec",
    "DeviceBehaviour",
    "DeviceProgress",
    "DeviceSpec",
    "FleetOptions",
    "FleetReport",
    "FleetView",
    "GatewayForm",
    "GatewaySpec",
    "Phase",
    "Pieces",
    "SimulatedFleet",
    "run_fleet",
]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A direct device to simulate. Its identifier is its MQTT username and client id.

    With `pieces` it takes its firmware over MQTT.
    """

    identifier: str
    device_type: str
    version: str
    pieces: Pieces | None = None


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child to simulate: its addresses from its gateway down. Its device type is the `product` that it comes with."""

    path: tuple[str, ...]
    device_type: str
    version: str


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """A gateway to simulate: a direct device, its children, and how it speaks for them."""

    identifier: str
    device_type: str
    version: str
    children: tuple[ChildSpec, ...]
    form: GatewayForm = GatewayForm.GATEWAY

    def identify(self, child: ChildSpec) -> str:
        """The child's identifier. ConfigurationError for addresses that are none."""
        identifier = child_identifier(self.identifier, child.path)
        if identifier is None or (self.form is GatewayForm.GATEWAY and len(child.path) > 1):
            raise ConfigurationError(f"{child.path!r} is no child of {self.identifier!r}.")
        return identifier


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """A fleet and its broker. At most `connect_concurrency` devices connect at a time, `downloads_max` download."""

    mqtt_url: str
    devices: Sequence[DeviceSpec]
    gateways: Sequence[GatewaySpec] = ()
    behaviour: DeviceBehaviour = field(default_factory=DeviceBehaviour)
    connect_concurrency: int = 20
    downloads_max: int = 50
    http_timeout_s: float = 10.0


class FleetView:
    """The fleet as it is now: its direct devices, then each gateway with its children behind it."""

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
    """What came of it, in numbers of devices (`upgraded`, `failed`), commands (`offers`) and packages (`downloads`).

    `devices` are all of them; so many of them are `gateways`, and so many `children`.
    """

    devices: int
    gateways: int
    children: int
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
        self._direct = [_progress_of(spec.identifier, spec) for spec in options.devices]
        self._gateways = [_progress_of(spec.identifier, spec) for spec in options.gateways]
        self._children = [
            [_progress_of(spec.identify(child), child) for child in spec.children] for spec in options.gateways
        ]
        behind = zip(self._gateways, self._children, strict=True)
        self.view = FleetView(
            [*self._direct, *(progress for gateway, children in behind for progress in (gateway, *children))]
        )

    async def run(self) -> FleetReport:
        """Run until every device is done; with `check_interval_s`, until cancelled.

        Raises ConfigurationError where SSL_CERT_FILE names no certificates.
        """
        options = self._options
        self._started_at = time.monotonic()
        self._changed()  # an empty fleet is settled from the start
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
                connected = self._make(http)
                for position, device in enumerate(connected):
                    power_on_after_s = options.behaviour.start_spread_s * position / len(connected)
                    tasks.create_task(device.run(power_on_after_s=power_on_after_s))
        finally:
            self._settled.set()  # whoever waits must not wait for a fleet that ended otherwise
        return self.report()

    def _make(self, http: httpx.AsyncClient) -> list[SimulatedDevice | SimulatedGateway]:
        """All that connect. Gateways first: their children wait for them."""
        options, behaviour = self._options, self._options.behaviour
        slots = asyncio.Semaphore(options.connect_concurrency)
        connector = Connector(self._broker, behaviour, slots)
        gateways = [
            SimulatedGateway(
                progress,
                [(child.path, seen) for child, seen in zip(spec.children, children, strict=True)],
                behaviour,
                form=spec.form,
                connector=connector,
                http=http,
                on_change=self._changed,
            )
            for spec, progress, children in zip(options.gateways, self._gateways, self._children, strict=True)
        ]
        devices = [
            SimulatedDevice(
                progress, behaviour, connector=connector, http=http, on_change=self._changed, pieces=spec.pieces
            )
            for spec, progress in zip(options.devices, self._direct, strict=True)
        ]
        return [*gateways, *devices]

    async def wait_settled(self) -> None:
        """Return when every device was current or failed at one moment, or `run` ended. Bound it with a timeout."""
        await self._settled.wait()

    def report(self) -> FleetReport:
        """The numbers so far."""
        devices = self.view.devices
        return FleetReport(
            devices=len(devices),
            gateways=len(self._gateways),
            children=sum(map(len, self._children)),
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


def _progress_of(identifier: str, spec: DeviceSpec | ChildSpec | GatewaySpec) -> DeviceProgress:
    return DeviceProgress(identifier=identifier, device_type=spec.device_type, version=spec.version)


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
