"""Pages of a list: the cursor is opaque to clients, the limit bounded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ota_hook.errors import InputError

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1000
_CURSOR_MAX_CHARS: Final = 1024
"""A child's identifier of 512 bytes, and the number of its bucket, in base64."""

T = TypeVar("T")


class PageQuery(BaseModel):
    """The query of every list; filters are added by subclasses. An unknown parameter is refused."""

    model_config = ConfigDict(extra="forbid")

    cursor: Annotated[
        str | None, Field(max_length=_CURSOR_MAX_CHARS, description="`next_cursor` of the page before.")
    ] = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="Entries per page.")] = DEFAULT_LIMIT


class Page(BaseModel, Generic[T]):
    """One page; `next_cursor` is null at the end."""

    items: list[T]
    next_cursor: str | None


def page_of(keyed: Iterable[tuple[str, T]], query: PageQuery) -> tuple[list[T], str | None]:
    """The page of entries in the order of their keys, and the cursor of the next. InputError for a bad cursor."""
    after = "" if query.cursor is None else read_cursor(query.cursor)
    rest = sorted((pair for pair in keyed if pair[0] > after), key=lambda pair: pair[0])
    page = rest[: query.limit]
    return [entry for _, entry in page], make_cursor(page[-1][0]) if len(rest) > query.limit else None


def make_cursor(key: str) -> str:
    """What stands for `key`, the place behind which the next page begins."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """The key of a cursor. InputError where it is none."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as exc:
        raise InputError("The cursor is not one of this list.", mend="Start without one.", field="cursor") from exc
