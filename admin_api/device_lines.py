"""Devices as lines of NDJSON or CSV, both ways: what a line says, judged by the catalogue, and how a device is written.

Knows no request and no store.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

import orjson
from pydantic import ValidationError

from admin_api.bodies import CSV
from admin_api.documents.devices import NewDevice
from admin_api.faults import describe_fault
from ota_hook.admission.device_types import find_type
from ota_hook.admission.texts import check_version
from ota_hook.errors import InputError
from ota_hook.identifiers import is_identifier
from ota_hook.model import TAGS_MAX, VERSION_MAX_BYTES, DeviceState, is_tag
from ota_hook.ports.catalogue import SnapshotSource
from ota_hook.ports.devices import DeviceEntry
from ota_hook.snapshot import Snapshot

_FIELDS: Final = frozenset({"identifier", "type", "versions", "tags"})
_FIXED_COLUMNS: Final = ("identifier", "type", "tags")
_VERSION_COLUMN: Final = "versions."
_NAMED: Final = 10
_REMEMBERED: Final = 10_000
"""Texts that were looked at; a fleet has few versions and few sets of tags."""


def admit_versions(snapshot: Snapshot, type_key: str, versions: Mapping[str, Any] | None) -> None:
    """Refuse an unknown type, and versions that the type does not keep."""
    device_type = find_type(snapshot, type_key, field="type")
    for attribute in versions or ():
        if attribute not in device_type.version_attributes:
            raise InputError(
                f"{attribute!r} is not a version attribute of the device type {type_key!r}"
                f" ({', '.join(device_type.version_attributes)}).",
                field=f"versions.{attribute}",
            )


@lru_cache(maxsize=_REMEMBERED)
def _is_version(text: str) -> bool:
    try:
        return check_version(text) == text
    except InputError:
        return False


def _is_trimmed_version(text: str) -> bool:
    return len(text) <= VERSION_MAX_BYTES and _is_version(text)  # a long one would be remembered whole


# ---- reading


class OpenQuoteError(InputError):
    """A quoted cell is still open where its line ends: what the lines after it are can't be known, so none is used."""


class DeviceLines:
    """Reads the lines of one import in their order; of CSV the first is the header."""

    def __init__(self, catalogue: SnapshotSource, media_type: str) -> None:
        self._catalogue = catalogue
        self._columns: list[str] | None = None
        self.needs_header = media_type == CSV
        self._good_tags: dict[tuple[str, ...], tuple[str, ...]] = {}

    def take_header(self, line: bytes) -> None:
        """Read the names of the columns. InputError where they can't be used: then no line can."""
        columns = [name.strip() for name in read_row(line)]
        unknown = [name for name in columns if name not in _FIXED_COLUMNS and not _is_version_column(name)]
        if unknown or "identifier" not in columns or "type" not in columns:
            reason = f"{unknown[0][:64]!r} is no column." if unknown else "`identifier` and `type` must be among them."
            raise InputError(
                f"The first line must name the columns: identifier, type, tags, versions.NAME. {reason}",
                mend=mend_of_column(unknown[0], self._known_columns()) if unknown else "",
            )
        for name in columns:
            if columns.count(name) > 1:
                raise InputError(f"The first line names the column {name[:64]!r} twice.")
        self._columns = columns
        self.needs_header = False

    def _known_columns(self) -> list[str]:
        kept: set[str] = set().union(*self._catalogue.current.kept_by_type.values())
        return [*_FIXED_COLUMNS, *(_VERSION_COLUMN + attribute for attribute in sorted(kept))]

    def read(self, line: bytes) -> DeviceEntry:
        """The device of a line. InputError says what is wrong with it."""
        document = read_json(line) if self._columns is None else _read_cells(self._columns, line)
        return self._read_plain(document) or self._read_closely(document)

    def _read_plain(self, document: Any) -> DeviceEntry | None:  # noqa: ANN401 - any JSON
        """The device of a line that is plainly good, as most are; None where a closer look must tell."""
        if type(document) is not dict or not document.keys() <= _FIELDS:
            return None
        identifier, device_type = document.get("identifier"), document.get("type")
        if type(identifier) is not str or type(device_type) is not str or not is_identifier(identifier):
            return None
        kept = self._catalogue.current.kept_by_type.get(device_type)
        versions, tags = document.get("versions"), document.get("tags")
        if kept is None or not (versions is None or self._are_good_versions(versions, kept)):
            return None
        if tags is not None:
            tags = self._sort_tags(tags)
            if tags is None:
                return None
        return DeviceEntry(identifier, device_type, versions, tags)

    def _read_closely(self, document: object) -> DeviceEntry:
        try:
            device = NewDevice.model_validate(document)
        except ValidationError as exc:
            raise InputError(describe_fault(exc.errors(include_url=False)[0], whole="The line")[1]) from exc
        admit_versions(self._catalogue.current, device.type, device.versions)
        return DeviceEntry(device.identifier, device.type, device.versions, device.sorted_tags)

    def _are_good_versions(self, versions: Any, kept: frozenset[str]) -> bool:  # noqa: ANN401
        if type(versions) is not dict:
            return False
        for attribute, text in versions.items():
            if attribute not in kept or type(text) is not str or not _is_trimmed_version(text):
                return False
        return True

    def _sort_tags(self, tags: Any) -> tuple[str, ...] | None:  # noqa: ANN401
        if type(tags) is not list or len(tags) > TAGS_MAX or not all(type(tag) is str for tag in tags):
            return None
        given = tuple(tags)
        good = self._good_tags.get(given)
        if good is None:
            if len(set(given)) != len(given) or not all(map(is_tag, given)):
                return None
            if len(self._good_tags) == _REMEMBERED:
                self._good_tags.clear()
            good = self._good_tags[given] = tuple(sorted(given))
        return good


