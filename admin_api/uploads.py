"""A firmware upload: multipart read as it streams, fields in any order, the file straight into the package store.

Nothing is held whole but the small fields; whatever ends an upload early leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from email.message import Message
from typing import Any, Final, NamedTuple

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from admin_api.bodies import declared_length, media_type_of, stream_body
from admin_api.documents.fields import validate
from admin_api.documents.firmware import FirmwareFields
from admin_api.problems import too_large, unsupported_media_type
from ota_hook.admission.firmware import FIRMWARE_TAGS_MAX, INLINE_DEVICES_MAX, SOURCE_VERSIONS_MAX
from ota_hook.errors import InputError
from ota_hook.model import Package
from ota_hook.packages.inspect import read_filename
from ota_hook.ports.packages import IncomingPackage, PackageStore

FIELD_MAX_BYTES: Final = 1024
BOUNDARY_MAX_BYTES: Final = 70
"""RFC 2046 §5.1.1."""
_FIELDS_ALLOWANCE_BYTES: Final = 8 * 1024 * 1024
"""What a body may have beside the file: ten thousand device fields and their headers."""
_NAME_SHOWN_CHARS: Final = 64

_REPEATED: Final = {
    "devices": INLINE_DEVICES_MAX,
    "source_versions": SOURCE_VERSIONS_MAX,
    "tags": FIRMWARE_TAGS_MAX,
}
_EMPTY_IS_NONE: Final = frozenset({"devices", "tags"})
_BOOLEANS: Final = frozenset({"use_https", "enabled", "allow_downgrade"})
_BOOLEAN_TEXTS: Final = {"true": True, "1": True, "false": False, "0": False}
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]*[0-9A-Za-z'()+_,\-./:=?]")

_PLAIN_FIELD: Final = re.compile(r'form-data; name="([a-z_]+)"')

CheckEarly = Callable[[dict[str, Any]], None]
"""Raises what can be refused from the fields that came before the file."""


class Upload(NamedTuple):
    """A whole upload; its package is durable in the store and must be removed where the firmware is refused."""

    fields: FirmwareFields
    package: Package


async def receive_upload(
    request: Request, store: PackageStore, firmware_id: str, *, max_bytes: int, check_early: CheckEarly
) -> Upload:
    """Read a firmware upload whole. Raises InputError, DependencyError, ClientDisconnect, or 408, 413, 415."""
    boundary = _read_boundary(request)
    if (declared_length(request) or 0) > max_bytes + _FIELDS_ALLOWANCE_BYTES:
        raise _file_too_large(max_bytes)
    form = UploadForm(boundary, max_bytes)
    body = stream_body(request)
    await _read_until_file(body, form)
    check_early(form.read_fields())
    incoming = await store.receive(firmware_id)
    try:
        return await _read_rest(body, form, incoming)
    except BaseException:
        await asyncio.shield(incoming.discard())
        raise


async def _read_until_file(body: AsyncIterator[bytes], form: UploadForm) -> None:
    async for chunk in body:
        form.feed(chunk)
        if form.filename is not None:
            return
    form.finish()
    raise InputError("The part `file` is missing.", field="file")


async def _read_rest(body: AsyncIterator[bytes], form: UploadForm, incoming: IncomingPackage) -> Upload:
    for piece in form.take_file_bytes():
        await incoming.write(piece)
    async for chunk in body:
        form.feed(chunk)
        for piece in form.take_file_bytes():
            await incoming.write(piece)
    form.finish()
    if not incoming.size_bytes:
        raise InputError("The file is empty.", field="file")
    fields = validate(FirmwareFields, form.read_fields())
    return Upload(fields, await incoming.keep(form.filename or ""))


def _file_too_large(max_bytes: int) -> HTTPException:
    return too_large(f"The file has more than {max_bytes} bytes.")


def _read_boundary(request: Request) -> bytes:
    if media_type_of(request) != "multipart/form-data":
        raise unsupported_media_type("The body must be multipart/form-data.")
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary", b"")
    if len(boundary) > BOUNDARY_MAX_BYTES or not _BOUNDARY.fullmatch(boundary):
        raise InputError("The Content-Type names no usable boundary.", field="Content-Type")
    return boundary


class UploadForm:
    """The multipart body as it comes: bytes in, the file's bytes out, fields kept. Sans-I/O."""

    def __init__(self, boundary: bytes, max_file_bytes: int) -> None:
        self.filename: str | None = None
        self._max_file_bytes = max_file_bytes
        self._file_bytes = 0
        self._other_bytes = 0
        self._texts: dict[str, list[str]] = {}
        self._part: str | None = None
        self._value = bytearray()
        self._headers: dict[str, str] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._pieces: list[bytes] = []
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Take a piece of the body; InputError where it can't be read, 413 where it is too large."""
        file_bytes_before = self._file_bytes
        try:
            self._parser.write(chunk)
        except FormParserError as exc:
            raise InputError("The body is not multipart/form-data with the boundary that it names.") from exc
        self._other_bytes += len(chunk) - (self._file_bytes - file_bytes_before)
        if self._other_bytes > _FIELDS_ALLOWANCE_BYTES:
            raise too_large("The fields beside the file are too large.")

    def take_file_bytes(self) -> list[bytes]:
        """What came of the file since it was last asked for; to be asked after each `feed`."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> None:
        """Say that the body is over; InputError where it broke off."""
        if not self._ended:
            raise InputError("The body ends before its last boundary.")

    def read_fields(self) -> dict[str, Any]:
        """The fields so far, by what FirmwareFields expects of each."""
        return {name: _read_field(name, texts) for name, texts in self._texts.items()}

    def _on_part_begin(self) -> None:
        self._headers = {}
        self._part = None
        self._value = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        try:
            name, value = self._header_name.decode("ascii").lower(), self._header_value.decode()
        except UnicodeDecodeError as exc:
            raise InputError("A part's header is not UTF-8.") from exc
        if name in self._headers:
            raise InputError(f"A part has two {name} headers.")
        self._headers[name] = value
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        name, filename = _read_disposition(self._headers.get("content-disposition", ""))
        shown = name[:_NAME_SHOWN_CHARS]
        if self._headers.get("content-transfer-encoding", "binary").strip().lower() not in {"binary", "8bit", "7bit"}:
            raise InputError(f"`{shown}` is encoded; send it as it is.", field=name)
        if name == "file":
            self._begin_file(filename)
        elif filename is not None:
            raise InputError(f"`{shown}`: only the part `file` may be a file.", field=name)
        elif name not in FirmwareFields.model_fields:
            raise InputError(f"`{shown}`: there is no such field.", field=name)
        elif len(self._texts.get(name, ())) >= _REPEATED.get(name, 1):
            raise InputError(f"`{shown}` is there too often.", field=name)
        self._part = name

    def _begin_file(self, filename: str | None) -> None:
        if self.filename is not None:
            raise InputError("There must be one file.", field="file")
        if filename is None:
            raise InputError("The part `file` must be a file with a name.", field="file")
        self.filename = read_filename(filename)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._file_bytes += end - start
            if self._file_bytes > self._max_file_bytes:
                raise _file_too_large(self._max_file_bytes)
            self._pieces.append(data[start:end])
        else:
            if len(self._value) + end - start > FIELD_MAX_BYTES:
                raise InputError(f"`{self._part}` has more than {FIELD_MAX_BYTES} bytes.", field=self._part)
            self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._part is None or self._part == "file":
            return
        try:
            text = self._value.decode()
        except UnicodeDecodeError as exc:
            raise InputError(f"`{self._part}` is not UTF-8.", field=self._part) from exc
        self._texts.setdefault(self._part, []).append(text)

    def _on_end(self) -> None:
        self._ended = True


def _read_disposition(header: str) -> tuple[str, str | None]:
    """The part's name and its file's name; RFC 2231's `filename*` wins over `filename`."""
    if plain := _PLAIN_FIELD.fullmatch(header):  # ten thousand of them in one upload
        return plain[1], None
    message = Message()
    message["content-disposition"] = header
    names: dict[str, str] = {}
    try:
        params = message.get_params(failobj=[], header="content-disposition")
        for position, (key, value) in enumerate(params):
            if position == 0 and key.lower() != "form-data":
                break
            if isinstance(value, tuple):
                charset, _, octets = value
                names[key.lower()] = octets.encode("latin-1").decode(charset or "us-ascii")
            else:
                names.setdefault(key.lower(), value)
    except (LookupError, UnicodeError, ValueError) as exc:
        raise InputError("A part's Content-Disposition can't be read.") from exc
    if "name" not in names:
        raise InputError("A part has no Content-Disposition `form-data` with a name.")
    return names["name"], names.get("filename")


def _read_field(name: str, texts: list[str]) -> object:
    """What a field's texts mean: a list, a boolean, a number, or the text.

    One empty `devices` or `tags` is `[]`: nobody. An empty `source_versions` is no version, for `[]` would be any.
    """
    if name in _REPEATED:
        return [] if texts == [""] and name in _EMPTY_IS_NONE else texts
    if name in _BOOLEANS:
        value = _BOOLEAN_TEXTS.get(texts[0].strip().lower())
        if value is None:
            raise InputError(f"`{name}` must be true or false.", field=name)
        return value
    if name == "percentage":
        if not _NUMBER.fullmatch(texts[0].strip()):
            raise InputError(f"`{name}` must be a number.", field=name)
        return float(texts[0])
    return texts[0]
