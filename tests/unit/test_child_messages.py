"""Payloads of gateways and their children: WIRE.md's text, held byte for byte."""

from __future__ import annotations

import json

import pytest

from ota_hook.child_messages import (
    ChildName,
    child_attributes_response,
    child_command,
    child_response,
    parse_child_connections,
    parse_child_events,
    parse_child_questions,
    parse_child_replies,
    parse_children,
    read_child_command,
)
from ota_hook.messages import BadMessage, no_upgrade_command, received_response
from ota_hook.model import Family

VERSIONS = frozenset({"version", "mcu_version"})
A, A_1 = ("ADDR1",), ("ADDR1", "ADDR1_1")


def dumped(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def test_a_map_of_one_level_says_what_each_child_runs() -> None:
    report = parse_children(
        b'{"ADDR1": {"version": "1.0.0", "temperature": 20}, "ADDR2": {"mcu_version": 1.10}, "ADDR3": {}}',
        Family.GATEWAY,
        VERSIONS,
    )
    assert report.children == {A: {"version": "1.0.0"}, ("ADDR2",): {"mcu_version": "1.10"}}
    assert (set(report.listed), report.bad_values, report.bad_children) == (set(), 0, 0)


def test_a_tree_and_a_flat_list_say_the_same() -> None:
    tree = (
        b'{"ADDR1": {"attributes": {"version": "1.0.0"}, "ts": 12312314212,'
        b' "sub": {"ADDR1_1": {"attributes": {"version": "2.0"}, "sub": {}}}}}'
    )
    flat = (
        b'[{"device": ["ADDR1"], "attributes": {"version": "1.0.0"}},'
        b' {"device": ["ADDR1", "ADDR1_1"], "ts": 12312314211, "attributes": {"version": "2.0"}}]'
    )
    for payload in (tree, flat):
        report = parse_children(payload, Family.SUB, VERSIONS)
        assert report.children == {A: {"version": "1.0.0"}, A_1: {"version": "2.0"}}
        assert set(report.listed) == {A, A_1}


def test_a_flat_list_may_name_a_child_of_one_level_by_a_text() -> None:
    flat = (
        b'[{"device": "ADDR1", "attributes": {"version": "3"}},'
        b' {"device": ["ADDR1", "ADDR1_1"], "attributes": {"version": "4"}},'
        b' {"device": ["ADDR2"]}, {"device": "ADDR2", "attributes": {"version": "5"}}]'
    )
    report = parse_children(flat, Family.GATEWAY, VERSIONS)
    assert report.children == {A: {"version": "3"}, A_1: {"version": "4"}, ("ADDR2",): {"version": "5"}}
    assert set(report.listed) == {A_1}


@pytest.mark.parametrize("node", [{}, {"attributes": {}}, {"attributes": None, "sub": None}, {"ts": 1}, {"sub": {}}])
def test_attributes_and_sub_may_be_missing_or_empty(node: dict[str, object]) -> None:
    report = parse_children(dumped({"ADDR1": node}), Family.SUB, VERSIONS)
    assert (report.children, report.bad_children) == ({}, 0)


@pytest.mark.parametrize("spelled", ["7", "1.10", "0", "100"])
def test_a_number_is_the_text_that_the_gateway_sent(spelled: str) -> None:
    payloads = {
        Family.GATEWAY: f'{{"A": {{"version": {spelled}}}}}',
        Family.SUB: f'{{"A": {{"attributes": {{"version": {spelled}}}}}}}',
    }
    for family, payload in payloads.items():
        assert parse_children(payload.encode(), family, VERSIONS).children == {("A",): {"version": spelled}}


@pytest.mark.parametrize("value", ["true", "1e9", "{}", '"no digit"', "[]", "-1"])
def test_a_bad_version_is_bad_for_its_child_and_key_alone(value: str) -> None:
    payload = f'{{"A": {{"version": {value}, "mcu_version": "1"}}, "B": {{"version": "2"}}}}'.encode()
    report = parse_children(payload, Family.GATEWAY, VERSIONS)
    assert report.children == {("A",): {"mcu_version": "1"}, ("B",): {"version": "2"}}
    assert report.bad_values == 1


@pytest.mark.parametrize(
    ("payload", "family"),
    [
        ({"A": 5, "B": {"version": "2"}}, Family.GATEWAY),
        ({"": {"version": "1"}, "B": {"version": "2"}}, Family.GATEWAY),
        ({"a\nb": {"version": "1"}, "B": {"version": "2"}}, Family.GATEWAY),
        ({"A": "x", "B": {"attributes": {"version": "2"}}}, Family.SUB),
        ({"A": {"attributes": []}, "B": {"attributes": {"version": "2"}}}, Family.SUB),
        ({"A": {"sub": [1]}, "B": {"attributes": {"version": "2"}}}, Family.SUB),
        ([5, {"device": "B", "attributes": {"version": "2"}}], Family.SUB),
        ([{"device": 5, "attributes": {}}, {"device": ["B"], "attributes": {"version": "2"}}], Family.SUB),
        ([{"device": []}, {"device": ["B"], "attributes": {"version": "2"}}], Family.SUB),
    ],
)
def test_a_child_that_cant_be_used_is_counted_and_the_others_count(payload: object, family: Family) -> None:
    report = parse_children(dumped(payload), family, VERSIONS)
    assert report.children == {("B",): {"version": "2"}}
    assert report.bad_children == 1


def nested(depth: int) -> dict[str, object]:
    node: dict[str, object] = {"attributes": {"version": "1"}}
    for _ in range(depth - 1):
        node = {"sub": {"A": node}}
    return {"A": node}


def test_eight_levels_are_read_and_one_more_spoils_the_message() -> None:
    assert parse_children(dumped(nested(8)), Family.SUB, VERSIONS).children == {("A",) * 8: {"version": "1"}}
    flat = [{"device": ["A"] * 9, "attributes": {"version": "1"}}]
    for payload in (dumped(nested(9)), dumped(flat)):
        with pytest.raises(BadMessage, match="too_deep"):
            parse_children(payload, Family.SUB, VERSIONS)


def test_a_thousand_children_are_read_and_one_more_spoils_the_message() -> None:
    children = {f"A{number}": {"version": "1"} for number in range(1_000)}
    assert len(parse_children(dumped(children), Family.GATEWAY, VERSIONS).children) == 1_000
    for payload in (
        dumped({**children, "B": {}}),
        dumped([{"device": name, "attributes": {}} for name in [*children, "B"]]),
    ):
        with pytest.raises(BadMessage, match="too_many"):
            parse_children(payload, Family.GATEWAY, VERSIONS)


@pytest.mark.parametrize("payload", [b"5", b'"A"', b"null", b"{", b"\xff", b"[" * 20_000, b'{"A":' * 20_000])
def test_what_is_no_report_is_a_bad_message(payload: bytes) -> None:
    for family in (Family.GATEWAY, Family.SUB):
        with pytest.raises(BadMessage):
            parse_children(payload, family, VERSIONS)


def test_an_event_names_its_child_by_a_text_or_a_list() -> None:
    (event,) = parse_child_events(b'{"device": "ADDR1", "event": {"method": "otaCheck", "params": {}, "id": 1000}}')
    assert (event.child, event.event.name) == (ChildName(A, as_list=False), "otaCheck")
    (event,) = parse_child_events(b'{"device": ["ADDR1", "ADDR1_1"], "event": {"method": "otaCheck"}}')
    assert event.child == ChildName(A_1, as_list=True)
    many = parse_child_events(
        b'[{"device": "A", "event": {"method": "x"}}, {"device": ["B"], "event": {"method": "y"}}]'
    )
    assert [(event.child.path, event.event.name) for event in many] == [(("A",), "x"), (("B",), "y")]


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b'{"event": {"method": "otaCheck"}}',
        b'{"device": "", "event": {"method": "otaCheck"}}',
        b'{"device": [], "event": {"method": "otaCheck"}}',
        b'{"device": ["A", 5], "event": {"method": "otaCheck"}}',
        b'{"device": 7, "event": {"method": "otaCheck"}}',
        b'{"device": "A"}',
        b'{"device": "A", "event": []}',
        b'{"device": "A", "event": {"method": 5}}',
        b'{"device": "A", "event": {"method": "otaCheck", "id": true}}',
        b'[{"device": "A", "event": {"method": "otaCheck"}}, 5]',
        b'[{"device": "A", "event": {"method": "otaCheck"}}, {"device": "a\\u0000b", "event": {"method": "x"}}]',
    ],
)
def test_an_event_that_cant_be_used_spoils_the_message(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_child_events(payload)


@pytest.mark.parametrize(
    "payload",
    [
        {"device": "ADDR1", "command": {"params": {"ota_result": 0}, "id": 98518}, "id": 98518},
        {"device": "ADDR1", "command": {"params": {"ota_result": 0}, "id": 98518}},
        {"device": "ADDR1", "command": {"params": {"ota_result": 0}}, "id": 98518},
        {"device": ["ADDR1"], "method": "otaUpgrade", "params": {"ota_result": 0}, "id": 98518},
    ],
)
def test_a_reply_may_carry_its_id_in_either_place(payload: dict[str, object]) -> None:
    (reply,) = parse_child_replies(dumped(payload))
    assert (reply.child.path, reply.document["id"]) == (A, 98518)
    assert reply.document["params"] == {"ota_result": 0}


def test_a_child_comes_with_or_without_its_product() -> None:
    (came,) = parse_child_connections(b'{"device": "ADDR1", "product": "meter"}')
    assert (came.child.path, came.product) == (A, "meter")
    for payload in (
        b'{"device": ["ADDR1"]}',
        b'{"device": "ADDR1", "product": null}',
        b'{"device":"ADDR1","product":""}',
    ):
        assert parse_child_connections(payload)[0].product is None
    with pytest.raises(BadMessage, match="bad_product"):
        parse_child_connections(b'{"device": "ADDR1", "product": 5}')


def test_a_question_names_keys_or_asks_for_all() -> None:
    (question,) = parse_child_questions(b'{"device": "ADDR1", "get": {"keys": ["version"]}}')
    assert (question.child.path, question.keys) == (A, frozenset({"version"}))
    assert parse_child_questions(b'{"device": "ADDR1", "get": {"keys": []}}')[0].keys is None
    for payload in (b'{"device": "A"}', b'{"device": "A", "get": {}}', b'{"device": "A", "get": {"keys": [5]}}'):
        with pytest.raises(BadMessage, match="bad_keys"):
            parse_child_questions(payload)


def test_a_command_for_a_child_is_answered_in_kind_with_the_id_in_both_places() -> None:
    command = no_upgrade_command("main", command_id=98518)
    inner = '{"method":"otaUpgrade","params":{"module":"main","upgrade":false},"command_name":"OTA升级","id":98518}'
    one = child_command(ChildName(A, as_list=False), command, command_id=98518)
    assert one.decode() == f'{{"device":"ADDR1","command":{inner},"id":98518}}'
    many = child_command(ChildName(A_1, as_list=True), command, command_id=98518)
    assert many.decode() == f'{{"device":["ADDR1","ADDR1_1"],"command":{inner},"id":98518}}'
    sent = read_child_command(json.loads(many))
    assert sent is not None
    assert (sent[0], sent[1]["id"]) == (ChildName(A_1, as_list=True), 98518)


def test_responses_for_children_name_them_as_they_were_named() -> None:
    assert child_response(ChildName(A, as_list=False), received_response(at_ms=1750234507181)) == (
        b'{"device":"ADDR1","error_code":0,"error_msg":"OK","ts":1750234507181}'
    )
    assert child_attributes_response(ChildName(A_1, as_list=True), {"version": "1.0.0"}, at_ms=5) == (
        b'{"device":["ADDR1","ADDR1_1"],"error_code":0,"error_msg":"","ts":5,"attributes":{"version":"1.0.0"}}'
    )


@pytest.mark.parametrize("document", [{}, {"command": 5}, {"device": "A"}, {"device": 5, "command": {}}])
def test_what_we_do_not_send_is_no_command(document: dict[str, object]) -> None:
    assert read_child_command(document) is None
