"""What is stored and can't be used: who asks for it hears why. Must not know what judged it."""

from __future__ import annotations

from ota_hook.admission.texts import shown
from ota_hook.errors import ConflictError
from ota_hook.model import DocumentKind, Firmware
from ota_hook.snapshot import Snapshot


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
    raise ConflictError(f"The {kind.replace('_', ' ')} {shown(key)} can't be used: {refused.reason}.", mend=mend)


def refused_firmware_of(snapshot: Snapshot, device_type: str) -> list[Firmware]:
    """What can be read of the firmware of a type that can't be used: a type made anew might bring it into force."""
    known = (refused_firmware(snapshot, key) for _, key in snapshot.refused)
    return [firmware for firmware in known if firmware is not None and firmware.device_type == device_type]


def refused_firmware(snapshot: Snapshot, firmware_id: str) -> Firmware | None:
    """What a firmware says that can't be used, and that no good document came before."""
    refused = snapshot.refused.get((DocumentKind.FIRMWARE, firmware_id))
    return None if refused is None or firmware_id in snapshot.firmware else refused.firmware
