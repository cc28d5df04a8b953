"""What may enter the catalogue: the shape of each text, and what a change must not contradict.

Pure. A `check_*` function returns its text or raises InputError; an `admit_*` or `remove_*` function looks at the
newest snapshot and returns the changes to write, or raises InputError, NotFound or ConflictError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from ota_hook._device_set import DeviceSet
from ota_hook._versions import version_key
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.model import (
    DEFAULT_EVENT,
    TAG_MAX_BYTES,
    VERSION_MAX_BYTES,
    CatalogueChange,
    DeviceType,
    DocumentKind,
    Firmware,
    Rule,
    VersionScheme,
    is_direct_identifier,
    is_tag,
)
from ota_hook.snapshot import NOBODY, Snapshot
from ota_hook.task import Task

NAME_MAX_CHARS: Final = 128
EVENT_MAX_CHARS: Final = 128
ATTRIBUTE_MAX_BYTES: Final = 128
VERSION_ATTRIBUTES_MAX: Final = 16
SOURCE_VERSIONS_MAX: Final = 100
FIRMWARE_TAGS_MAX: Final = 100
INLINE_DEVICES_MAX: Final = 10_000
LISTED_DEVICES_MAX: Final = 1_000_000
_ROUNDING: Final = 1e-9

_TAKEN: Final = {
    VersionScheme.AUTO: "any text with a digit",
    VersionScheme.SEMVER: "three numbers and perhaps more, as in 1.0.0 or 1.0.0-rc.1",
    VersionScheme.PEP440: "what Python's packages have, as in 1.0, 1.0rc1 or 1.0.post1",
    VersionScheme.DEBIAN: "what begins with a digit, as in 1.0-1 or 1.0~rc1",
}
"""What would be a version in a scheme, in half a sentence."""

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


# ---- texts


def check_key(text: str) -> str:
    """A device type's key or a module: 1 to 64 of letters, digits, `_ . -`, the first a letter or digit."""
    if not _KEY.fullmatch(text):
        raise InputError(f"{_shown(text)} must be 1 to 64 letters, digits, _ . or -, and begin with a letter or digit.")
    return text


def check_ulid(text: str) -> str:
    """The id of a rule or firmware."""
    if not _ULID.fullmatch(text):
        raise InputError(f"{_shown(text)} is no ULID (26 characters, capitals).")
    return text


def check_name(text: str) -> str:
    """What people call a thing: 1 to 128 characters, none of them a control character."""
    return _check_line(text.strip(), NAME_MAX_CHARS, "A name")


def check_event(text: str) -> str:
    """An event's name, as the device sends it: 1 to 128 characters, none of them a control character."""
    return _check_line(text, EVENT_MAX_CHARS, "An event")


def check_attribute(text: str) -> str:
    """A version attribute: 1 to 128 bytes of text."""
    if not text or _utf8_length(text, "An attribute") > ATTRIBUTE_MAX_BYTES:
        raise InputError(f"An attribute must have 1 to {ATTRIBUTE_MAX_BYTES} bytes.")
    return text


def check_version(text: str) -> str:
    """A version of a firmware or device, trimmed: 1 to 128 bytes with a digit in it."""
    text = text.strip()
    if _utf8_length(text, "A version") > VERSION_MAX_BYTES or not any("0" <= c <= "9" for c in text):
        raise InputError(
            f"{_shown(text)} is not a version: it needs one of the digits 0–9 and at most {VERSION_MAX_BYTES} bytes."
        )
    return _check_line(text, VERSION_MAX_BYTES, "A version")


def key_in_scheme(scheme: VersionScheme, text: str, *, of: str = "") -> bytes:
    """The key of a version. InputError where it is none in the scheme, `of` whatever that is."""
    key = version_key(scheme, text)
    if key is None:
        raise InputError(
            f"{_shown(text)} is not a version in the scheme {scheme.value!r}{of}, which takes {_TAKEN[scheme]}.",
            field="version",
        )
    return key


