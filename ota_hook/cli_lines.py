"""Files of lines that commands send: NDJSON, CSV, and a list of identifiers as plain text.

Owns which format a file is in, and what is said of one that can't be in it. What a line of NDJSON or CSV means is the
API's to say: those go as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import orjson
import typer

from ota_hook.admission.texts import check_identifier
from ota_hook.cli_session import open_input
from ota_hook.errors import InputError

NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
TEXT: Final = "text/plain"
_MEDIA_TYPES: Final = {"ndjson": NDJSON, "csv": CSV, "text": TEXT}
_SUFFIXES: Final = {".ndjson": NDJSON, ".jsonl": NDJSON, ".csv": CSV}
_LINE_MAX_BYTES: Final = 64 * 1024
_LINES_AT_ONCE: Final = 1000
"""A write to the network for each line would take minutes for a million."""
_SHOWN_BYTES: Final = 64
_BOM: Final = b"\xef\xbb\xbf"
_FOREIGN: Final = {
    b"\x1f\x8b": ("compressed (gzip)", "Unpack it first."),
    b"PK\x03\x04": ("a ZIP archive or a spreadsheet", "Unpack it first, or save the table as CSV UTF-8."),
    b"\xff\xfe": ("in UTF-16", "Save it as UTF-8 (in Excel: CSV UTF-8)."),
    b"\xfe\xff": ("in UTF-16", "Save it as UTF-8 (in Excel: CSV UTF-8)."),
}
"""By how a file begins: what it is, and what to do."""

FormatOption = Annotated[
    Literal["ndjson", "csv"] | None,
    typer.Option("--format", help="How the lines are written [csv for *.csv, else ndjson].", show_default=False),
]
ListFormatOption = Annotated[
    Literal["text", "ndjson", "csv"] | None,
    typer.Option(
        "--format",
        help="How FILE is written [csv for *.csv, ndjson for *.ndjson and *.jsonl, else text: an identifier a line].",
        show_default=False,
    ),
]


class Lines(NamedTuple):
    """An open file of lines. `size_bytes` is None where that is not known."""

    media_type: str
    chunks: Iterator[bytes]
    size_bytes: int | None = None


def media_type_of(file: Path, line_format: str | None, *, default: str = NDJSON) -> str:
    """Of the lines of a file: what is said, or what its name says, else `default`."""
    return _MEDIA_TYPES[line_format] if line_format else _SUFFIXES.get(file.suffix.lower(), default)


def open_lines(file: Path, line_format: str | None, *, default: str = NDJSON) -> Lines:
    """Open a file (`-`: standard input) and look at its beginning. InputError where it can't be of its format."""
    media_type = media_type_of(file, line_format, default=default)
    chunks, size_bytes = open_input(file)
    first = next(chunks, b"")
    _refuse_foreign(file, media_type, first.removeprefix(_BOM))
    return Lines(media_type, itertools.chain([first], chunks), size_bytes)


def _refuse_foreign(file: Path, media_type: str, beginning: bytes) -> None:
    name = "Standard input" if str(file) == "-" else f"The file {file}"
    for mark, (what, mend) in _FOREIGN.items():
        if beginning.startswith(mark):
            raise InputError(f"{name} is {what}.", mend=mend)
    line = beginning.lstrip().partition(b"\n")[0].strip()
    if media_type != NDJSON and line.startswith(b"{"):
        raise InputError(f"{name} looks like NDJSON: it begins with an object.", mend="Give --format ndjson.")
    if media_type != CSV and _names_columns(line):
        raise InputError(f"{name} looks like CSV: its first line names columns.", mend="Give --format csv.")


def _names_columns(line: bytes) -> bool:
    cells = (cell.strip(b' "').lower() for cell in line.replace(b";", b",").replace(b"\t", b",").split(b","))
    return b"identifier" in cells


def read_identifiers(chunks: Iterator[bytes]) -> Iterator[str]:
    """The identifiers of a plain list: one a line; blank lines and those that begin with # say nothing.

    InputError names the line that is none. A comma or semicolon may stand in an identifier, but hardly ever does: such
    a list is CSV that nobody called so.
    """
    for number, line in split_lines(chunks):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as exc:
            raise InputError(f"Line {number} of the list is not UTF-8.", mend="Save the file as UTF-8.") from exc
        if not text or text.startswith("#"):
            continue
        if text.startswith(('"', "{")):
            raise InputError(f"Line {number} of the list looks like JSON.", mend="Give --format ndjson.")
        if "," in text or ";" in text:
            raise InputError(
                f"Line {number} of the list, {text[:_SHOWN_BYTES]!r}, has more than an identifier.",
                mend="If it is CSV, name the columns in a first line and give --format csv.",
            )
        try:
            yield check_identifier(text)
        except InputError as exc:
            raise InputError(f"Line {number} of the list: {exc.detail}", mend=exc.mend) from exc


def as_ndjson(identifiers: Iterable[str]) -> Lines:
    """Identifiers as the API takes them."""
    lines = (orjson.dumps(identifier) + b"\n" for identifier in identifiers)
    return Lines(NDJSON, iter(lambda: b"".join(itertools.islice(lines, _LINES_AT_ONCE)), b""))


def split_lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream with their numbers, from 1."""
    number, rest = 0, b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, line
        if len(rest) > _LINE_MAX_BYTES:
            raise InputError(f"Line {number + 1} has more than {_LINE_MAX_BYTES} bytes.")
    if rest:
        yield number + 1, rest
