"""What gateways say of their children, and the cloud to them: payloads on the wire, meanings in the code.

Pure. `device` names a child, as a text (one address) or as a list of addresses from the gateway down, and is answered
in kind. The forms of reports are equal: a map and a tree say the same as the flat list of the same children. A child
that can't be used is counted, the others count; what is out of bounds spoils the whole message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, TypeVar

import orjson

from ota_hook.identifiers import DEPTH_MAX, is_address, join_identifier
from ota_hook.messages import (
    ELEMENTS_MAX,
    BadMessage,
    Event,
    NumberText,
    parse_exactly,
    parse_json,
    read_event,
    read_keys,
    read_list,
    read_version,
)
from ota_hook.model import ChildForm, Family

Path = tuple[str, ...]
T = TypeVar("T")


class ChildName(NamedTuple):
    """A child as its gateway named it."""

    path: Path
    as_list: bool

    @property
    def shown(self) -> str | Path:
        """As it was named."""
        return self.path if self.as_list else self.path[0]


class ChildrenReport(NamedTuple):
    """The usable versions of each child, how many values of version attributes were bad, and how many children.

    `listed` are those that were named by a list, the others by a text.
    """

    children: Mapping[Path, Mapping[str, str]]
    listed: AbstractSet[Path]
    bad_values: int
    bad_children: int


class ChildEvent(NamedTuple):
    """One event of a child."""

    child: ChildName
    event: Event


class ChildReply(NamedTuple):
    """A child's reply to a command, its `id` taken from either place."""

    child: ChildName
    document: Mapping[str, Any]


class ChildConnection(NamedTuple):
    """A child came, or went. `product` is the device type that it is of, where the gateway says so."""

    child: ChildName
    product: str | None


class ChildQuestion(NamedTuple):
    """A child's stored attributes are asked for; `keys` None for all."""

    child: ChildName
    keys: frozenset[str] | None


def child_of(gateway: str, child: ChildName) -> str:
    """The identifier of a child that a gateway named. BadMessage where its addresses are too long together."""
    identifier = join_identifier(gateway, child.path)
    if identifier is None:
        raise BadMessage("bad_device")
    return identifier


def form_of(family: Family, child: ChildName) -> ChildForm:
    """How a gateway spoke of a child, on a topic of that family."""
    return ChildForm(family, child.as_list)


# ---- gateway to cloud: attributes


class _SpellingNeeded(Exception):  # noqa: N818 - never leaves this module
    """A version is a number, and its spelling counts, which the quick parser does not keep."""


def parse_children(payload: bytes, family: Family, version_attributes: Collection[str]) -> ChildrenReport:
    """The versions in a report of a gateway: a map of one level (`gateway_*`), a tree (`sub_*`), or a flat list.

    Other attributes are not looked at. More than 1,000 children, or more than 8 levels, are BadMessage.
    """
    try:
        return _Reading(version_attributes, is_exact=False).read(parse_json(payload), family)
    except _SpellingNeeded:
        return _Reading(version_attributes, is_exact=True).read(parse_exactly(payload), family)


class _Reading:
    """One report while it is read."""

    def __init__(self, version_attributes: Collection[str], *, is_exact: bool) -> None:
        self._version_attributes = version_attributes
        self._is_exact = is_exact
        self._children: dict[Path, dict[str, str]] = {}
        self._listed: set[Path] = set()
        self._seen = 0
        self._bad_values = 0
        self._bad_children = 0

    def read(self, document: object, family: Family) -> ChildrenReport:
        listed: AbstractSet[Path] = self._listed
        if isinstance(document, list):
            for entry in document:
                self._read_entry(entry)
        elif not isinstance(document, dict):
            raise BadMessage("not_an_object")
        elif family is Family.SUB:
            self._read_tree((), document)
            listed = self._children.keys()
        else:
            for address, attributes in document.items():
                self._take((address,), attributes)
        return ChildrenReport(self._children, listed, self._bad_values, self._bad_children)

    def _read_entry(self, entry: object) -> None:
        """`{"device": …, "attributes": {…}}`; `ts` says nothing here."""
        if not isinstance(entry, dict):
            self._count_bad()
            return
        try:
            path, as_list = read_name(entry.get("device"))
        except BadMessage as exc:
            if exc.reason == "too_deep":
                raise
            self._count_bad()
            return
        if as_list:
            self._listed.add(path)
        else:
            self._listed.discard(path)
        self._take(path, entry.get("attributes"), may_be_missing=True)

    def _read_tree(self, above: Path, nodes: Mapping[str, Any]) -> None:
        """`{ADDRESS: {"attributes": {…}, "sub": {…}}}`. As deep as addresses may be, so the recursion is bounded."""
        for address, node in nodes.items():
            path = (*above, address)
            if len(path) > DEPTH_MAX:
                raise BadMessage("too_deep")
            if not isinstance(node, dict):
                self._count_bad()
                continue
            self._take(path, node.get("attributes"), may_be_missing=True)
            below = node.get("sub")
            if isinstance(below, dict):
                self._read_tree(path, below)
            elif below:
                self._count_bad()

    def _take(self, path: Path, attributes: object, *, may_be_missing: bool = False) -> None:
        self._count_one()
        if attributes is None and may_be_missing:
            return
        if not isinstance(attributes, dict) or not all(map(is_address, path)):
            self._bad_children += 1
            return
        for attribute in self._version_attributes:
            value = attributes.get(attribute)
            if value is None:
                continue
            if type(value) in {int, float} and not self._is_exact:
                raise _SpellingNeeded
            text = read_version(value)
            if text is None:
                self._bad_values += 1
            else:
                self._children.setdefault(path, {})[attribute] = text

    def _count_bad(self) -> None:
        self._count_one()
        self._bad_children += 1

    def _count_one(self) -> None:
        self._seen += 1
        if self._seen > ELEMENTS_MAX:
            raise BadMessage("too_many")