def check_identifier(text: str) -> str:
    """A direct device's identifier."""
    if is_direct_identifier(text):
        return text
    if "/" in text:
        raise InputError(f"{_shown(text)} names a gateway's child; children are not available yet.")
    raise InputError(f"{_shown(text)} is no identifier: 1 to 128 bytes without / + # % and control characters.")


def check_tag(text: str) -> str:
    """A tag. InputError for what is none."""
    if not is_tag(text):
        raise InputError(
            f"{_shown(text)} is no tag: 1 to {TAG_MAX_BYTES} bytes of UTF-8 without white space, control characters and"
            ' , ; "'
        )
    return text


def check_percentage(percentage: float) -> float:
    """A percentage with at most two decimals."""
    if abs(percentage * 100 - round(percentage * 100)) > _ROUNDING:
        raise InputError("A percentage has at most two decimals.")
    return percentage


def check_distinct(texts: list[str]) -> list[str]:
    """The texts, none of them twice."""
    for text in texts if len(set(texts)) != len(texts) else ():
        if texts.count(text) > 1:
            raise InputError(f"{_shown(text)} is there twice.")
    return texts


def _check_line(text: str, most: int, what: str) -> str:
    _utf8_length(text, what)
    if not 1 <= len(text) <= most or any(c < " " or "\x7f" <= c <= "\x9f" for c in text):
        raise InputError(f"{what} must have 1 to {most} characters without control characters.")
    return text


