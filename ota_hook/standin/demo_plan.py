"""What the demo sets up, through the real admin API, and what each device must become.

Owns the demo's device type, devices and firmware, and the expectations, which are written down here by hand from the
meaning of "a new version" and never computed by the matcher that they are to test. It must not know the broker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx

from ota_hook.errors import DependencyError, OtaHookError
from ota_hook.standin.fleet import DeviceProgress

DEVICE_TYPE: Final = "demo-sensor"
_API: Final = "/api/v1"
_PAGES_MAX: Final = 100
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
    DemoGroup(identifiers=_numbered(21, 34), version="1.1.0", expected="2.0.0", firmware=FULL),
    # Full and delta lead to equal versions; one with source versions is better than one for everyone.
    DemoGroup(identifiers=_numbered(35, 44), version="1.2.0", expected="2.0.0", firmware=DELTA),
    # Equal versions: no upgrade.
    DemoGroup(identifiers=_numbered(45, 49), version="2.0.0", expected="2.0.0", firmware=None),
    # Newer than the full firmware, and the trial is not for it.
    DemoGroup(identifiers=_numbered(50, 50), version="2.1.0-rc.1", expected="2.1.0-rc.1", firmware=None),
)


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
    """The demo as it was set up. `foreign` names enabled firmware of the demo's type that the demo did not make."""

    devices: tuple[PlannedDevice, ...]
    foreign: tuple[str, ...]


class AdminClient:
    """The few calls that the demo makes. Raises DependencyError where nobody answers, OtaHookError for a refusal."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    @classmethod
    def connect(cls, api_url: str, token: str) -> Self:
        """`api_url` is the admin role's address, without `/api/v1`. Close it with `aclose`."""
        return cls(
            httpx.AsyncClient(
                base_url=api_url.rstrip("/") + _API,
                headers={"Authorization": f"Bearer {token}"},
                timeout=30.0,
                trust_env=False,
            )
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def put_device_type(self, key: str, name: str) -> None:
        await self._call("PUT", f"/device-types/{key}", json={"name": name})

    async def import_devices(self, devices: Mapping[str, str]) -> None:
        """Register each identifier under its type; registering again is no error."""
        lines = "".join(
            json.dumps({"identifier": identifier, "type": device_type}) + "\n"
            for identifier, device_type in devices.items()
        )
        headers = {"Content-Type": "application/x-ndjson"}
        answer = await self._call("POST", "/devices-import", content=lines.encode(), headers=headers)
        if answer.get("failed"):
            raise OtaHookError(f"The admin API refused devices of the demo: {answer.get('errors')}.")

    async def list_firmware(self, device_type: str) -> list[dict[str, Any]]:
        """Every firmware of the type."""
        items: list[dict[str, Any]] = []
        query = {"device_type": device_type}
        for _ in range(_PAGES_MAX):
            page = await self._call("GET", "/firmware", params=query)
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            query["cursor"] = page["next_cursor"]
        raise OtaHookError(f"{device_type} has more firmware than the demo can look through.")

    async def upload_firmware(self, device_type: str, firmware: DemoFirmware) -> str:
        """Upload it with a package of random bytes; returns its id."""
        fields: dict[str, Any] = {"name": firmware.name, "device_type": device_type, "version": firmware.version}
        if firmware.devices:
            fields["devices"] = list(firmware.devices)
        if firmware.source_versions:
            fields["source_versions"] = list(firmware.source_versions)
        filename = f"{firmware.name.replace(' ', '-')}-{firmware.version}.bin"
        package = (filename, os.urandom(firmware.size_bytes), "application/octet-stream")
        return str((await self._call("POST", "/firmware", data=fields, files={"file": package}))["id"])

    async def enable_firmware(self, firmware_id: str) -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        await self._call("PATCH", f"/firmware/{firmware_id}", content=b'{"enabled":true}', headers=headers)

    async def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx's own
        try:
            response = await self._http.request(method, path, **request)
        except httpx.TransportError as exc:
            raise DependencyError(f"The admin API at {self._http.base_url} does not answer: {exc}.") from exc
        if response.is_error:
            raise OtaHookError(f"The admin API refused {method} {path}: {response.status_code} {response.text[:300]}")
        document = response.json()
        return document if isinstance(document, dict) else {}


async def prepare(api: AdminClient) -> DemoPlan:
    """Set up type, devices and firmware. Run again, it uses the firmware that is there; devices report afresh."""
    await api.put_device_type(DEVICE_TYPE, "Demo sensor")
    await api.import_devices({identifier: DEVICE_TYPE for group in GROUPS for identifier in group.identifiers})
    existing = {item["name"]: item for item in await api.list_firmware(DEVICE_TYPE)}
    ids: dict[str, str] = {}
    for firmware in FIRMWARE:
        there = existing.pop(firmware.name, None)
        ids[firmware.name] = there["id"] if there else await api.upload_firmware(DEVICE_TYPE, firmware)
        if there and not there["enabled"]:
            await api.enable_firmware(there["id"])
    return DemoPlan(
        devices=tuple(
            PlannedDevice(
                identifier=identifier,
                version=group.version,
                expected=group.expected,
                firmware_id=ids[group.firmware.name] if group.firmware else None,
            )
            for group in GROUPS
            for identifier in group.identifiers
        ),
        foreign=tuple(sorted(name for name, item in existing.items() if item["enabled"])),
    )


def _firmware_in(url: str) -> str:
    """The id in `…/firmware/{id}/{filename}`; the whole URL where it is another."""
    parts = httpx.URL(url).path.split("/")
    return parts[-2] if len(parts) > 2 and parts[-3] == "firmware" else url
