"""What devices and the cloud say to each other: topics and payloads on the wire, meanings in the code.

Pure. Topic templates are data; the payloads are those of the `eztcloud` protocol in every dialect. Nothing a device
sends raises anything but BadMessage, whose reason is one of a fixed few (it labels a metric).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn

import orjson

from ota_hook.errors import InputError
from ota_hook.model import VERSION_MAX_BYTES, CommandExtra, Firmware, is_direct_identifier

COMMAND_METHOD: Final = "otaUpgrade"
COMMAND_NAME: Final = "OTA升级"
TOPIC_MAX_BYTES: Final = 65_535


class Channel(StrEnum):
    """The topics of a direct device that the hook reads or answers on."""

    ATTRIBUTES = "attributes"
    EVENT_REPORT = "event_report"
    COMMAND_SEND = "command_send"
    COMMAND_REPLY = "command_reply"


HOOKED_CHANNELS: Final = (Channel.ATTRIBUTES, Channel.EVENT_REPORT, Channel.COMMAND_REPLY)
OPTIONAL_CHANNELS: Final = frozenset({Channel.COMMAND_REPLY})
"""A dialect without these works; what is said there is not heard."""

BUILT_IN_DIALECTS: Final[Mapping[str, Mapping[str, str]]] = {
    "eztcloud": {
        "attributes": "attributes/{device}",
        "event_report": "event_report/{device}",
        "command_send": "command_send/{device}",
        "command_reply": "command_reply/{device}",
    },
    "typed": {
        "attributes": "{device_type}/{device}/attributes",
        "event_report": "{device_type}/{device}/event_report",
        "command_send": "{device_type}/{device}/command_send",
        "command_reply": "{device_type}/{device}/command_reply",
    },
}

_PLACEHOLDERS: Final = frozenset({"device", "device_type", "clientid", "username"})
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


class BadMessage(Exception):  # noqa: N818 - a value that travels one call up, never an error of ours
    """A device's message that can't be used. `reason` is one word for the counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Template:
    """A topic whose levels are literals or placeholders; a placeholder fills one whole level."""

    levels: tuple[tuple[bool, str], ...]
    """(is a placeholder, its name or the literal) per level."""

    @property
    def topic_filter(self) -> str:
        return "/".join("+" if placeholder else text for placeholder, text in self.levels)

    def match(self, levels: list[str]) -> dict[str, str] | None:
        """What the placeholders stand for in a topic that was split at `/`, or None."""
        if len(levels) != len(self.levels):
            return None
        values: dict[str, str] = {}
        for (placeholder, text), level in zip(self.levels, levels, strict=True):
            if placeholder:
                if values.setdefault(text, level) != level:
                    return None
            elif text != level:
                return None
        return values

    def fill(self, values: Mapping[str, str]) -> str:
        return "/".join(values[text] if placeholder else text for placeholder, text in self.levels)

    @property
    def lead(self) -> str:
        """What every topic of it begins with: all before its first placeholder."""
        return self.topic_filter.partition("+")[0]

    @property
    def around_device(self) -> tuple[str, str] | None:
        """What stands before and behind the device, where the template names nothing else; else None."""
        if [text for is_placeholder, text in self.levels if is_placeholder] != ["device"]:
            return None
        before, behind = self.fill({"device": "\0"}).split("\0")
        return before, behind

    def overlaps(self, other: Template) -> bool:
        """Whether some topic matches both."""
        return len(self.levels) == len(other.levels) and all(
            mine[0] or theirs[0] or mine[1] == theirs[1] for mine, theirs in zip(self.levels, other.levels, strict=True)
        )


class Address(NamedTuple):
    """Who published, and on which channel. `device_type` is None where the topic does not name it."""

    channel: Channel
    device: str
    device_type: str | None
    clientid: str
    username: str


