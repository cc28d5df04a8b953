"""The words of the project as immutable values (the glossary is in ARCHITECTURE.md).

Pure: no I/O, no clock, no settings. Times are epoch milliseconds. Identifiers are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

VERSION_MAX_BYTES: Final = 128
TAG_MAX_BYTES: Final = 64
TAGS_MAX: Final = 32
"""So many tags a device may have."""
DEFAULT_MODULE: Final = "main"
DEFAULT_VERSION_ATTRIBUTE: Final = "version"
DEFAULT_EVENT: Final = "otaCheck"
BASIS_POINTS: Final = 10_000
"""Hundredths of a per cent in the whole."""
COMMAND_ID_LIMIT: Final = 2**53
OFFER_COMMAND_IDS: Final = 4
"""Of an offer that was repeated, so many command ids are accepted in replies, the newest."""

_TAG: Final = re.compile(r'[^\s,;"\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,64}')


def is_tag(text: str) -> bool:
    """Whether `text` can be a tag: 1 to 64 bytes of UTF-8 without white space, control characters and `, ; "`."""
    return _TAG.fullmatch(text) is not None and len(text.encode()) <= TAG_MAX_BYTES


class VersionScheme(StrEnum):
    """How a device type's versions are ordered."""

    AUTO = "auto"
    SEMVER = "semver"
    PEP440 = "pep440"
    DEBIAN = "debian"


class Family(StrEnum):
    """Whose messages a topic carries: a direct device's, or those of a gateway's children, on one level or many.

    The value is what the names of its topics begin with.
    """

    DIRECT = ""
    GATEWAY = "gateway_"
    SUB = "sub_"


class ChildForm(NamedTuple):
    """How a gateway spoke of a child last, and is spoken to."""

    family: Family
    as_list: bool

    @classmethod
    def default(cls, depth: int) -> ChildForm:
        """How a gateway is spoken to that said nothing yet of a child behind so many addresses."""
        return cls(Family.GATEWAY, as_list=False) if depth == 1 else cls(Family.SUB, as_list=True)

    def unless_default(self, depth: int) -> ChildForm | None:
        """What is worth remembering of it."""
        return None if self == ChildForm.default(depth) else self


class DocumentKind(StrEnum):
    """What the catalogue holds."""

    DEVICE_TYPE = "device_type"
    RULE = "rule"
    FIRMWARE = "firmware"


class CommandExtra(StrEnum):
    """Keys that a device type may add to the upgrade command, after `md5`."""

    SHA256 = "sha256"
    CRC32 = "crc32"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceType:
    """A product line. `revision` counts its edits, from 1; the API's ETag is made of it and of the age."""

    key: str
    name: str
    version_scheme: VersionScheme = VersionScheme.AUTO
    version_attributes: tuple[str, ...] = (DEFAULT_VERSION_ATTRIBUTE,)
    command_extras: tuple[CommandExtra, ...] = ()
    responses_enabled: bool = False
    auto_register: bool = False
    children_register: bool = True
    created_at_ms: int = 0
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`event` from a device of `device_type` is a check of `version_attribute` for `module`."""

    id: str
    name: str
    device_type: str
    event: str = DEFAULT_EVENT
    version_attribute: str = DEFAULT_VERSION_ATTRIBUTE
    module: str = DEFAULT_MODULE
    enabled: bool = True
    created_at_ms: int = 0
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The bytes of a firmware: `filename` is data for the URL, never a path; digests are lower-case hex."""

    filename: str
    size_bytes: int
    md5: str
    sha256: str
    crc32: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """One uploaded package and who may get it.

    `device_list` names the stored list of identifiers that may get it, "" the empty one. `tags` select devices that
    have one of them, `basis_points` (hundredths of a per cent) a part of the fleet that `percentage_seed` decides on.
    Where all three are None every device of the type may get it; else who is listed, or fits tags and percentage, each
    where it is set.
    `source_versions` is empty where any current version may be upgraded. `deleted_at_ms` marks a tombstone.
    """

    id: str
    name: str
    device_type: str
    version: str
    package: Package
    module: str = DEFAULT_MODULE
    device_list: str | None = None
    tags: tuple[str, ...] | None = None
    basis_points: int | None = None
    percentage_seed: int = 0
    source_versions: tuple[str, ...] = ()
    use_https: bool = False
    enabled: bool = True
    allow_downgrade: bool = False
    created_at_ms: int = 0
    deleted_at_ms: int | None = None
    revision: int = 1

    @property
    def has_selector(self) -> bool:
        """Whether it is for some devices only (or for none): a list, tags or a percentage are set."""
        return not (self.device_list is None and self.tags is None and self.basis_points is None)


