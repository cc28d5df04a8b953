"""Which device types may be made, changed and removed.

Owns what a type must keep for its rules, firmware and tasks. Must not know how types are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ota_hook._versions import version_key
from ota_hook.admission.changes import writing
from ota_hook.admission.refused import refuse_unusable, refused_firmware_of
from ota_hook.admission.rivals import key_of, refuse_if_duplicate, refuse_loop
from ota_hook.admission.texts import first_few, shown
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.model import DEFAULT_EVENT, CatalogueChange, DeviceType, DocumentKind, Firmware, Rule
from ota_hook.snapshot import Snapshot
from ota_hook.task import Task

VERSION_ATTRIBUTES_MAX: Final = 16


def find_type(snapshot: Snapshot, key: str, *, field: str = "device_type") -> DeviceType:
    """The device type that a document refers to. InputError (422) where it does not exist or can't be used."""
    device_type = snapshot.types.get(key)
    if device_type is None:
        if refused := snapshot.refused.get((DocumentKind.DEVICE_TYPE, key)):
            raise InputError(f"The device type {shown(key)} can't be used: {refused.reason}.", field=field)
        raise InputError(f"There is no device type {shown(key)}.", mend="Create it first.", field=field)
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
        return (writing(proposed),) if rules else (writing(proposed), writing(default))
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
        named = first_few([f"{f.version!r} ({f.name} {f.id})" for f in strange])
        raise ConflictError(
            f"Of {len(strange)} firmware the version is not one in the scheme {scheme.value!r}: {named}.",
            mend="Delete those first.",
            field="version_scheme",
        )
    if proposed.version_scheme != old.version_scheme:
        _refuse_clashes_under(snapshot, proposed)
    return (writing(replace(proposed, created_at_ms=old.created_at_ms, revision=old.revision + 1)),)


def _refuse_clashes_under(snapshot: Snapshot, proposed: DeviceType) -> None:
    """Under another scheme two firmware may become duplicates, and a downgrade may begin to go in circles."""
    edited = replace(snapshot, types={**snapshot.types, proposed.key: proposed})
    by_version: dict[tuple[str, bytes], list[Firmware]] = {}
    for firmware in edited.living_firmware(proposed.key):
        equals = by_version.setdefault((firmware.module, key_of(edited, firmware, firmware.version)), [])
        for other in equals:
            refuse_if_duplicate(firmware, other)
        equals.append(firmware)
        if firmware.allow_downgrade:
            refuse_loop(edited, firmware, None, newly=False)


def remove_type(
    snapshot: Snapshot, key: str, *, devices: Sequence[str], tasks: Sequence[Task] = ()
) -> tuple[CatalogueChange, ...]:
    """Delete a device type and its rules. `devices` are some devices of that type; empty where there are none."""
    if key not in snapshot.types:
        refuse_unusable(snapshot, DocumentKind.DEVICE_TYPE, key)
        raise NotFound(f"There is no device type {shown(key)}.")
    living = snapshot.living_firmware(key) + refused_firmware_of(snapshot, key)
    uses = []
    if living:
        uses.append(f"{len(living)} firmware ({first_few([f.name + ' ' + f.id for f in living])})")
    if devices:
        uses.append(f"devices ({first_few(devices)})")
    targeting = [f"{task.name} {task.id}" for task in tasks if task.device_type == key]
    if targeting:
        uses.append(f"{'a task' if len(targeting) == 1 else 'tasks'} ({first_few(targeting)})")
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
    return (writing(back), *(writing(rule) for rule in rules if rule.id not in snapshot.rules))


def keep_attribute(device_type: DeviceType, attribute: str) -> tuple[CatalogueChange, ...]:
    """What makes the type keep a version attribute; nothing where it does already."""
    widened = _with_attribute(device_type, attribute)
    return () if widened is device_type else (writing(replace(widened, revision=device_type.revision + 1)),)


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
