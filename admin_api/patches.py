"""JSON merge patches (RFC 7396): what one may not say, and the document that comes of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from admin_api.documents.fields import validate
from ota_hook.errors import InputError

M = TypeVar("M", bound=BaseModel)

_MENDS: Final = {"source_versions": "Say [] for a firmware for every version."}


def check_patch(
    patch: Mapping[str, object], fields: type[BaseModel], shown: type[BaseModel], *, nullable: Collection[str] = ()
) -> None:
    """Refuse null where it is no value of the field, and what is `shown` of a document but is none of its `fields`.

    Null would remove the field, so that its default applies: who clears `enabled` would enable.
    """
    for name, value in patch.items():
        if name in fields.model_fields:
            if value is None and name not in nullable:
                mend = _MENDS.get(name, "Leave it out to keep it as it is.")
                raise InputError(f"`{name}` can't be null.", mend=mend, field=name)
        elif name in shown.model_fields:
            raise InputError(f"`{name}` can't be changed.", field=name)


def apply_patch(
    document: Mapping[str, object],
    patch: Mapping[str, object],
    fields: type[M],
    shown: type[BaseModel],
    *,
    nullable: Collection[str] = (),
) -> M:
    """The document with the patch applied, as `fields`; 422 where it can't be."""
    check_patch(patch, fields, shown, nullable=nullable)
    merged = {
        name: _merge(document[name], value)
        if isinstance(value, dict) and isinstance(document.get(name), dict)
        else value
        for name, value in {**document, **patch}.items()
    }
    return validate(fields, merged)


def _merge(value: Any, patch: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """What stands within a field: here null removes."""
    merged = dict(value) if isinstance(value, dict) else {}
    for name, change in patch.items():
        if change is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), change) if isinstance(change, dict) else change
    return merged
