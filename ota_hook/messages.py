"""What devices and the cloud say to each other: payloads on the wire, meanings in the code.

Pure. The payloads are those of the `eztcloud` protocol in every dialect; child_messages.py has those of children.
Nothing a device sends raises anything but BadMessage, whose reason is one of a fixed few (it labels a metric).
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn

import orjson

from ota_hook.model import DEFAULT_MODULE, VERSION_MAX_BYTES, CommandExtra, Firmware

COMMAND_METHOD: Final = "otaUpgrade"
COMMAND_NAME: Final = "OTA升级"
ELEMENTS_MAX: Final = 1_000
"""So many events, keys, or children may be in one message."""
CHUNK_MAX_BYTES: Final = 64 * 1024

_CHUNK_HEADER: Final = struct.Struct(">QIII")


class BadMessage(Exception):  # noqa: N818 - a value that travels one call up, never an error of ours
    """A device's message that can't be used. `reason` is one word for the counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# ---- payloads, device to cloud


class NumberText(str):
    """A JSON number as the device spelled it: `1.10` stays `1.10`."""

    __slots__ = ()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_int=NumberText, parse_float=NumberText, parse_constant=_refuse_constant)
_PLAIN_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_VERSION: Final = re.compile(r"[^0-9\x00-\x1f\x7f-\x9f]*+[0-9][^\x00-\x1f\x7f-\x9f]*+")
"""A text with a digit and without control characters: what lists and files of devices are made of must not be broken
into other lines by what a device says of itself.
"""


