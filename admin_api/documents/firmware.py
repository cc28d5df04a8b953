"""Firmware as models, and what an upload says beside its bytes. Must not know how either is kept."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from admin_api.documents.fields import Document, Identifier, Key, Name, Tag, Version, checked_by, rfc3339
from ota_hook.admission.firmware import FIRMWARE_TAGS_MAX, INLINE_DEVICES_MAX, SOURCE_VERSIONS_MAX
from ota_hook.admission.texts import check_distinct, check_percentage
from ota_hook.model import DEFAULT_MODULE, Firmware

FirmwareTags = Annotated[list[Tag], Field(max_length=FIRMWARE_TAGS_MAX), checked_by(check_distinct)]
Percentage = Annotated[float, Field(ge=0, le=100), checked_by(check_percentage)]
SourceVersions = Annotated[list[Version], Field(max_length=SOURCE_VERSIONS_MAX), checked_by(check_distinct)]


class FirmwareSettings(Document):
    """What of a firmware may be changed later.

    `devices`, `tags` and `percentage` say who may get it: all null: every device; else who is listed, or has one of the
    tags (where set) and is within the percentage (where set, up to two decimals). `[]` is nobody.
    """

    name: Name | None = None
    enabled: bool = True
    devices: Annotated[list[Identifier], Field(max_length=INLINE_DEVICES_MAX)] | None = None
    source_versions: SourceVersions = Field(default=[])
    use_https: bool = False
    allow_downgrade: bool = False
    tags: FirmwareTags | None = None
    percentage: Percentage | None = None

    def basis_points(self) -> int | None:
        """The percentage as it is stored, in hundredths of a per cent."""
        return None if self.percentage is None else round(self.percentage * 100)


class FirmwareFields(FirmwareSettings):
    """The fields of an upload beside `file`. `name` defaults to the file's name without its extension."""

    device_type: Key
    version: Version
    module: Key = DEFAULT_MODULE


class FirmwareOut(BaseModel):
    """A firmware. `devices` holds the first thousand of its list, sorted, `devices_count` how many there are; both
    are null where every device may have it. `devices_truncated`: there are more than `devices` shows, and
    `/firmware/{id}/devices` has them all. `url` is what devices are given, null where the HTTPS base is not set.
    After an upload `notice` says what keeps it from devices that it is meant for, null where nothing does.
    """

    id: str
    name: str
    device_type: str
    version: str
    module: str
    enabled: bool
    use_https: bool
    allow_downgrade: bool
    source_versions: list[str]
    devices: list[str] | None
    devices_count: int | None
    devices_truncated: Annotated[bool, Field(description="Whether the device list is longer than `devices` shows.")]
    tags: list[str] | None
    percentage: float | None
    filename: str
    size: int
    md5: str
    sha256: str
    crc32: str
    url: str | None
    created_at: str | None
    revision: int
    notice: str | None = None

    @classmethod
    def of(cls, firmware: Firmware, *, devices: list[str] | None, devices_count: int | None, url: str | None) -> Self:
        package = firmware.package
        return cls(
            id=firmware.id,
            **firmware_settings(firmware),
            device_type=firmware.device_type,
            version=firmware.version,
            module=firmware.module,
            devices=devices,
            devices_count=devices_count,
            devices_truncated=len(devices or ()) < (devices_count or 0),
            filename=package.filename,
            size=package.size_bytes,
            md5=package.md5,
            sha256=package.sha256,
            crc32=package.crc32,
            url=url,
            created_at=rfc3339(firmware.created_at_ms),
            revision=firmware.revision,
        )


class FirmwareStopOut(BaseModel):
    """When and why a firmware was taken out of force by itself."""

    at: str | None
    reason: str


class FirmwareDetail(FirmwareOut):
    """A firmware with how often each outcome happened. `stopped`: it was disabled because it failed too often; null
    where it was not, or is enabled again.
    """

    counters: dict[str, int] = {}
    stopped: FirmwareStopOut | None = None


def firmware_settings(firmware: Firmware) -> dict[str, Any]:
    """What of it may be patched, its device list apart."""
    return {
        "name": firmware.name,
        "enabled": firmware.enabled,
        "use_https": firmware.use_https,
        "allow_downgrade": firmware.allow_downgrade,
        "source_versions": list(firmware.source_versions),
        "tags": None if firmware.tags is None else list(firmware.tags),
        "percentage": None if firmware.basis_points is None else firmware.basis_points / 100,
    }


class DeviceListOut(BaseModel):
    """How many devices a list has now, and how many of the given ones are not registered."""

    count: int
    unknown: int
