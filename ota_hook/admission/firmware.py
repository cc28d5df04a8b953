"""Which firmware may be made, changed and removed; rivals.py says what it may not stand beside.

Must not know packages, or how firmware is written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ota_hook._device_set import DeviceSet
from ota_hook.admission.changes import writing
from ota_hook.admission.device_types import find_type
from ota_hook.admission.refused import refuse_unusable, refused_firmware
from ota_hook.admission.rivals import refuse_duplicate, refuse_loop
from ota_hook.admission.texts import check_ulid, key_in_scheme, shown
from ota_hook.errors import InputError, NotFound
from ota_hook.model import CatalogueChange, DocumentKind, Firmware
from ota_hook.snapshot import Snapshot

SOURCE_VERSIONS_MAX: Final = 100
FIRMWARE_TAGS_MAX: Final = 100
INLINE_DEVICES_MAX: Final = 10_000
LISTED_DEVICES_MAX: Final = 1_000_000


def find_firmware(snapshot: Snapshot, firmware_id: str) -> Firmware:
    """The firmware; NotFound where it never was, or is deleted (gone), ConflictError where it can't be used."""
    firmware = snapshot.firmware.get(firmware_id)
    if firmware is None:
        refuse_unusable(snapshot, DocumentKind.FIRMWARE, firmware_id)
        raise NotFound(f"There is no firmware {shown(firmware_id)}.")
    if firmware.deleted_at_ms is not None:
        raise NotFound(f"The firmware {firmware.name!r} ({firmware.id}) was deleted.", gone=True)
    return firmware


def find_mendable_firmware(snapshot: Snapshot, firmware_id: str) -> Firmware:
    """`find_firmware`, or one that can't be used as it is but can be read."""
    refused = refused_firmware(snapshot, firmware_id)
    return find_firmware(snapshot, firmware_id) if refused is None else refused


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
        refuse_duplicate(snapshot, proposed)
        refuse_loop(snapshot, proposed, devices)
    if old is None:
        old = refused_firmware(snapshot, proposed.id)
    if old is not None:
        proposed = replace(proposed, revision=old.revision + 1)
    return (writing(proposed),)


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
    return (writing(replace(firmware, deleted_at_ms=now_ms, revision=firmware.revision + 1)),)