def parse_exactly(payload: bytes) -> Any:  # noqa: ANN401 - any JSON
    """The JSON value of a payload, its numbers as NumberText; or BadMessage."""
    try:
        return _DECODER.decode(payload.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise BadMessage("not_utf8") from exc
    except RecursionError as exc:
        raise BadMessage("too_deep") from exc
    except ValueError as exc:
        raise BadMessage("not_json") from exc


def parse_json(payload: bytes) -> Any:  # noqa: ANN401 - any JSON
    """The JSON value of a payload, or BadMessage. Numbers are int or float where orjson takes it, else NumberText."""
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return parse_exactly(payload)


def parse_object(payload: bytes) -> dict[str, Any]:
    """`parse_json` of an object."""
    document = parse_json(payload)
    if not isinstance(document, dict):
        raise BadMessage("not_an_object")
    return document


class ReportedVersions(NamedTuple):
    """The usable versions of one report by attribute, and how many values of version attributes were bad."""

    versions: Mapping[str, str]
    bad_values: int


def parse_attributes(payload: bytes, version_attributes: Iterable[str]) -> ReportedVersions:
    """The versions in a report of a direct device; other attributes are not looked at."""
    document = parse_object(payload)
    spelled: dict[str, Any] | None = None
    versions: dict[str, str] = {}
    bad_values = 0
    for attribute in version_attributes:
        value = document.get(attribute)
        if value is None:
            continue
        if type(value) in {int, float}:  # its spelling counts, which the quick parser does not keep
            if spelled is None:
                spelled = parse_exactly(payload)
            value = spelled[attribute]
        text = read_version(value)
        if text is None:
            bad_values += 1
        else:
            versions[attribute] = text
    return ReportedVersions(versions, bad_values)


def read_version(value: object) -> str | None:
    """The version that a JSON value spells, trimmed; None for what is none (WIRE: strings and plain numbers alone)."""
    if isinstance(value, NumberText):
        text = str(value) if _PLAIN_NUMBER.fullmatch(value) else ""
    elif isinstance(value, str):
        text = value.strip()
    else:
        return None
    if len(text) > VERSION_MAX_BYTES or not _VERSION.fullmatch(text):
        return None
    try:
        return text if len(text.encode("utf-8")) <= VERSION_MAX_BYTES else None
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 can't hold
        return None


class Event(NamedTuple):
    """One event: its name (`method`), and all that it says."""

    name: str
    document: Mapping[str, Any]


def read_events(document: object) -> tuple[Event, ...]:
    """The events in a message of a direct device: one, or a list of up to 1,000. One that can't be used spoils all."""
    return tuple(map(read_event, read_list(document)))


def read_list(document: object) -> Sequence[Any]:
    """What a message is about: itself, or each element of a list."""
    if type(document) is not list:
        return (document,)
    if not document:
        raise BadMessage("not_an_object")
    if len(document) > ELEMENTS_MAX:
        raise BadMessage("too_many")
    return document


def read_event(document: object) -> Event:
    """One event. BadMessage for what is none."""
    if not isinstance(document, dict):
        raise BadMessage("not_an_object")
    return Event(read_event_name(document), document)


def read_event_name(document: Mapping[str, Any]) -> str:
    """The name in one event. BadMessage for what is none."""
    method, event_id = document.get("method"), document.get("id")
    if not isinstance(method, str) or isinstance(method, NumberText) or not method:
        raise BadMessage("no_method")
    if isinstance(event_id, bool) or not (event_id is None or isinstance(event_id, (str, int, float))):
        raise BadMessage("bad_id")
    return method


def read_keys(document: object) -> frozenset[str] | None:
    """Which stored attributes are asked for: `{"keys": […]}`; None for all, which an empty list means."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or len(keys) > ELEMENTS_MAX or not all(isinstance(key, str) for key in keys):
        raise BadMessage("bad_keys")
    return frozenset(keys) or None


class ChunkRequest(NamedTuple):
    """A device asks for a piece of the firmware that it was offered."""

    module: str
    version: str
    offset: int
    size_bytes: int


def read_chunk_request(document: Mapping[str, Any]) -> ChunkRequest:
    """`{"params": {"module", "version", "offset", "length"}}` of an `otaChunk` event; `length` at most 64 KiB."""
    params = document.get("params")
    if not isinstance(params, dict):
        raise BadMessage("bad_chunk")
    module, version = params.get("module", DEFAULT_MODULE), params.get("version")
    offset, length = params.get("offset"), params.get("length")
    if not isinstance(module, str) or not isinstance(version, str):
        raise BadMessage("bad_chunk")
    if type(offset) is not int or type(length) is not int:
        raise BadMessage("bad_chunk")
    if not 0 <= offset < 2**32 or not 0 < length <= CHUNK_MAX_BYTES:
        raise BadMessage("bad_chunk")
    return ChunkRequest(module, version, offset, length)


# ---- payloads, cloud to device


def upgrade_command(firmware: Firmware, *, url: str, command_id: int, extras: tuple[CommandExtra, ...] = ()) -> bytes:
    """The command that offers `firmware`: exactly these keys in this order, extras after `md5`."""
    return end_command(begin_upgrade_command(firmware, url=url, extras=extras), command_id)


def end_command(begun: bytes, command_id: int) -> bytes:
    """The command that begins so."""
    return begun + b"%d}" % command_id


def begin_upgrade_command(firmware: Firmware, *, url: str, extras: tuple[CommandExtra, ...]) -> bytes:
    """Everything of `upgrade_command` before its id, which is its last value: the same for every device."""
    package = firmware.package
    params: dict[str, object] = {
        "module": firmware.module,
        "upgrade": True,
        "version": firmware.version,
        "url": url,
        "size": package.size_bytes,
        "md5": package.md5,
    }
    for extra in extras:
        params[extra.value] = getattr(package, extra.value)
    return _begin_command(params)


def no_upgrade_command(module: str, *, command_id: int) -> bytes:
    """The answer to a check where nothing is newer. Never pushed: some devices update on any `otaUpgrade`."""
    return end_command(_begin_no_upgrade_command(module), command_id)


@lru_cache(maxsize=1024)
def _begin_no_upgrade_command(module: str) -> bytes:
    return _begin_command({"module": module, "upgrade": False})


def _begin_command(params: dict[str, object]) -> bytes:
    command = {"method": COMMAND_METHOD, "params": params, "command_name": COMMAND_NAME, "id": 0}
    return orjson.dumps(command).removesuffix(b"0}")


def chunk_answer(data: bytes, *, command_id: int, offset: int) -> bytes:
    """A piece of a firmware behind its header, big-endian: command id (u64), offset, length, crc32 of it (u32 each)."""
    return _CHUNK_HEADER.pack(command_id, offset, len(data), zlib.crc32(data)) + data


def received_response(*, at_ms: int) -> bytes:
    """Says that a message was received, not what came of it."""
    return orjson.dumps({"error_code": 0, "error_msg": "OK", "ts": at_ms})


def refused_response(text: str, *, at_ms: int) -> bytes:
    """Says that a message was refused, and why."""
    return orjson.dumps({"error_code": -1, "error_msg": text, "ts": at_ms})


def attributes_response(versions: Mapping[str, str], *, at_ms: int) -> bytes:
    """The stored version attributes that a device asked for."""
    return orjson.dumps({"error_code": 0, "error_msg": "", "attributes": dict(versions), "ts": at_ms})