class Dialect:
    """A family of topic templates.

    A topic that begins with none of `leads` is not ours: most need no closer look.
    """

    __slots__ = ("_around", "_around_command", "_hooked", "leads", "name", "templates")

    def __init__(self, name: str, templates: Mapping[Channel, Template]) -> None:
        self.name = name
        self.templates = templates
        self._hooked = tuple((channel, templates[channel]) for channel in HOOKED_CHANNELS if channel in templates)
        self.leads = tuple(template.lead for _, template in self._hooked)
        self._around_command = templates[Channel.COMMAND_SEND].around_device
        # Most dialects name nothing but the device: then a topic is what its connection may say, or it is not.
        self._around = tuple(
            (channel, *template.around_device)
            for channel, template in self._hooked
            if template.around_device is not None
        )

    @property
    def topic_filters(self) -> tuple[str, ...]:
        """What the hook asks the broker for."""
        return tuple(template.topic_filter for _, template in self._hooked)

    @property
    def command_filter(self) -> str:
        """Where commands to devices go."""
        return self.templates[Channel.COMMAND_SEND].topic_filter

    def commanded_device(self, topic: str, *, clientid: str, username: str) -> str | None:
        """The device whose command topic it is, None for a topic that is none. The broker says who took it."""
        values = self.templates[Channel.COMMAND_SEND].match(topic.split("/"))
        if values is None:
            return None
        fits = values.get("clientid", clientid) == clientid and values.get("username", username) == username
        return values["device"] if fits else None

    def recognise(self, topic: str, *, identity: str, clientid: str, username: str) -> Address | None:
        """The address of a device's message; None for a topic that is not ours.

        BadMessage where the topic speaks for another than the connection's own identity, or for none that can be one.
        """
        for around_channel, before, behind in self._around:
            if topic == before + identity + behind and is_direct_identifier(identity):
                return Address(around_channel, identity, None, clientid, username)
        levels = topic.split("/")
        for channel, template in self._hooked:
            values = template.match(levels)
            if values is None:
                continue
            device = values["device"]
            if device != identity or not is_direct_identifier(device):
                raise BadMessage("identity_differs")
            if values.get("clientid", clientid) != clientid or values.get("username", username) != username:
                raise BadMessage("identity_differs")
            return Address(channel, device, values.get("device_type"), clientid, username)
        return None

    def push_topic(self, device: str, device_type: str, *, identity: str) -> str:
        """Where commands go that nobody asked for. `identity`: which of the connection's fields the device's name is.

        BadMessage where the topic needs the other field, or no topic can say it.
        """
        values = {"device": device, "device_type": device_type, identity: device}
        template = self.templates[Channel.COMMAND_SEND]
        if not all(text in values for placeholder, text in template.levels if placeholder):
            raise BadMessage("topic_unusable")
        topic = template.fill(values)
        if not is_publishable(topic):
            raise BadMessage("topic_unusable")
        return topic

    def command_topic(self, address: Address, device_type: str) -> str:
        """Where that device's commands go, mountpoint included. BadMessage where no topic can say it."""
        if self._around_command is not None:
            before, behind = self._around_command
            topic = before + address.device + behind
        else:
            topic = self.templates[Channel.COMMAND_SEND].fill({**address._asdict(), "device_type": device_type})
        if not is_publishable(topic):
            raise BadMessage("topic_unusable")
        return topic


def is_publishable(topic: str) -> bool:
    """Whether the broker survives publishing to `topic`: no wildcard (it crashes the publisher's connection), no NUL,
    1 to 65,535 bytes (longer kills the subscriber's connection)."""
    if not topic or "+" in topic or "#" in topic or "\0" in topic:
        return False
    return len(topic) * 4 <= TOPIC_MAX_BYTES or len(topic.encode("utf-8", "surrogatepass")) <= TOPIC_MAX_BYTES


