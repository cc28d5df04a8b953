"""The topics on which devices and the cloud speak.

Pure. A dialect is data: templates of topics. messages.py and child_messages.py have the payloads, which are the same in
every dialect.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from ota_hook.errors import InputError
from ota_hook.identifiers import is_direct_identifier
from ota_hook.messages import BadMessage
from ota_hook.model import Family

TOPIC_MAX_BYTES: Final = 65_535


class Channel(StrEnum):
    """What a topic is for. With a family before it, its name in a dialect: `gateway_attributes`."""

    ATTRIBUTES = "attributes"
    EVENT_REPORT = "event_report"
    COMMAND_SEND = "command_send"
    COMMAND_REPLY = "command_reply"
    CONNECT = "connect"
    DISCONNECT = "disconnect"
    ATTRIBUTES_GET = "attributes_get"
    ATTRIBUTES_RESPONSE = "attributes_response"
    EVENT_RESPONSE = "event_response"
    ATTRIBUTES_GET_RESPONSE = "attributes_get_response"
    OTA_CHUNK = "ota_chunk"


Topic = tuple[Family, Channel]

_HEARD: Final = (
    Channel.ATTRIBUTES,
    Channel.EVENT_REPORT,
    Channel.COMMAND_REPLY,
    Channel.CONNECT,
    Channel.DISCONNECT,
    Channel.ATTRIBUTES_GET,
)
"""What devices say to the cloud, the most frequent first."""
_OF_CHILDREN: Final = frozenset({Channel.CONNECT, Channel.DISCONNECT})
_OF_DIRECT_DEVICES: Final = frozenset({Channel.OTA_CHUNK})
_NEEDED: Final = (Channel.ATTRIBUTES, Channel.EVENT_REPORT, Channel.COMMAND_SEND)
"""A dialect without the others works; what is said there is not heard, and not answered. Of children it has all three,
or nothing.
"""

TOPICS: Final[Mapping[str, Topic]] = {
    family.value + channel.value: (family, channel)
    for family in Family
    for channel in Channel
    if channel not in (_OF_CHILDREN if family is Family.DIRECT else _OF_DIRECT_DEVICES)
}
"""Every topic that a dialect may have, by its name."""

BUILT_IN_DIALECTS: Final[Mapping[str, Mapping[str, str]]] = {
    "eztcloud": {name: f"{name}/{{device}}" for name in TOPICS},
    "typed": {name: f"{{device_type}}/{{device}}/{name}" for name in TOPICS},
}

_PLACEHOLDERS: Final = frozenset({"device", "device_type", "clientid", "username"})
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


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
    """Who published, and on which topic. `device_type` is None where the topic does not name it."""

    channel: Channel
    family: Family
    device: str
    device_type: str | None
    clientid: str
    username: str


class Dialect:
    """A family of topic templates.

    A topic that begins with none of `leads` is not ours: most need no closer look.
    """

    __slots__ = ("_around", "_by_lead", "_commands", "_heard", "leads", "name", "templates")

    def __init__(self, name: str, templates: Mapping[Topic, Template]) -> None:
        self.name = name
        self.templates = templates
        self._heard = tuple(
            (topic, templates[topic])
            for topic in ((family, channel) for family in Family for channel in _HEARD)
            if topic in templates
        )
        self.leads = tuple(dict.fromkeys(template.lead for _, template in self._heard))
        # Most dialects name nothing but the device, at the end: then a topic is what its connection may say, or it is
        # not, and a look into a table tells which.
        self._around = {topic: template.around_device for topic, template in templates.items()}
        self._by_lead = {
            around[0]: topic
            for topic, _ in self._heard
            if (around := self._around[topic]) is not None and not around[1]
        }
        self._commands = tuple(
            (family, templates[family, Channel.COMMAND_SEND])
            for family in Family
            if (family, Channel.COMMAND_SEND) in templates
        )

    @property
    def topic_filters(self) -> tuple[str, ...]:
        """What the hook asks the broker for."""
        return tuple(template.topic_filter for _, template in self._heard)

    @property
    def command_filters(self) -> tuple[str, ...]:
        """Where commands to devices go."""
        return tuple(template.topic_filter for _, template in self._commands)

    def commanded(self, topic: str, *, clientid: str, username: str) -> tuple[Family, str] | None:
        """Whose command topic it is, None for a topic that is none. The broker says who took it."""
        levels = topic.split("/")
        for family, template in self._commands:
            values = template.match(levels)
            if values is None:
                continue
            fits = values.get("clientid", clientid) == clientid and values.get("username", username) == username
            return (family, values["device"]) if fits else None
        return None

    def recognise(self, topic: str, *, identity: str, clientid: str, username: str) -> Address | None:
        """The address of a device's message; None for a topic that is not ours.

        BadMessage where the topic speaks for another than the connection's own identity, or for none that can be one.
        """
        if identity and topic.endswith(identity):
            named = self._by_lead.get(topic[: -len(identity)])
            if named is not None and is_direct_identifier(identity):
                family, channel = named
                return Address(channel, family, identity, None, clientid, username)
        levels = topic.split("/")
        for (family, channel), template in self._heard:
            values = template.match(levels)
            if values is None:
                continue
            device = values["device"]
            if device != identity or not is_direct_identifier(device):
                raise BadMessage("identity_differs")
            if values.get("clientid", clientid) != clientid or values.get("username", username) != username:
                raise BadMessage("identity_differs")
            return Address(channel, family, device, values.get("device_type"), clientid, username)
        return None

    def push_topic(self, device: str, device_type: str, *, identity: str, family: Family = Family.DIRECT) -> str:
        """Where commands go that nobody asked for. `identity`: which of the connection's fields the device's name is.

        BadMessage where the topic needs the other field, there is none, or no topic can say it.
        """
        values = {"device": device, "device_type": device_type, identity: device}
        template = self.templates.get((family, Channel.COMMAND_SEND))
        if template is None or not all(text in values for is_placeholder, text in template.levels if is_placeholder):
            raise BadMessage("topic_unusable")
        return _publishable(template.fill(values))

    def answer_topic(self, address: Address, device_type: str, channel: Channel = Channel.COMMAND_SEND) -> str | None:
        """Where what that device is told goes, in the family of its message, mountpoint included.

        `device_type` is the speaking device's. None where the dialect has no such topic, BadMessage where no topic can
        say it.
        """
        topic = (address.family, channel)
        around = self._around.get(topic)
        if around is not None:  # the template has no wildcard, nor has an identifier
            return around[0] + address.device + around[1]
        if topic not in self.templates:
            return None
        values = {
            "device": address.device,
            "device_type": device_type,
            "clientid": address.clientid,
            "username": address.username,
        }
        return _publishable(self.templates[topic].fill(values))


def _publishable(topic: str) -> str:
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
    unknown = set(templates) - set(TOPICS)
    if unknown:
        raise InputError(f"{min(unknown)!r} is no topic; known are {', '.join(TOPICS)}.")
    for family in Family:
        has_any = family is Family.DIRECT or any(TOPICS[topic][0] is family for topic in templates)
        missing = [family + channel for channel in _NEEDED if family + channel not in templates]
        if has_any and missing:
            raise InputError(f"The topic {missing[0]!r} is missing.")
    parsed = {topic: _parse_template(topic, templates[topic]) for topic in TOPICS if topic in templates}
    for one, other in itertools.combinations(parsed, 2):
        if parsed[one].overlaps(parsed[other]):
            raise InputError(f"The topics {one!r} and {other!r} can be the same topic.")
    return Dialect(name, {TOPICS[topic]: template for topic, template in parsed.items()})


def _parse_template(topic: str, text: str) -> Template:
    levels = []
    for level in text.replace("{u}", "{device}").split("/"):
        placeholder = _PLACEHOLDER.fullmatch(level)
        if placeholder is None and any(c in level for c in "{}+#\0"):
            raise InputError(f"In {topic} = {text!r} a placeholder fills a whole level, and no wildcard stands.")
        if placeholder is not None and placeholder[1] not in _PLACEHOLDERS:
            raise InputError(f"{{{placeholder[1]}}} is no placeholder; known are {', '.join(sorted(_PLACEHOLDERS))}.")
        levels.append((True, placeholder[1]) if placeholder else (False, level))
    if (True, "device") not in levels:
        raise InputError(f"{topic} = {text!r} does not name {{device}}.")
    return Template(tuple(levels))
