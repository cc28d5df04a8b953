"""Whatever a gateway says of its children, in any of the forms."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ota_hook.child_messages import (
    parse_child_connections,
    parse_child_events,
    parse_child_questions,
    parse_child_replies,
    parse_children,
)
from ota_hook.exhook._codec import IGNORE
from ota_hook.identifiers import child_identifier, gateway_of, is_address, is_identifier, path_of
from ota_hook.messages import BadMessage
from ota_hook.model import DeviceState, DeviceType, Family, ReportedVersion
from tests.doubles import make_snapshot
from tests.unit.test_provider import make_hook

VERSIONS = ("version", "mcu")

addresses = st.text(min_size=1, max_size=20) | st.sampled_from(["A", "B", "a/b", "%2F", "地址", "", " a"])
values: st.SearchStrategy[Any] = st.sampled_from(["1.0", "2", 7, 1.5, None, True, "none", {}, [], "v" * 200]) | st.text(
    max_size=5
)
attributes = st.dictionaries(st.sampled_from([*VERSIONS, "temperature"]), values, max_size=3)
trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(addresses, st.fixed_dictionaries({}, optional={"attributes": attributes}), max_size=3),
    lambda inner: st.dictionaries(
        addresses,
        st.fixed_dictionaries({}, optional={"attributes": attributes, "ts": st.integers(), "sub": inner}),
        max_size=3,
    ),
    max_leaves=10,
)


def flatten(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The flat list of the same children."""
    flat = []
    for address, node in tree.items():
        path = (*above, address)
        flat.append({"device": list(path)} | ({"attributes": node["attributes"]} if "attributes" in node else {}))
        flat += flatten(node.get("sub", {}), path)
    return flat


@given(trees)
def test_any_tree_says_the_same_as_its_flat_list(tree: dict[str, Any]) -> None:
    results: list[object] = []
    for document in (tree, flatten(tree)):
        try:
            report = parse_children(json.dumps(document).encode(), Family.SUB, VERSIONS)
        except BadMessage as exc:
            results.append(exc.reason)
            continue
        assert all(all(map(is_address, path)) for path in report.children)
        results.append(report.children)
    assert results[0] == results[1]


async def state_after(topic: str, document: object, known: set[str]) -> dict[str, dict[str, str]]:
    """What the children of d1 run behind a message, of which they are all registered."""
    hook = make_hook(make_snapshot(DeviceType(key="meter", name="Meter", version_attributes=VERSIONS)))
    for identifier in known:
        hook.devices.devices[identifier] = DeviceState(identifier, "meter", {"version": ReportedVersion("0.1", 1)})
    assert await hook.publish(f"{topic}/d1", json.dumps(document), at=9) == IGNORE
    return {
        name: {attribute: version.text for attribute, version in hook.devices.devices[name].versions.items()}
        for name in known
    }


@given(trees)
def test_any_tree_leaves_the_same_state_as_its_flat_list(tree: dict[str, Any]) -> None:
    flat = flatten(tree)
    named = {child_identifier("d1", entry["device"]) for entry in flat}
    known = {identifier for identifier in named if identifier is not None}
    states = [asyncio.run(state_after("sub_attributes", document, known)) for document in (tree, flat)]
    assert states[0] == states[1]


@given(st.dictionaries(addresses, attributes, max_size=5))
def test_any_map_of_one_level_says_the_same_as_its_tree_and_its_flat_list(children: dict[str, Any]) -> None:
    tree = {address: {"attributes": said} for address, said in children.items()}
    flat = [{"device": address, "attributes": said} for address, said in children.items()]
    said = [
        parse_children(json.dumps(document).encode(), family, VERSIONS).children
        for document, family in ((children, Family.GATEWAY), (tree, Family.SUB), (flat, Family.SUB))
    ]
    assert said[0] == said[1] == said[2]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["device", "event", "method", "command", "id", "get", "keys", "product", "attributes", "sub"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(json_values | st.lists(json_values, max_size=3))
def test_nothing_a_gateway_says_raises_anything_but_a_bad_message(document: object) -> None:
    payload = json.dumps(document).encode()
    for read in (parse_child_events, parse_child_replies, parse_child_connections, parse_child_questions):
        try:
            read(payload)
        except BadMessage:
            continue
    for family in (Family.GATEWAY, Family.SUB):
        try:
            parse_children(payload, family, VERSIONS)
        except BadMessage:
            continue


@given(st.lists(addresses, max_size=10), st.lists(addresses, max_size=10))
def test_a_childs_identifier_says_its_path_and_no_other(one: list[str], other: list[str]) -> None:
    identifier = child_identifier("GW", one)
    if identifier is None:
        return
    assert is_identifier(identifier)
    assert (gateway_of(identifier), path_of(identifier)) == ("GW", tuple(one))
    assert (child_identifier("GW", other) == identifier) == (one == other)


@given(st.text(max_size=40) | st.text("GW/%2F5 a", max_size=12))
def test_an_identifier_is_spelled_in_one_way(text: str) -> None:
    if is_identifier(text) and "/" in text:
        assert child_identifier(gateway_of(text), path_of(text)) == text