def _utf8_length(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as exc:
        raise InputError(f"{what} must be Unicode text.") from exc


def _shown(text: str) -> str:
    """In quotes and cut, with what is not printable spelled out."""
    return repr(text) if len(text) <= 64 else repr(text[:61]) + "…"


# ---- what can't be used


def refuse_unusable(snapshot: Snapshot, kind: DocumentKind, key: str) -> None:
    """ConflictError where such a document is stored but can't be used."""
    refused = snapshot.refused.get((kind, key))
    if refused is None:
        return
    mend = "PUT it anew."
    if kind is DocumentKind.FIRMWARE:
        mend = "Mend that (a device list: PUT it anew), or delete it."
        if refused.firmware is None:
            mend = "Start the release that wrote it, or delete it."
    raise ConflictError(f"The {kind.replace('_', ' ')} {_shown(key)} can't be used: {refused.reason}.", mend=mend)


# ---- device types


def find_type(snapshot: Snapshot, key: str, *, field: str = "device_type") -> DeviceType:
    """The device type that a document refers to. InputError (422) where it does not exist or can't be used."""
    device_type = snapshot.types.get(key)
    if device_type is None:
        if refused := snapshot.refused.get((DocumentKind.DEVICE_TYPE, key)):
            raise InputError(f"The device type {_shown(key)} can't be used: {refused.reason}.", field=field)
        raise InputError(f"There is no device type {_shown(key)}.", mend="Create it first.", field=field)
    return device_type


def admit_type(
    snapshot: Snapshot, proposed: DeviceType, *, default_rule_id: str, tasks: Sequence[Task] = ()
) -> tuple[CatalogueChange, ...]:
    """Create or replace a device type; a new one comes with its default rule, which reads its first attribute.

    One that is created over a document that can't be used has its rules still: their attributes join it.
    """
    old = snapshot.types.get(proposed.key)
    if old is None:
        rules = [rule for rule in snapshot.rules.values() if rule.device_type == proposed.key]
        default = Rule(
            id=default_rule_id,
            name=DEFAULT_EVENT,
            device_type=proposed.key,
            version_attribute=proposed.version_attributes[0],
            created_at_ms=proposed.created_at_ms,
        )
        for rule in rules:
            proposed = _with_attribute(proposed, rule.version_attribute)
        return (_write(proposed),) if rules else (_write(proposed), _write(default))
    for rule in snapshot.rules.values():
        if rule.device_type == old.key and rule.version_attribute not in proposed.version_attributes:
            raise ConflictError(
                f"The rule {rule.name!r} ({rule.id}) uses the attribute {rule.version_attribute!r}.",
                mend="Change or delete the rule first.",
                field="version_attributes",
            )
    for task in tasks:
        if task.device_type == old.key and task.version_attribute not in (None, *proposed.version_attributes):
            raise ConflictError(
                f"The task {task.name!r} ({task.id}) uses the attribute {task.version_attribute!r}.",
                mend="Change or delete the task first.",
                field="version_attributes",
            )
    scheme = proposed.version_scheme
    strange = [f for f in snapshot.living_firmware(old.key) if version_key(scheme, f.version) is None]
    if strange:
        named = _first_few([f"{f.version!r} ({f.name} {f.id})" for f in strange])
        raise ConflictError(
            f"Of {len(strange)} firmware the version is not one in the scheme {scheme.value!r}: {named}.",
            mend="Delete those first.",
            field="version_scheme",
        )
    if proposed.version_scheme != old.version_scheme:
        _refuse_clashes_under(snapshot, proposed)
    return (_write(replace(proposed, created_at_ms=old.created_at_ms, revision=old.revision + 1)),)


def _refuse_clashes_under(snapshot: Snapshot, proposed: DeviceType) -> None:
    """Under another scheme two firmware may become duplicates, and a downgrade may begin to go in circles."""
    edited = replace(snapshot, types={**snapshot.types, proposed.key: proposed})
    by_version: dict[tuple[str, bytes], list[Firmware]] = {}
    for firmware in edited.living_firmware(proposed.key):
        equals = by_version.setdefault((firmware.module, _key(edited, firmware, firmware.version)), [])
        for other in equals:
            _refuse_if_duplicate(firmware, other)
        equals.append(firmware)
        if firmware.allow_downgrade:
            _refuse_loop(edited, firmware, None, newly=False)


def remove_type(
    snapshot: Snapshot, key: str, *, devices: Sequence[str], tasks: Sequence[Task] = ()
) -> tuple[CatalogueChange, ...]:
    """Delete a device type and its rules. `devices` are some devices of that type; empty where there are none."""
    if key not in snapshot.types:
        refuse_unusable(snapshot, DocumentKind.DEVICE_TYPE, key)
        raise NotFound(f"There is no device type {_shown(key)}.")
    living = snapshot.living_firmware(key) + _refused_firmware_of(snapshot, key)
    uses = []
    if living:
        uses.append(f"{len(living)} firmware ({_first_few([f.name + ' ' + f.id for f in living])})")
    if devices:
        uses.append(f"devices ({_first_few(devices)})")
    targeting = [f"{task.name} {task.id}" for task in tasks if task.device_type == key]
    if targeting:
        uses.append(f"{'a task' if len(targeting) == 1 else 'tasks'} ({_first_few(targeting)})")
    if uses:
        raise ConflictError(
            f"The device type {key!r} is in use by {' and by '.join(uses)}.", mend="Delete or move those first."
        )
    rules = [rule for rule in snapshot.rules.values() if rule.device_type == key]
    return (
        *(CatalogueChange(DocumentKind.RULE, rule.id, None) for rule in rules),
        CatalogueChange(DocumentKind.DEVICE_TYPE, key, None),
    )


def restore_type(snapshot: Snapshot, device_type: DeviceType, rules: Sequence[Rule]) -> tuple[CatalogueChange, ...]:
    """Put a device type and its rules back after their deletion, unless one was made anew under its key."""
    if device_type.key in snapshot.types:
        return ()
    back = replace(device_type, revision=device_type.revision + 1)
    return (_write(back), *(_write(rule) for rule in rules if rule.id not in snapshot.rules))


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def keep_attribute(device_type: DeviceType, attribute: str) -> tuple[CatalogueChange, ...]:
    """What makes the type keep a version attribute; nothing where it does already."""
    widened = _with_attribute(device_type, attribute)
    return () if widened is device_type else (_write(replace(widened, revision=device_type.revision + 1)),)


def _with_attribute(device_type: DeviceType, attribute: str) -> DeviceType:
    if attribute in device_type.version_attributes:
        return device_type
    attributes = (*device_type.version_attributes, attribute)
    if len(attributes) > VERSION_ATTRIBUTES_MAX:
        raise InputError(
            f"The device type {device_type.key!r} would have more than {VERSION_ATTRIBUTES_MAX} version attributes.",
            field="version_attribute",
        )
    return replace(device_type, version_attributes=attributes)


# ---- rules


def find_identical_rule(snapshot: Snapshot, proposed: Rule) -> Rule | None:
    """The rule that says the same as `proposed`, whatever its id, age and revision."""
    for rule in snapshot.rules.values():
        if replace(proposed, id=rule.id, created_at_ms=rule.created_at_ms, revision=rule.revision) == rule:
            return rule
    return None


def admit_rule(snapshot: Snapshot, proposed: Rule) -> tuple[CatalogueChange, ...]:
    """Create the rule or replace the one with its id. A version attribute that is new to the type joins it."""
    device_type = find_type(snapshot, proposed.device_type)
    old = snapshot.rules.get(proposed.id)
    if old is not None and old.device_type != proposed.device_type:
        raise InputError("A rule can't move to another device type.", field="device_type")
    for rule in snapshot.rules.values():
        same = (rule.device_type, rule.event, rule.module) == (proposed.device_type, proposed.event, proposed.module)
        if same and rule.id != proposed.id:
            raise ConflictError(
                f"The rule {rule.name!r} ({rule.id}) is there for that device type, event and module already.",
                mend="Change that one.",
            )
    if old is not None:
        proposed = replace(proposed, created_at_ms=old.created_at_ms, revision=old.revision + 1)
    return (*keep_attribute(device_type, proposed.version_attribute), _write(proposed))


# ---- firmware


def find_firmware(snapshot: Snapshot, firmware_id: str) -> Firmware:
    """The firmware; NotFound where it never was, or is deleted (gone), ConflictError where it can't be used."""
    firmware = snapshot.firmware.get(firmware_id)
    if firmware is None:
        refuse_unusable(snapshot, DocumentKind.FIRMWARE, firmware_id)
        raise NotFound(f"There is no firmware {_shown(firmware_id)}.")
    if firmware.deleted_at_ms is not None:
        raise NotFound(f"The firmware {firmware.name!r} ({firmware.id}) was deleted.", gone=True)
    return firmware


def find_mendable_firmware(snapshot: Snapshot, firmware_id: str) -> Firmware:
    """`find_firmware`, or one that can't be used as it is but can be read."""
    refused = _refused_firmware(snapshot, firmware_id)
    return find_firmware(snapshot, firmware_id) if refused is None else refused


def _refused_firmware_of(snapshot: Snapshot, device_type: str) -> list[Firmware]:
    """What can be read of the firmware of a type that can't be used: a type made anew might bring it into force."""
    known = (_refused_firmware(snapshot, key) for _, key in snapshot.refused)
    return [firmware for firmware in known if firmware is not None and firmware.device_type == device_type]


def _refused_firmware(snapshot: Snapshot, firmware_id: str) -> Firmware | None:
    """What a firmware says that can't be used, and that no good document came before."""
    refused = snapshot.refused.get((DocumentKind.FIRMWARE, firmware_id))
    return None if refused is None or firmware_id in snapshot.firmware else refused.firmware


def check_firmware_version(snapshot: Snapshot, device_type_key: str, version: str) -> None:
    """Refuse what can be refused before the bytes arrive: an unknown type, a text that is no version there."""
    device_type = find_type(snapshot, device_type_key)
    key_in_scheme(device_type.version_scheme, version, of=f" of {device_type.key!r}")


def admit_firmware(snapshot: Snapshot, proposed: Firmware, devices: DeviceSet | None) -> tuple[CatalogueChange, ...]:
    """Create the firmware or replace the one with its id.

    `devices` holds the members of `proposed.device_list` where the snapshot has not got that list yet; None leaves
    them unknown, and an unknown list counts as one that any device may be in.
    """
    check_firmware_version(snapshot, proposed.device_type, proposed.version)
    if proposed.allow_downgrade and not proposed.source_versions:
        raise InputError(
            "A firmware that allows downgrade must say from which versions (`source_versions`).",
            mend="Set them.",
            field="source_versions",
        )
    old = snapshot.firmware.get(proposed.id)
    if old is None or _who_gets(old) != _who_gets(proposed):
        _refuse_duplicate(snapshot, proposed)
        _refuse_loop(snapshot, proposed, devices)
    if old is None:
        old = _refused_firmware(snapshot, proposed.id)
    if old is not None:
        proposed = replace(proposed, revision=old.revision + 1)
    return (_write(proposed),)


def _who_gets(firmware: Firmware) -> tuple[object, ...]:
    return (
        firmware.enabled,
        firmware.device_list,
        firmware.tags,
        firmware.basis_points,
        firmware.source_versions,
        firmware.allow_downgrade,
    )


def remove_firmware(snapshot: Snapshot, firmware_id: str, *, now_ms: int) -> tuple[CatalogueChange, ...]:
    """Leave a tombstone: history stays, no check finds it any more. What can't be read is removed without one."""
    refused = snapshot.refused.get((DocumentKind.FIRMWARE, firmware_id))
    if refused and not refused.firmware and firmware_id not in snapshot.firmware:
        return (CatalogueChange(DocumentKind.FIRMWARE, check_ulid(firmware_id), None),)
    firmware = find_mendable_firmware(snapshot, firmware_id)
    return (_write(replace(firmware, deleted_at_ms=now_ms, revision=firmware.revision + 1)),)


def _others(snapshot: Snapshot, firmware: Firmware) -> Iterator[Firmware]:
    living = snapshot.living_firmware(firmware.device_type, firmware.module)
    return (other for other in living if other.id != firmware.id)


def _refuse_duplicate(snapshot: Snapshot, proposed: Firmware) -> None:
    key = _key(snapshot, proposed, proposed.version)
    for other in _others(snapshot, proposed):
        if _key(snapshot, other, other.version) == key:
            _refuse_if_duplicate(proposed, other)


def _refuse_if_duplicate(proposed: Firmware, other: Firmware) -> None:
    """Of two with equal version keys: neither has a selector, and neither has source versions or they share one."""
    if proposed.has_selector or other.has_selector:
        return
    both_full = not proposed.source_versions and not other.source_versions
    if both_full or not set(proposed.source_versions).isdisjoint(other.source_versions):
        state = "" if other.enabled else " (disabled)"
        equal = "" if proposed.version == other.version else f", which is equal to {proposed.version!r} in its scheme,"
        raise ConflictError(
            f"The firmware {other.name!r} ({other.id}){state} is version {other.version!r}{equal} for the same devices"
            " already.",
            mend="Change or delete that one, or say for one of them which devices it is for.",
            field="version",
        )


def _refuse_loop(snapshot: Snapshot, proposed: Firmware, devices: DeviceSet | None, *, newly: bool = True) -> None:
    """A device must not be sent back by one enabled firmware and forth by others, for ever.

    A downgrade brings a device to its version. A plain upgrade from there undoes what a new one is for; and where
    enabled firmware lead, however many, from there to a version from which the downgrade is offered, they never end.
    A later, mended version that leads past those is how a downgrade ends.
    """
    if not proposed.enabled:
        return
    rivals = [other for other in _others(snapshot, proposed) if other.enabled]
    if not any(firmware.allow_downgrade for firmware in (proposed, *rivals)):
        return
    rivals = [other for other in rivals if _may_share_a_device(snapshot, proposed, devices, other)]
    if newly and _lowest_source(snapshot, proposed) is not None:
        arrived = _key(snapshot, proposed, proposed.version)
        for other in rivals:
            if _leads_from(snapshot, other, arrived):
                raise _undoing(proposed, other, "allow_downgrade")
    for back in (proposed, *rivals):
        _refuse_round(snapshot, back, (proposed, *rivals), proposed)


def _refuse_round(snapshot: Snapshot, back: Firmware, enabled: Sequence[Firmware], proposed: Firmware) -> None:
    """Refuse where `enabled` lead a device from the version of the downgrade `back` to one that it takes back."""
    if _lowest_source(snapshot, back) is None:
        return
    arrived = _key(snapshot, back, back.version)
    away = {_key(snapshot, back, source) for source in back.source_versions}
    reached, waiting = {arrived}, [arrived]
    unreached = list(enabled)
    while waiting:
        key = waiting.pop()
        onward = [firmware for firmware in unreached if _leads_from(snapshot, firmware, key)]
        for firmware in onward:
            target = _key(snapshot, firmware, firmware.version)
            if target in away and target != arrived:
                raise _undoing(back, firmware, "allow_downgrade" if back is proposed else "version")
            if target not in reached:
                reached.add(target)
                waiting.append(target)
        if onward:
            gone = {firmware.id for firmware in onward}
            unreached = [firmware for firmware in unreached if firmware.id not in gone]


def _lowest_source(snapshot: Snapshot, firmware: Firmware) -> bytes | None:
    """The lowest version from which a firmware really leads down; None for one that never does."""
    if not firmware.allow_downgrade:
        return None
    arrived = _key(snapshot, firmware, firmware.version)
    keys = (_key(snapshot, firmware, source) for source in firmware.source_versions)
    return min((key for key in keys if key > arrived), default=None)


def _leads_from(snapshot: Snapshot, firmware: Firmware, key: bytes) -> bool:
    """Whether it may be offered to a device at a version of that key.

    Source versions are exact texts for an offer; here equal keys count, for nobody knows how the device spells it.
    """
    target = _key(snapshot, firmware, firmware.version)
    if firmware.source_versions and key not in {_key(snapshot, firmware, text) for text in firmware.source_versions}:
        return False
    return target > key or (firmware.allow_downgrade and target != key)


def _undoing(back: Firmware, forth: Firmware, field: str) -> ConflictError:
    other = forth if field == "allow_downgrade" else back
    return ConflictError(
        f"The firmware {other.name!r} ({other.id}) is enabled too, and they would undo each other: {back.version!r} is"
        f" a downgrade, and {forth.version!r} would lead devices on from there.",
        mend="Disable that one first, or give them lists of different devices.",
        field=field,
    )


def _key(snapshot: Snapshot, firmware: Firmware, text: str) -> bytes:
    """The version's key; empty, and so below every other, where the text is no version."""
    return version_key(snapshot.types[firmware.device_type].version_scheme, text) or b""


def _may_share_a_device(snapshot: Snapshot, proposed: Firmware, devices: DeviceSet | None, other: Firmware) -> bool:
    ours = _members(snapshot, proposed, devices)
    theirs = _members(snapshot, other, None)
    if ours is None or theirs is None:
        return (ours is None or bool(ours)) and (theirs is None or bool(theirs))
    return not ours.isdisjoint(theirs)


def _members(snapshot: Snapshot, firmware: Firmware, devices: DeviceSet | None) -> DeviceSet | None:
    """Who may get it; None where that may be anyone: it has no list, one that is unknown, or tags or a percentage."""
    if firmware.tags or firmware.basis_points:
        return None
    if firmware.device_list is None:
        return None if firmware.tags is None and firmware.basis_points is None else NOBODY
    if devices is not None:
        return devices
    return snapshot.device_lists.get(firmware.device_list) if firmware.device_list else NOBODY


def _write(document: DeviceType | Rule | Firmware) -> CatalogueChange:
    match document:
        case DeviceType():
            return CatalogueChange(DocumentKind.DEVICE_TYPE, document.key, document)
        case Rule():
            return CatalogueChange(DocumentKind.RULE, document.id, document)
        case Firmware():
            return CatalogueChange(DocumentKind.FIRMWARE, document.id, document)
