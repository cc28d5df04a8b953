"""Device lists as lines of NDJSON or CSV, both ways. Knows no request and no store."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import orjson

from admin_api.bodies import CSV
from admin_api.device_lines import check_width, mend_of_column, read_json, read_row
from ota_hook.admission.texts import check_identifier
from ota_hook.errors import InputError

_COLUMN = "identifier"


class ListLines:
    """Reads the lines of one list in their order. Of CSV the first is the header. Other columns, and other fields of an
    object, are passed over: an export of devices is a list.
    """

    def __init__(self, media_type: str) -> None:
        self._is_csv = media_type == CSV
        self._column: int | None = None
        self._columns = 0

    def read(self, lines: Iterable[tuple[int, bytes]]) -> list[str]:
        """The identifiers of numbered lines. InputError names the line and what is wrong with it."""
        identifiers = []
        for number, line in lines:
            try:
                identifier = self._read_cell(read_row(line)) if self._is_csv else _read_value(read_json(line))
                if identifier is not None:
                    identifiers.append(check_identifier(identifier))
            except InputError as exc:
                raise InputError(f"Line {number}: {exc.detail}", mend=exc.mend) from exc
        return identifiers

    def end(self) -> None:
        """There are no more lines. InputError where the header is missing: an empty file is no list of nobody."""
        if self._is_csv and self._column is None:
            raise InputError("The CSV has no line that names its columns.")

    def _read_cell(self, cells: list[str]) -> str | None:
        if self._column is None:
            self._take_header(cells)
            return None
        check_width(cells, self._columns)
        return cells[self._column]

    def _take_header(self, cells: list[str]) -> None:
        names = [name.strip() for name in cells]
        if names.count(_COLUMN) != 1:
            mends = filter(None, (mend_of_column(name, [_COLUMN]) for name in names if name != _COLUMN))
            raise InputError(
                f"The first line must name the columns, `{_COLUMN}` among them once.", mend=next(mends, "")
            )
        self._column, self._columns = names.index(_COLUMN), len(names)


def _read_value(value: object) -> str:
    if isinstance(value, dict):
        value = value.get(_COLUMN)
    if not isinstance(value, str):
        raise InputError('The line must be "ID" or {"identifier": "ID"}.')
    return value


def write_list(identifiers: Iterable[str], media_type: str) -> bytes:
    """Lines of a list, without a header."""
    if media_type != CSV:
        return b"".join(orjson.dumps({_COLUMN: identifier}) + b"\n" for identifier in identifiers)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([identifier] for identifier in identifiers)
    return text.getvalue().encode()


def list_header(media_type: str) -> bytes:
    """What stands before the lines."""
    return f"{_COLUMN}\r\n".encode() if media_type == CSV else b""
