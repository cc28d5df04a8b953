"""Device types as models, and how many devices run which version. Must not know how types are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from admin_api.documents.fields import Attribute, Document, Key, Name, checked_by, rfc3339
from ota_hook.admission.device_types import VERSION_ATTRIBUTES_MAX
from ota_hook.admission.texts import check_distinct
from ota_hook.errors import InputError
from ota_hook.model import DEFAULT_VERSION_ATTRIBUTE, CommandExtra, DeviceType, VersionScheme


def _not_available(what: str, refused: Collection[object] = ()) -> Callable[[object], object]:
    """What a later release brings is refused, never ignored. Without `refused`, all but null is."""

    def apply(value: object) -> object:
        if (value in refused) if refused else (value is not None):
            raise PydanticCustomError("not_available", "{what} not available yet.", {"what": what})
        return value

    return apply


Attributes = Annotated[
    list[Attribute], Field(min_length=1, max_length=VERSION_ATTRIBUTES_MAX), checked_by(check_distinct)
]
Extra = Annotated[
    Literal["sha256", "crc32"], BeforeValidator(_not_available("`signature` in commands is", ["signature"]))
]
Scheme = Literal["auto", "semver", "pep440", "debian"]


class DeviceTypeFields(Document):
    """What an operator sets of a device type. `name` defaults to the key. The default rule of a new one reads the first
    of `version_attributes`.
    """

    key: Key | None = None
    name: Name | None = None
    version_scheme: Scheme = "auto"
    version_attributes: Attributes = Field(default=[DEFAULT_VERSION_ATTRIBUTE])
    command_extras: Annotated[list[Extra], checked_by(check_distinct)] = Field(default=[])
    responses_enabled: bool = False
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