@dataclass(frozen=True, slots=True)
class CatalogueChange:
    """Write one document of the catalogue, or remove it where `document` is None.

    `key` is the device type's key, or the ULID of the rule or firmware.
    """

    kind: DocumentKind
    key: str
    document: DeviceType | Rule | Firmware | None


class ReportedVersion(NamedTuple):
    """One version attribute as last reported. `reported_at_ms` is the broker's time, 0 for one set by an operator."""

    text: str
    reported_at_ms: int


class Outcome(StrEnum):
    """How one device fared in one offer, or how far it is. Steps may be missing; those of a final outcome are over.

    `planned` and `sending` are before the command left, and `skipped` is a device for which nothing was newer any more
    when its turn came: only runs know these.
    """

    PLANNED = "planned"
    SENDING = "sending"
    OFFERED = "offered"
    DELIVERED = "delivered"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    INSTALLING = "installing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes behind it."""
        return self not in _STEPS


_STEPS: Final = (
    Outcome.PLANNED,
    Outcome.SENDING,
    Outcome.OFFERED,
    Outcome.DELIVERED,
    Outcome.DOWNLOADING,
    Outcome.DOWNLOADED,
    Outcome.INSTALLING,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOffer:
    """A firmware that a device was told of and that has no outcome yet; one per (device, module).

    `version` is the offered one, `from_version` the one that the device ran. The newest of `command_ids` is the last.
    `run_id` and `chunk` say where in a run it belongs; empty where a check made it. `outcome` is how far it is.
    `has_tried`: the device came back, or said that it is at it, since the last attempt that was counted.
    """

    module: str
    firmware_id: str
    version_attribute: str
    version: str
    from_version: str
    command_ids: tuple[int, ...]
    offered_at_ms: int
    run_id: str = ""
    chunk: int = 0
    outcome: Outcome = Outcome.OFFERED
    has_tried: bool = False


@dataclass(frozen=True, slots=True)
class Manual:
    """Runs when somebody asks."""

    kind: Literal["manual"] = "manual"


@dataclass(frozen=True, slots=True)
class Once:
    """One run, at a time."""

    at_ms: int
    kind: Literal["once"] = "once"


@dataclass(frozen=True, slots=True)
class Repeat:
    """At wall times of an IANA `zone`: `times` (minutes since midnight) of `days` (0 is Monday), or a `cron` line."""

    zone: str
    days: tuple[int, ...] = ()
    times: tuple[int, ...] = ()
    cron: str | None = None
    kind: Literal["repeat"] = "repeat"


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many seconds, counted from a moment."""

    every_s: int
    from_ms: int
    kind: Literal["interval"] = "interval"


Schedule = Manual | Once | Repeat | Interval


@dataclass(frozen=True, slots=True)
class Window:
    """When a run may send: from `start` to `end` (minutes since midnight, `end` on the next day where it is not later)
    of the days on which it starts (0 is Monday), as wall time of an IANA zone."""

    zone: str
    days: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledOffer:
    """An offer with its outcome, as a device's history keeps it. `code` says more of a failure (`other_version`)."""

    offer: OpenOffer
    outcome: Outcome
    settled_at_ms: int
    code: str = ""


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a device tried a firmware without success, an attempt an hour at most, and when it last did.

    `is_exhausted`: it is not offered that firmware any more.
    """

    firmware_id: str
    count: int
    last_at_ms: int | None
    is_exhausted: bool


class DeviceState(NamedTuple):
    """What Redis knows of one device. `tags` are sorted and distinct.

    `exhausted` names the firmware that it tried too often and is not offered any more. `form` is how its gateway spoke
    of it last, None where that is what pushes begin with: `gateway_*` and a text for one address, `sub_*` and a list
    for more.
    """

    identifier: str
    device_type: str
    versions: Mapping[str, ReportedVersion] = MappingProxyType({})
    open_offers: tuple[OpenOffer, ...] = ()
    tags: tuple[str, ...] = ()
    exhausted: tuple[str, ...] = ()
    form: ChildForm | None = None
