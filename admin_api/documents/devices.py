"""Devices, their offers and what an import did, as models. Must not know how devices are kept, or lines are read."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field

from admin_api.documents.fields import Attribute, Document, Identifier, Key, Tag, Version, checked_by, rfc3339
from ota_hook.admission.device_types import VERSION_ATTRIBUTES_MAX
from ota_hook.admission.texts import check_distinct
from ota_hook.identifiers import gateway_of
from ota_hook.model import TAGS_MAX, DeviceState, OpenOffer, SettledOffer

Tags = Annotated[list[Tag], Field(max_length=TAGS_MAX), checked_by(check_distinct)]
Versions = Annotated[dict[Attribute, Version], Field(max_length=VERSION_ATTRIBUTES_MAX)]
PatchedVersions = Annotated[dict[Attribute, Version | None], Field(max_length=VERSION_ATTRIBUTES_MAX)]


class DeviceFields(Document):
    """What an operator sets of a device. `versions` left out keeps what the device reported; so do `tags`."""

    identifier: Identifier | None = None
    type: Key
    versions: Versions | None = None
    tags: Tags | None = None

    @property
    def sorted_tags(self) -> tuple[str, ...] | None:
        """As the store keeps them; None: nothing is said of them."""
        return None if self.tags is None else tuple(sorted(self.tags))


class NewDevice(DeviceFields):
    """A device to create, and a line of an import."""

    identifier: Identifier


class DevicePatch(Document):
    """A merge patch of a device: a version that is null is forgotten, `versions` null forgets all. `tags` are replaced
    as a whole, null clears them.
    """

    identifier: Identifier | None = None
    type: Key = ""
    versions: PatchedVersions | None = Field(default={})
    tags: Tags | None = None

    @property
    def sorted_tags(self) -> tuple[str, ...] | None:
        """As the store keeps them; None: the patch says nothing of them."""
        return tuple(sorted(self.tags or ())) if "tags" in self.model_fields_set else None


class DeviceOut(BaseModel):
    """A device. `gateway` is the device that speaks for it, null for one that speaks for itself.
    `versions_reported_at` is null for a version that an operator set.

    `online`: the broker told last that it, or its gateway, is connected, and it has given a sign of life within seven
    days; null where the broker is not asked (`OTA_HOOK_PRESENCE`).
    `exhausted_firmware` was tried too often in vain and is not offered any more (`/attempts`).
    """

    identifier: str
    type: str
    gateway: str | None
    versions: dict[str, str]
    versions_reported_at: dict[str, str | None]
    tags: list[str]
    online: bool | None
    exhausted_firmware: list[str]

    @classmethod
    def of(cls, device: DeviceState, *, online: bool | None = None) -> Self:
        ordered = dict(sorted(device.versions.items()))
        return cls(
            identifier=device.identifier,
            type=device.device_type,
            gateway=gateway if (gateway := gateway_of(device.identifier)) != device.identifier else None,
            versions={attribute: version.text for attribute, version in ordered.items()},
            versions_reported_at={
                attribute: rfc3339(version.reported_at_ms) if version.reported_at_ms else None
                for attribute, version in ordered.items()
            },
            tags=list(device.tags),
            online=online,
            exhausted_firmware=list(device.exhausted),
        )


class OfferOut(BaseModel):
    """An offer to a device: `outcome` says how far it is while it is open; `code` says more of a failure."""

    firmware_id: str
    module: str
    version: str
    from_version: str
    version_attribute: str
    command_ids: list[int]
    offered_at: str | None
    outcome: str
    code: str | None
    settled_at: str | None

    @classmethod
    def of(cls, offer: OpenOffer, settled: SettledOffer | None = None) -> Self:
        return cls(
            firmware_id=offer.firmware_id,
            module=offer.module,
            version=offer.version,
            from_version=offer.from_version,
            version_attribute=offer.version_attribute,
            command_ids=list(offer.command_ids),
            offered_at=rfc3339(offer.offered_at_ms),
            outcome=(settled or offer).outcome.value,
            code=(settled.code or None) if settled else None,
            settled_at=rfc3339(settled.settled_at_ms) if settled else None,
        )


class LineError(BaseModel):
    """Why a line of a stream was not taken."""

    line: int
    detail: str


class ImportOut(BaseModel):
    """What an import did; `errors` holds the first hundred."""

    created: int
    replaced: int
    failed: int
    dry_run: bool
    errors: list[LineError]
