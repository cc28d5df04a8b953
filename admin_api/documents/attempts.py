"""What devices tried in vain, as a model. Must not know when an attempt counts."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel

from admin_api.documents.fields import rfc3339_or_none
from ota_hook.model import Attempts


class AttemptsOut(BaseModel):
    """How often a device tried a firmware in vain. `exhausted`: it is not offered it any more, until a reset."""

    device: str
    firmware_id: str
    attempts: int
    last_at: str | None
    exhausted: bool

    @classmethod
    def of(cls, device: str, attempts: Attempts) -> Self:
        return cls(
            device=device,
            firmware_id=attempts.firmware_id,
            attempts=attempts.count,
            last_at=rfc3339_or_none(attempts.last_at_ms),
            exhausted=attempts.is_exhausted,
        )