# ---- gateway to cloud: the rest


def read_name(device: object) -> ChildName:
    """The child that `device` names. BadMessage for what names none."""
    if type(device) is str and is_address(device):  # a NumberText is none
        return ChildName((device,), as_list=False)
    if isinstance(device, list) and device and all(type(address) is str for address in device):
        if len(device) > DEPTH_MAX:
            raise BadMessage("too_deep")
        if all(map(is_address, device)):
            return ChildName(tuple(device), as_list=True)
    raise BadMessage("bad_device")


def parse_child_events(payload: bytes) -> tuple[ChildEvent, ...]:
    """`{"device": …, "event": {"method": …}}`, or a list of up to 1,000. One that can't be used spoils all."""
    return _read_each(payload, _read_event)


def parse_child_replies(payload: bytes) -> tuple[ChildReply, ...]:
    """`{"device": …, "command": {…}, "id": …}`, or a list of them; the id may stand in either place, or in both."""
    return _read_each(payload, _read_reply)


def parse_child_connections(payload: bytes) -> tuple[ChildConnection, ...]:
    """`{"device": …, "product": TYPE}`, or a list of them; the product may be missing."""
    return _read_each(payload, _read_connection)


def parse_child_questions(payload: bytes) -> tuple[ChildQuestion, ...]:
    """`{"device": …, "get": {"keys": […]}}`, or a list of them."""
    return _read_each(payload, lambda child, document: ChildQuestion(child, read_keys(document.get("get"))))


def _read_each(payload: bytes, read: Callable[[ChildName, Mapping[str, Any]], T]) -> tuple[T, ...]:
    document = parse_json(payload)
    if type(document) is dict:  # nearly all of them
        return (read(read_name(document.get("device")), document),)
    return tuple(_read_one(one, read) for one in read_list(document))


def _read_one(document: object, read: Callable[[ChildName, Mapping[str, Any]], T]) -> T:
    if not isinstance(document, dict):
        raise BadMessage("not_an_object")
    return read(read_name(document.get("device")), document)


def _read_event(child: ChildName, document: Mapping[str, Any]) -> ChildEvent:
    return ChildEvent(child, read_event(document.get("event")))


def _read_reply(child: ChildName, document: Mapping[str, Any]) -> ChildReply:
    inner = document.get("command")
    reply = inner if isinstance(inner, dict) else document
    return ChildReply(child, reply if reply.get("id") is not None else {**reply, "id": document.get("id")})


def _read_connection(child: ChildName, document: Mapping[str, Any]) -> ChildConnection:
    product = document.get("product")
    if product is not None and (not isinstance(product, str) or isinstance(product, NumberText)):
        raise BadMessage("bad_product")
    return ChildConnection(child, product or None)


def read_child_command(document: Mapping[str, Any]) -> tuple[ChildName, Mapping[str, Any]] | None:
    """The child and the command in what was sent to a gateway; None for what we don't send."""
    command = document.get("command")
    try:
        return (read_name(document.get("device")), command) if isinstance(command, dict) else None
    except BadMessage:
        return None


# ---- cloud to gateway


def child_command(child: ChildName, command: bytes, *, command_id: int) -> bytes:
    """A device's command as its gateway gets it: the id stands inside and outside, as both are in use."""
    return b'{"device":%b,"command":%b,"id":%d}' % (orjson.dumps(child.shown), command, command_id)


def child_response(child: ChildName, response: bytes) -> bytes:
    """A response to a child's event carries the child as well, as the event did."""
    return b'{"device":%b,%b' % (orjson.dumps(child.shown), response[1:])


def child_attributes_response(child: ChildName, versions: Mapping[str, str], *, at_ms: int) -> bytes:
    """The stored version attributes of a child."""
    return orjson.dumps(
        {"device": child.shown, "error_code": 0, "error_msg": "", "ts": at_ms, "attributes": dict(versions)}
    )
