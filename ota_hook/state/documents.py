"""The catalogue's documents as JSON, and back.

Pure: no I/O. A device type or rule of a newer release may hold more fields: they are ignored, and lost when it is
written again. A firmware must have exactly the fields that this release writes: one that is missing or not known may
say who must not get it. So a new field of a firmware raises FORMAT (docs/adr/0007).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from ota_hook.errors import InputError
from ota_hook.model import CatalogueChange, DeviceType, DocumentKind, Firmware, Rule

Document = DeviceType | Rule | Firmware

_ADAPTERS: Final[dict[DocumentKind, TypeAdapter[Any]]] = {
    DocumentKind.DEVICE_TYPE: TypeAdapter(DeviceType),
    DocumentKind.RULE: TypeAdapter(Rule),
    DocumentKind.FIRMWARE: TypeAdapter(Firmware),
}
_FIRMWARE_FIELDS: Final = frozenset(field.name for field in fields(Firmware))


def encode_document(change: CatalogueChange) -> bytes:
    """The JSON of the change's document, empty where it removes one. InputError for a text that JSON can't hold."""
    if change.document is None:
        return b""
    try:
        return orjson.dumps(change.document)
    except TypeError as exc:  # a lone surrogate
        raise InputError(f"The {change.kind.replace('_', ' ')} holds a text that is not Unicode.") from exc


def decode_document(kind: DocumentKind, key: str, stored: bytes) -> Document:
    """The document under `key`. ValueError says in one line what is wrong with it."""
    try:
        document: Document = _ADAPTERS[kind].validate_json(stored, strict=True)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from exc
    own_key = document.key if isinstance(document, DeviceType) else document.id
    if own_key != key:
        raise ValueError(f"it is stored under another key than its own, {own_key!r}")
    if isinstance(document, Firmware):
        _require_all_fields(orjson.loads(stored).keys())
    return document


def _require_all_fields(found: Collection[str]) -> None:
    if unknown := sorted(set(found) - _FIRMWARE_FIELDS):
        raise ValueError(f"this release does not know its field {unknown[0]!r}")
    if missing := sorted(_FIRMWARE_FIELDS - set(found)):
        raise ValueError(f"it has no field {missing[0]!r}")
