"""Firmware beside other firmware of its type and module: duplicates, and downgrades that others would undo.

Owns when two may stand side by side. Must not know how a firmware came, or who asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ota_hook._device_set import DeviceSet
from ota_hook._versions import version_key
from ota_hook.errors import ConflictError
from ota_hook.model import Firmware
from ota_hook.snapshot import NOBODY, Snapshot


def refuse_duplicate(snapshot: Snapshot, proposed: Firmware) -> None:
    """ConflictError where another firmware is the same version for the same devices."""
    key = key_of(snapshot, proposed, proposed.version)
    for other in _others(snapshot, proposed):
        if key_of(snapshot, other, other.version) == key:
            refuse_if_duplicate(proposed, other)


def refuse_if_duplicate(proposed: Firmware, other: Firmware) -> None:
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


def refuse_loop(snapshot: Snapshot, proposed: Firmware, devices: DeviceSet | None, *, newly: bool = True) -> None:
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
        arrived = key_of(snapshot, proposed, proposed.version)
        for other in rivals:
            if _leads_from(snapshot, other, arrived):
                raise _undoing(proposed, other, "allow_downgrade")
    for back in (proposed, *rivals):
        _refuse_round(snapshot, back, (proposed, *rivals), proposed)


def _refuse_round(snapshot: Snapshot, back: Firmware, enabled: Sequence[Firmware], proposed: Firmware) -> None:
    """Refuse where `enabled` lead a device from the version of the downgrade `back` to one that it takes back."""
    if _lowest_source(snapshot, back) is None:
        return
    arrived = key_of(snapshot, back, back.version)
    away = {key_of(snapshot, back, source) for source in back.source_versions}
    reached, waiting = {arrived}, [arrived]
    unreached = list(enabled)
    while waiting:
        key = waiting.pop()
        onward = [firmware for firmware in unreached if _leads_from(snapshot, firmware, key)]
        for firmware in onward:
            target = key_of(snapshot, firmware, firmware.version)
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
    arrived = key_of(snapshot, firmware, firmware.version)
    keys = (key_of(snapshot, firmware, source) for source in firmware.source_versions)
    return min((key for key in keys if key > arrived), default=None)


def _leads_from(snapshot: Snapshot, firmware: Firmware, key: bytes) -> bool:
    """Whether it may be offered to a device at a version of that key.

    Source versions are exact texts for an offer; here equal keys count, for nobody knows how the device spells it.
    """
    target = key_of(snapshot, firmware, firmware.version)
    if firmware.source_versions and key not in {key_of(snapshot, firmware, text) for text in firmware.source_versions}:
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


def _others(snapshot: Snapshot, firmware: Firmware) -> Iterator[Firmware]:
    living = snapshot.living_firmware(firmware.device_type, firmware.module)
    return (other for other in living if other.id != firmware.id)


def key_of(snapshot: Snapshot, firmware: Firmware, text: str) -> bytes:
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