def parse_dialect(name: str, templates: Mapping[str, str]) -> Dialect:
    """A dialect from its templates' texts. InputError says which one can't be used, and why."""
    unknown = set(templates) - set(Channel)
    if unknown:
        raise InputError(f"{min(unknown)!r} is no topic; known are {', '.join(Channel)}.")
    parsed = {}
    for channel in Channel:
        if channel not in templates and channel in OPTIONAL_CHANNELS:
            continue
        if channel not in templates:
            raise InputError(f"The topic {channel.value!r} is missing.")
        parsed[channel] = _parse_template(channel, templates[channel])
    for one, other in itertools.combinations(parsed, 2):
        if parsed[one].overlaps(parsed[other]):
            raise InputError(f"The topics {one.value!r} and {other.value!r} can be the same topic.")
    return Dialect(name, parsed)


def _parse_template(channel: Channel, text: str) -> Template:
    levels = []
    for level in text.replace("{u}", "{device}").split("/"):
        placeholder = _PLACEHOLDER.fullmatch(level)
        if placeholder is None and any(c in level for c in "{}+#\0"):
            raise InputError(
                f"In {channel.value} = {text!r} a placeholder fills a whole level, and no wildcard stands."
            )
        if placeholder is not None and placeholder[1] not in _PLACEHOLDERS:
            raise InputError(f"{{{placeholder[1]}}} is no placeholder; known are {', '.join(sorted(_PLACEHOLDERS))}.")
        levels.append((True, placeholder[1]) if placeholder else (False, level))
    if (True, "device") not in levels:
        raise InputError(f"{channel.value} = {text!r} does not name {{device}}.")
    return Template(tuple(levels))


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


def _parse_object(payload: bytes) -> dict[str, Any]:
    try:
        document = _DECODER.decode(payload.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise BadMessage("not_utf8") from exc
    except RecursionError as exc:
        raise BadMessage("too_deep") from exc
    except ValueError as exc:
        raise BadMessage("not_json") from exc
    if not isinstance(document, dict):
        raise BadMessage("not_an_object")
    return document


def parse_object(payload: bytes) -> dict[str, Any]:
    """The JSON object of a payload, or BadMessage. Numbers are int or float where orjson takes it, else NumberText."""
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return _parse_object(payload)
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
    versions: dict[str, str] = {}
    bad_values = 0
    for attribute in version_attributes:
        value = document.get(attribute)
        if value is None:
            continue
        if type(value) in {int, float}:  # its spelling counts, which the quick parser does not keep
            value = _parse_object(payload)[attribute]
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


def parse_event(payload: bytes) -> str:
    """The event's name (`method`) in an event of a direct device."""
    document = parse_object(payload)
    method, event_id = document.get("method"), document.get("id")
    if not isinstance(method, str) or isinstance(method, NumberText) or not method:
        raise BadMessage("no_method")
    if isinstance(event_id, bool) or not (event_id is None or isinstance(event_id, (str, int, float))):
        raise BadMessage("bad_id")
    return method


# ---- payloads, cloud to device


def upgrade_command(firmware: Firmware, *, url: str, command_id: int, extras: tuple[CommandExtra, ...] = ()) -> bytes:
    """The command that offers `firmware`: exactly these keys in this order, extras after `md5`."""
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
    return _command(params, command_id)


def no_upgrade_command(module: str, *, command_id: int) -> bytes:
    """The answer to a check where nothing is newer. Never pushed: some devices update on any `otaUpgrade`."""
    return _before_no_upgrade_id(module) + b"%d}" % command_id


@lru_cache(maxsize=1024)
def _before_no_upgrade_id(module: str) -> bytes:
    """Everything of that command before its id, which is its last value."""
    return _command({"module": module, "upgrade": False}, 0).removesuffix(b"0}")


def _command(params: dict[str, object], command_id: int) -> bytes:
    return orjson.dumps({"method": COMMAND_METHOD, "params": params, "command_name": COMMAND_NAME, "id": command_id})