def _is_version_column(name: str) -> bool:
    return name.startswith(_VERSION_COLUMN) and name != _VERSION_COLUMN


def mend_of_column(name: str, known: Collection[str]) -> str:
    """What to do about a column that is none of the known ones; empty where nothing comes to mind."""
    if ";" in name or "\t" in name:
        return "Separate them by commas."
    if _VERSION_COLUMN + name in known:
        return f"Did you mean `{_VERSION_COLUMN}{name}`?"
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"Did you mean `{near[0]}`?" if near else ""


def read_json(line: bytes) -> Any:  # noqa: ANN401 - any JSON
    """The value of a line of NDJSON."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        _text_of(line)
        raise InputError("The line is not JSON.") from exc


def read_row(line: bytes) -> list[str]:
    """The cells of a line of CSV. OpenQuoteError where a quoted cell goes on: no value of ours holds a line break."""
    try:
        # A reader goes on to the next line only where a quoted cell is open.
        reader = csv.reader((_text_of(line).rstrip("\r\n"), '"'), strict=True)
        cells = next(reader)
    except csv.Error as exc:
        raise InputError(f"The line is not CSV: {exc}.") from exc
    if reader.line_num > 1:
        raise OpenQuoteError("A quoted value does not end on its line.", mend="No value spans lines.")
    return cells


def _text_of(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as exc:
        raise InputError("The line is not UTF-8.", mend="Save the file as UTF-8 (in Excel: CSV UTF-8).") from exc


def check_width(cells: Collection[str], columns: int) -> None:
    """Refuse a row that is longer or shorter than its header."""
    if len(cells) != columns:
        values = "1 value" if len(cells) == 1 else f"{len(cells)} values"
        raise InputError(f"The line has {values}, and the header names {columns}.")


def _read_cells(columns: list[str], line: bytes) -> dict[str, Any]:
    """A line of CSV as the object that NDJSON would have. What has no column is not said."""
    cells = read_row(line)
    check_width(cells, len(columns))
    document: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        if column == "tags":
            document["tags"] = cell.split()
        elif column in _FIXED_COLUMNS:
            document[column] = cell
        else:
            versions = document.setdefault("versions", {})
            if cell:
                versions[column.removeprefix(_VERSION_COLUMN)] = cell
    return document


# ---- writing


class LeftOut:
    """The devices that an export can't write: what is stored of them can't be read."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, identifier: str) -> None:
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(identifier)


class DeviceOutput(Protocol):
    """Writes devices; `take` returns what was written since it was last asked.

    `end` writes a last line that no import takes for a device, where some were left out.
    """

    def add(self, device: DeviceState) -> None: ...

    def end(self, left_out: LeftOut) -> None: ...

    def take(self) -> bytes: ...


def _texts(device: DeviceState) -> dict[str, str]:
    """Its versions, but for those that an import would refuse: of old, devices could report control characters."""
    return {
        attribute: version.text
        for attribute, version in sorted(device.versions.items())
        if _is_trimmed_version(version.text)
    }


class NdjsonOutput:
    """A JSON object a line, as an import reads it."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, device: DeviceState) -> None:
        line = {
            "identifier": device.identifier,
            "type": device.device_type,
            "versions": _texts(device),
            "tags": device.tags,
        }
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def end(self, left_out: LeftOut) -> None:
        if left_out.count:
            line = {"unreadable": left_out.count, "identifiers": left_out.first}
            self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def take(self) -> bytes:
        written = b"".join(self._lines)
        self._lines.clear()
        return written


class CsvOutput:
    """A header and a line per device (RFC 4180), as an import reads them; versions of other attributes are left out."""

    def __init__(self, attributes: Iterable[str]) -> None:
        self._attributes = sorted(attributes)
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text)
        self._writer.writerow((*_FIXED_COLUMNS, *(_VERSION_COLUMN + attribute for attribute in self._attributes)))

    def add(self, device: DeviceState) -> None:
        versions = _texts(device)
        texts = (versions.get(attribute, "") for attribute in self._attributes)
        self._writer.writerow((device.identifier, device.device_type, " ".join(device.tags), *texts))

    def end(self, left_out: LeftOut) -> None:
        if left_out.count:
            self._writer.writerow([f"unreadable: {left_out.count} ({', '.join(map(repr, left_out.first))})"])

    def take(self) -> bytes:
        written = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        return written
