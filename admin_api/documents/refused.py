"""What is stored and can't be used, as a model. Must not know why."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel

from ota_hook.snapshot import RefusedDocument


class RefusedDocumentOut(BaseModel):
    """A document that is stored and can't be used: its kind (`device_type`, `rule`, `firmware`), key, and why."""

    kind: str
    key: str
    reason: str

    @classmethod
    def of(cls, document: RefusedDocument) -> Self:
        return cls(kind=document.kind.value, key=document.shown_key, reason=document.reason)
