"""What the demo sets up, through the real admin API, and what each device must become.

Owns the demo's device types, devices, gateway and firmware, and the expectations, which are written down here by hand
from the meaning of "a new version" and never computed by the matcher that they are to test. It knows no broker.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Final

import httpx
import orjson

from ota_hook.api_client import ApiClient, Document
from ota_hook.errors import OtaHookError
from ota_hook.standin.fleet import ChildSpec, DeviceProgress, GatewayForm, GatewaySpec

DEVICE_TYPE: Final = "demo-sensor"
GATEWAY_TYPE: Final = "demo-gateway"
_FULL_BYTES: Final = 256 * 1024
_DELTA_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFirmware:
    """A firmware to upload; its package is `size_bytes` random bytes."""

    name: str
    version: str
    size_bytes: int
    devices: tuple[str, ...] = ()
    source_versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoGroup:
    """Devices that start alike and must end alike: at `expected`, by way of `firmware` (None: offered nothing)."""

    identifiers: tuple[str, ...]
    version: str
    expected: str
    firmware: DemoFirmware | None


def _numbered(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{DEVICE_TYPE}-{number:02}" for number in range(first, last + 1))


FULL: Final = DemoFirmware(name="demo full", version="2.0.0", size_bytes=_FULL_BYTES)
DELTA: Final = DemoFirmware(
    name="demo delta from 1.2.0", version="2.0.0", size_bytes=_DELTA_BYTES, source_versions=("1.2.0",)
)
TRIAL: Final = DemoFirmware(
    name="demo trial for one device", version="2.1.0", size_bytes=_FULL_BYTES, devices=_numbered(20, 20)
)
FIRMWARE: Final = (FULL, DELTA, TRIAL)

GROUPS: Final = (
    # The full firmware is for everyone; the trial is not for these; the delta not from their version.
    DemoGroup(identifiers=_numbered(1, 19), version="1.0.0", expected="2.0.0", firmware=FULL),
    # On the trial's list: its version is the highest that this device may have.
    DemoGroup(identifiers=_numbered(20, 20), version="1.0.0", expected="2.1.0", firmware=TRIAL),
    DemoGroup(identifiers=_numbered(21, 29), version="1.1.0", expected="2.0.0", firmware=FULL),
    # Full and delta lead to equal versions; one with source versions is better than one for everyone.
    DemoGroup(identifiers=_numbered(30, 39), version="1.2.0", expected="2.0.0", firmware=DELTA),
    # Equal versions: no upgrade.
    DemoGroup(identifiers=_numbered(40, 43), version="2.0.0", expected="2.0.0", firmware=None),
    # Newer than the full firmware, and the trial is not for it.
    DemoGroup(identifiers=_numbered(44, 44), version="2.1.0-rc.1", expected="2.1.0-rc.1", firmware=None),
)

CHILD_VERSION: Final = "1.1.0"
CHILD_EXPECTED: Final = "2.0.0"
GATEWAY: Final = GatewaySpec(
    "demo-gateway-1",
    GATEWAY_TYPE,
    "1.0.0",
    children=tuple(
        ChildSpec(path, DEVICE_TYPE, CHILD_VERSION)
        for path in (("room-1",), ("room-2",), ("floor-2",), ("floor-2", "room-3"), ("floor-2", "room-4"))
    ),
    form=GatewayForm.SUB_TREE,
)
"""There is no firmware for the gateway itself, and the full one is for its children, which it registers by its word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDevice:
    """One device's start, its expected end, and the id of the firmware that must bring it there."""

    identifier: str
    version: str
    expected: str
    firmware_id: str | None

    def find_fault(self, seen: DeviceProgress) -> str | None:
        """What is not as expected of the device as it was seen, None where all is well."""
        if seen.error is not None:
            return f"{self.identifier}: {seen.error}"
        if seen.version != self.expected:
            return f"{self.identifier} is at {seen.version}, not {self.expected}"
        fetched = [_firmware_in(url) for url in seen.fetched]
        wanted = [self.firmware_id] if self.firmware_id else []
        if fetched != wanted:
            return f"{self.identifier} fetched firmware {fetched}, not {wanted}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """The demo as it was set up: its direct devices, then the gateway with its children.

    `foreign` names enabled firmware of the demo's types that the demo did not make.
    """

    direct: tuple[PlannedDevice, ...]
    gateways: tuple[PlannedDevice, ...]
    foreign: tuple[str, ...]

    @property
    def devices(self) -> tuple[PlannedDevice, ...]:
        return self.direct + self.gateways


def prepare(api: ApiClient) -> DemoPlan:
    """Set up types, devices and firmware. Run again, it uses the firmware that is there; devices report afresh.

    Blocks. Raises what the API's client raises.
    """
    api.put(f"/device-types/{DEVICE_TYPE}", {"name": "Demo sensor"})
    api.put(f"/device-types/{GATEWAY_TYPE}", {"name": "Demo gateway"})
    types = {identifier: DEVICE_TYPE for group in GROUPS for identifier in group.identifiers}
    types[GATEWAY.identifier] = GATEWAY_TYPE
    lines = (orjson.dumps({"identifier": name, "type": key}) + b"\n" for name, key in types.items())
    if (answer := api.send_lines("POST", "/devices-import", lines))["failed"]:
        raise OtaHookError(f"The admin API refused devices of the demo: {answer['errors'][0]['detail']}")
    existing = {
        item["name"]: item for key in (DEVICE_TYPE, GATEWAY_TYPE) for item in api.each("/firmware", device_type=key)
    }
    ids = {firmware.name: _bring(api, firmware, existing.pop(firmware.name, None)) for firmware in FIRMWARE}
    return DemoPlan(
        direct=tuple(
            PlannedDevice(
                identifier=identifier,
                version=group.version,
                expected=group.expected,
                firmware_id=ids[group.firmware.name] if group.firmware else None,
            )
            for group in GROUPS
            for identifier in group.identifiers
        ),
        gateways=(
            PlannedDevice(
                identifier=GATEWAY.identifier, version=GATEWAY.version, expected=GATEWAY.version, firmware_id=None
            ),
            *(
                PlannedDevice(
                    identifier=GATEWAY.identify(child),
                    version=child.version,
                    expected=CHILD_EXPECTED,
                    firmware_id=ids[FULL.name],
                )
                for child in GATEWAY.children
            ),
        ),
        foreign=tuple(sorted(name for name, item in existing.items() if item["enabled"])),
    )


def _bring(api: ApiClient, firmware: DemoFirmware, there: Document | None) -> str:
    """The id of the firmware: the one that is there, enabled, or a new one with random bytes."""
    if there is None:
        fields = {
            "name": firmware.name,
            "device_type": DEVICE_TYPE,
            "version": firmware.version,
            "devices": list(firmware.devices) or None,
            "source_versions": list(firmware.source_versions) or None,
        }
        filename = f"{firmware.name.replace(' ', '-')}-{firmware.version}.bin"
        there = api.upload_firmware(io.BytesIO(os.urandom(firmware.size_bytes)), filename=filename, fields=fields)
    elif not there["enabled"]:
        api.patch(f"/firmware/{there['id']}", {"enabled": True})
    return str(there["id"])


def _firmware_in(url: str) -> str:
    """The id in `…/firmware/{id}/{filename}`; the whole URL where it is another."""
    parts = httpx.URL(url).path.split("/")
    return parts[-2] if len(parts) > 2 and parts[-3] == "firmware" else url
