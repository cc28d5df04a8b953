"""What every model of a request or answer is made of: texts that the core checks, times, and how refusals read.

Must not know any resource.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from ota_hook.admission.texts import check_attribute, check_identifier, check_key, check_name, check_tag, check_version
from ota_hook.errors import InputError

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(epoch_ms: int) -> str | None:
    """`2026-01-31T08:00:00.000Z`; None outside the years 1 to 9999."""
    try:
        moment = _EPOCH + timedelta(milliseconds=epoch_ms)
    except OverflowError:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_or_none(at_ms: int | None) -> str | None:
    """The same, and None for what has not come."""
    return None if at_ms is None else rfc3339(at_ms)


def validate(model: type[M], document: object) -> M:
    """The document as `model`; the same 422 as a body that the framework validated."""
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise RequestValidationError(exc.errors(include_url=False)) from exc


def checked_by(check: Callable[[T], T]) -> AfterValidator:
    """A rule of the core as a validator."""

    def apply(value: T) -> T:
        try:
            return check(value)
        except InputError as exc:
            raise PydanticCustomError("refused", "{detail}", {"detail": str(exc)}) from exc

    return AfterValidator(apply)


Key = Annotated[str, checked_by(check_key)]
Name = Annotated[str, checked_by(check_name)]
Attribute = Annotated[str, checked_by(check_attribute)]
Version = Annotated[str, checked_by(check_version)]
Identifier = Annotated[str, checked_by(check_identifier)]
Tag = Annotated[str, checked_by(check_tag)]


class Document(BaseModel):
    """A request: unknown fields are refused, and nothing is turned into another type on the way."""

    model_config = ConfigDict(extra="forbid", strict=True)
