"""Documents as the changes that write them. Must not know which may be written."""

from __future__ import annotations

from ota_hook.model import CatalogueChange, DeviceType, DocumentKind, Firmware, Rule


def writing(document: DeviceType | Rule | Firmware) -> CatalogueChange:
    """The change that writes it, under its key."""
    match document:
        case DeviceType():
            return CatalogueChange(DocumentKind.DEVICE_TYPE, document.key, document)
        case Rule():
            return CatalogueChange(DocumentKind.RULE, document.id, document)
        case Firmware():
            return CatalogueChange(DocumentKind.FIRMWARE, document.id, document)
