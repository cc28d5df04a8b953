"""Requests and responses of the API as models: which fields there are, of what shape, and how ours become them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ota_hook.admission.device_types import VERSION_ATTRIBUTES_MAX
from ota_hook.admission.firmware import FIRMWARE_TAGS_MAX, INLINE_DEVICES_MAX, SOURCE_VERSIONS_MAX
from ota_hook.admission.texts import (
    check_attribute,
    check_distinct,
    check_event,
    check_identifier,
    check_key,
    check_name,
    check_percentage,
    check_tag,
    check_version,
)
from ota_hook.errors import InputError
from ota_hook.model import (
    DEFAULT_EVENT,
    DEFAULT_MODULE,
    DEFAULT_VERSION_ATTRIBUTE,
    TAGS_MAX,
    Attempts,
    CommandExtra,
    DeviceState,
    DeviceType,
    Firmware,
    OpenOffer,
    Rule,
    SettledOffer,
    VersionScheme,
)
from ota_hook.snapshot import RefusedDocument

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(epoch_ms: int) -> str | None:
    """`2026-01-31T08:00:00.000Z`; None outside the years 1 to 9999."""
    try:
        moment = _EPOCH + timedelta(milliseconds=epoch_ms)
    except OverflowError:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def validate(model: type[M], document: object) -> M:
    """The document as `model`; the same 422 as a body that the framework validated."""
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise RequestValidationError(exc.errors(include_url=False)) from exc


def checked_by(check: Callable[[T], T]) -> AfterValidator:
    """A rule of the core as a validator."""

    def apply(value: T) -> T:
        try:
            return check(value)
        except InputError as exc:
            raise PydanticCustomError("refused", "{detail}", {"detail": str(exc)}) from exc

    return AfterValidator(apply)


def _not_available(what: str, refused: Collection[object] = ()) -> Callable[[object], object]:
    """What a later release brings is refused, never ignored. Without `refused`, all but null is."""

    def apply(value: object) -> object:
        if (value in refused) if refused else (value is not None):
            raise PydanticCustomError("not_available", "{what} not available yet.", {"what": what})
        return value

    return apply


Key = Annotated[str, checked_by(check_key)]
Name = Annotated[str, checked_by(check_name)]
Event = Annotated[str, checked_by(check_event)]
Attribute = Annotated[str, checked_by(check_attribute)]
Version = Annotated[str, checked_by(check_version)]
Identifier = Annotated[str, checked_by(check_identifier)]
Attributes = Annotated[
    list[Attribute], Field(min_length=1, max_length=VERSION_ATTRIBUTES_MAX), checked_by(check_distinct)
]
Extra = Annotated[
    Literal["sha256", "crc32"], BeforeValidator(_not_available("`signature` in commands is", ["signature"]))
]
Scheme = Literal["auto", "semver", "pep440", "debian"]
ResponsesEnabled = Annotated[bool, BeforeValidator(_not_available("Responses to devices are", [True]))]
Tag = Annotated[str, checked_by(check_tag)]
Tags = Annotated[list[Tag], Field(max_length=TAGS_MAX), checked_by(check_distinct)]
FirmwareTags = Annotated[list[Tag], Field(max_length=FIRMWARE_TAGS_MAX), checked_by(check_distinct)]
Percentage = Annotated[float, Field(ge=0, le=100), checked_by(check_percentage)]
SourceVersions = Annotated[list[Version], Field(max_length=SOURCE_VERSIONS_MAX), checked_by(check_distinct)]
Versions = Annotated[dict[Attribute, Version], Field(max_length=VERSION_ATTRIBUTES_MAX)]


class Document(BaseModel):
    """A request: unknown fields are refused, and nothing is turned into another type on the way."""

    model_config = ConfigDict(extra="forbid", strict=True)


# ---- device types


class DeviceTypeFields(Document):
    """What an operator sets of a device type. `name` defaults to the key. The default rule of a new one reads the first
    of `version_attributes`.
    """

    key: Key | None = None
    name: Name | None = None
    version_scheme: Scheme = "auto"
    version_attributes: Attributes = Field(default=[DEFAULT_VERSION_ATTRIBUTE])
    command_extras: Annotated[list[Extra], checked_by(check_distinct)] = []
    responses_enabled: ResponsesEnabled = False
    auto_register: bool = False
    children_register: bool = True

    def to_device_type(self, key: str, *, now_ms: int) -> DeviceType:
        if self.key not in (None, key):
            raise InputError("A device type's key can't change.", field="key")
        return DeviceType(
            key=key,
            name=self.name or key,
            version_scheme=VersionScheme(self.version_scheme),
            version_attributes=tuple(self.version_attributes),
            command_extras=tuple(extra for extra in CommandExtra if extra.value in self.command_extras),
            responses_enabled=self.responses_enabled,
            auto_register=self.auto_register,
            children_register=self.children_register,
            created_at_ms=now_ms,
        )


class NewDeviceType(DeviceTypeFields):
    """A device type to create."""

    key: Key


class DeviceTypeOut(BaseModel):
    """A device type."""

    key: str
    name: str
    version_scheme: str
    version_attributes: list[str]
    command_extras: list[str]
    responses_enabled: bool
    auto_register: bool
    children_register: bool
    created_at: str | None
    revision: int

    @classmethod
    def of(cls, device_type: DeviceType) -> Self:
        return cls(
            **device_type_fields(device_type),
            created_at=rfc3339(device_type.created_at_ms),
            revision=device_type.revision,
        )


def device_type_fields(device_type: DeviceType) -> dict[str, Any]:
    """What of it may be patched."""
    return {
        "key": device_type.key,
        "name": device_type.name,
        "version_scheme": device_type.version_scheme.value,
        "version_attributes": list(device_type.version_attributes),
        "command_extras": [extra.value for extra in device_type.command_extras],
        "responses_enabled": device_type.responses_enabled,
        "auto_register": device_type.auto_register,
        "children_register": device_type.children_register,
    }


class VersionCountOut(BaseModel):
    """How many devices run a version."""

    version: str
    devices: int


class VersionCountsOut(BaseModel):
    """How many devices of a type run which version, the most common first. `devices` is how many there are of the type:
    those of `versions`, those with a version that is not among them (`other`), and those `without` this attribute.
    `unreadable` are records, of whatever type, that nothing can be made of.
    """

    device_type: str
    attribute: str
    devices: int
    without: int
    other: int
    unreadable: int
    versions: list[VersionCountOut]


# ---- rules


class RuleFields(Document):
    """What an operator sets of a rule. `name` defaults to the event."""

    name: Name | None = None
    device_type: Key
    event: Event = DEFAULT_EVENT
    version_attribute: Attribute = DEFAULT_VERSION_ATTRIBUTE
    module: Key = DEFAULT_MODULE
    enabled: bool = True

    def to_rule(self, rule_id: str, *, now_ms: int) -> Rule:
        return Rule(
            id=rule_id,
            name=self.name or self.event,
            device_type=self.device_type,
            event=self.event,
            version_attribute=self.version_attribute,
            module=self.module,
            enabled=self.enabled,
            created_at_ms=now_ms,
        )


class RuleOut(BaseModel):
    """A rule. `notice` says what else a change did, null where nothing."""

    id: str
    name: str
    device_type: str
    event: str
    version_attribute: str
    module: str
    enabled: bool
    created_at: str | None
    revision: int
    notice: str | None = None

    @classmethod
    def of(cls, rule: Rule, *, notice: str | None = None) -> Self:
        return cls(
            id=rule.id,
            **rule_fields(rule),
            created_at=rfc3339(rule.created_at_ms),
            revision=rule.revision,
            notice=notice,
        )


def rule_fields(rule: Rule) -> dict[str, Any]:
    """What of it may be patched."""
    return {
        "name": rule.name,
        "device_type": rule.device_type,
        "event": rule.event,
        "version_attribute": rule.version_attribute,
        "module": rule.module,
        "enabled": rule.enabled,
    }


# ---- devices


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
    versions: Annotated[dict[Attribute, Version | None], Field(max_length=VERSION_ATTRIBUTES_MAX)] | None = {}
    tags: Tags | None = None

    @property
    def sorted_tags(self) -> tuple[str, ...] | None:
        """As the store keeps them; None: the patch says nothing of them."""
        return tuple(sorted(self.tags or ())) if "tags" in self.model_fields_set else None


class DeviceOut(BaseModel):
    """A device. `versions_reported_at` is null for a version that an operator set; `online` is null: not known.

    `exhausted_firmware` was tried too often in vain and is not offered any more (`/attempts`).
    """

    identifier: str
    type: str
    versions: dict[str, str]
    versions_reported_at: dict[str, str | None]
    tags: list[str]
    online: bool | None
    exhausted_firmware: list[str]

    @classmethod
    def of(cls, device: DeviceState) -> Self:
        ordered = dict(sorted(device.versions.items()))
        return cls(
            identifier=device.identifier,
            type=device.device_type,
            versions={attribute: version.text for attribute, version in ordered.items()},
            versions_reported_at={
                attribute: rfc3339(version.reported_at_ms) if version.reported_at_ms else None
                for attribute, version in ordered.items()
            },
            tags=list(device.tags),
            online=None,
            exhausted_firmware=list(device.exhausted),
        )


class AttemptsOut(BaseModel):
    """How often a device tried a firmware in vain. `exhausted`: it is not offered it any more, until a reset."""

    device: str
    firmware_id: str
    attempts: int
    last_at: str | None
    exhausted: bool

    @classmethod
    def of(cls, device: str, attempts: Attempts) -> Self:
        return cls(
            device=device,
            firmware_id=attempts.firmware_id,
            attempts=attempts.count,
            last_at=rfc3339(attempts.last_at_ms) if attempts.last_at_ms is not None else None,
            exhausted=attempts.is_exhausted,
        )


class OfferOut(BaseModel):
    """An offer to a device: `outcome` is `offered` while it is open; `code` says more of a failure."""

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
            outcome=settled.outcome.value if settled else "offered",
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


# ---- firmware


class FirmwareSettings(Document):
    """What of a firmware may be changed later.

    `devices`, `tags` and `percentage` say who may get it: all null: every device; else who is listed, or has one of the
    tags (where set) and is within the percentage (where set, up to two decimals). `[]` is nobody.
    """

    name: Name | None = None
    enabled: bool = True
    devices: Annotated[list[Identifier], Field(max_length=INLINE_DEVICES_MAX)] | None = None
    source_versions: SourceVersions = []
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


# ---- what can't be used


class RefusedDocumentOut(BaseModel):
    """A document that is stored and can't be used: its kind (`device_type`, `rule`, `firmware`), key, and why."""

    kind: str
    key: str
    reason: str

    @classmethod
    def of(cls, document: RefusedDocument) -> Self:
        return cls(kind=document.kind.value, key=document.shown_key, reason=document.reason)


# ---- check


class CheckedFirmware(BaseModel):
    """One firmware of the module: `reasons` are codes, empty for the chosen one; `explanations` say them."""

    id: str
    name: str
    version: str
    enabled: bool
    chosen: bool
    reasons: list[str]
    explanations: list[str]


class CheckOffer(BaseModel):
    """What the device would be told."""

    firmware_id: str
    name: str
    version: str
    url: str | None
    size: int
    md5: str


class CheckOut(BaseModel):
    """A dry run. `reason` (`no_rule`, `no_firmware`, `no_version`, `none_newer`) is null where there is an offer."""

    device: str
    type: str
    module: str
    event: str | None
    version_attribute: str | None
    current_version: str | None
    offer: CheckOffer | None
    reason: str | None
    firmware: list[CheckedFirmware]
