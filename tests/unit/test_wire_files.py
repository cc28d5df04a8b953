"""The files of tests/wire as such, and that the bytes which they don't expect are told from those they do."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final

import pytest

from ota_hook.dialect import BUILT_IN_DIALECTS
from tests.e2e.conversation import PAYLOAD_KEYS, Conversation, Values, load_conversations, pair_up

CONVERSATIONS: Final = load_conversations()
FILE_KEYS: Final = {"title", "settings", "client_ids", "given", "steps"}
GIVEN_KEYS: Final = {"device_types", "rules", "firmware", "devices"}
SAID_KEYS: Final = {"what", "from", "topic", "qos", "goes_on", "arrives", "counted", "changes_nothing", "then"}
PUSHED_KEYS: Final = {"what", "push", "arrives"}
ARRIVAL_KEYS: Final = {"topic", "qos"}

COMMAND: Final = {"topic": "t", "json": {"command": {"name": "升级", "id": "{{id}}"}, "id": "{{id}}"}}


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.name)
def test_a_file_holds_only_what_its_readme_explains(conversation: Conversation) -> None:
    assert conversation.document.keys() <= FILE_KEYS
    assert conversation.given.keys() <= GIVEN_KEYS
    for step in conversation.steps:
        payload = PAYLOAD_KEYS & step.keys()
        assert len(payload) == ("push" not in step), step["what"]
        assert step.keys() - payload <= (PUSHED_KEYS if "push" in step else SAID_KEYS)
        for arrival in step.get("arrives", []):
            assert len(PAYLOAD_KEYS & arrival.keys()) == 1
            assert arrival.keys() - PAYLOAD_KEYS <= ARRIVAL_KEYS


def test_no_two_files_share_a_device_type_or_a_device() -> None:
    for key in ("device_types", "devices"):
        names = Counter(name for conversation in CONVERSATIONS for name in conversation.given.get(key, {}))
        assert [name for name, count in names.items() if count > 1] == []


def test_every_topic_of_the_protocol_is_in_some_file() -> None:
    said = {topic for conversation in CONVERSATIONS for topic in topics_of(conversation)}
    assert {
        name for name in BUILT_IN_DIALECTS["eztcloud"] if not any(topic.startswith(f"{name}/") for topic in said)
    } == set()


def topics_of(conversation: Conversation) -> list[str]:
    return [*(step["topic"] for step in conversation.steps if "topic" in step), *conversation.topics_of_arrivals]


def matched(expected: dict[str, Any], payload: bytes, **bound: int) -> dict[tuple[str, str], int] | None:
    known = {("id" if name.startswith("id") else "ts", name[3:]): value for name, value in bound.items()}
    return pair_up([expected], [("t", 1, payload)], Values({"new": "http://h/f.bin"}, known))


def test_json_is_compact_in_its_order_and_unescaped() -> None:
    assert matched(COMMAND, '{"command":{"name":"升级","id":7},"id":7}'.encode()) == {("id", ""): 7}


@pytest.mark.parametrize(
    "payload",
    [
        '{"command":{"name":"升级","id":7},"id":8}',
        '{"command":{"name":"升级","id":7}, "id":7}',
        '{"id":7,"command":{"name":"升级","id":7}}',
        '{"command":{"name":"\\u5347\\u7ea7","id":7},"id":7}',
        '{"command":{"name":"升级","id":"7"},"id":"7"}',
        '{"command":{"name":"升级","id":0},"id":0}',
        '{"command":{"name":"升级","id":07},"id":07}',
        '{"command":{"name":"升级","id":9007199254740992},"id":9007199254740992}',
        '{"command":{"name":"升级","id":7},"id":7}\n',
    ],
)
def test_other_bytes_do_not_match(payload: str) -> None:
    assert matched(COMMAND, payload.encode()) is None


def test_a_placeholder_is_the_same_throughout_and_no_two_ids_are_alike() -> None:
    other = {"topic": "t", "json": {"id": "{{id other}}"}}
    assert matched(other, b'{"id":8}', id=7) == {("id", ""): 7, ("id", "other"): 8}
    assert matched(other, b'{"id":7}', id=7) is None
    assert matched({"topic": "t", "text": "id {{id}}"}, b"id 8", id=7) is None


def test_a_time_is_now() -> None:
    expected, now_ms = {"topic": "t", "json": {"ts": "{{ts}}"}}, time.time_ns() // 1_000_000
    assert matched(expected, b'{"ts":%d}' % now_ms) == {("ts", ""): now_ms}
    assert matched(expected, b'{"ts":%d}' % (now_ms - 60_000)) is None
    assert matched(expected, b'{"ts":%d}' % (now_ms // 1000)) is None


def test_bytes_are_written_as_digits_with_spaces_where_they_please() -> None:
    expected = {"topic": "t", "hex": ["{{id x:u64}} 00 01", {"repeat": " ff", "times": 2}]}
    came = (7).to_bytes(8, "big") + b"\x00\x01\xff\xff"
    assert matched(expected, came) == {("id", "x"): 7}
    assert matched(expected, came + b"\xff") is None
    assert Values(bound={("id", "x"): 7}).written(expected) == came


def test_addresses_of_packages_are_filled_in() -> None:
    expected = {"topic": "t", "json": {"url": "{{url new}}"}}
    assert matched(expected, b'{"url":"http://h/f.bin"}') == {}
    assert matched(expected, b'{"url":"http://h/fxbin"}') is None


def test_what_came_is_paired_in_any_order_and_nothing_is_left_over() -> None:
    values = Values()
    expected: list[dict[str, Any]] = [
        {"topic": "t", "json": {"id": "{{id 1}}"}},
        {"topic": "t", "qos": 1, "json": {"id": "{{id 2}}"}},
    ]
    assert pair_up(expected, [("t", 1, b'{"id":5}'), ("t", 0, b'{"id":6}')], values) == {("id", "2"): 5, ("id", "1"): 6}
    assert pair_up(expected, [("t", 0, b'{"id":5}'), ("t", 0, b'{"id":6}')], values) is None
    assert pair_up(expected, [("t", 1, b'{"id":5}')], values) is None
    assert pair_up(expected, [("t", 1, b'{"id":5}'), ("t", 0, b'{"id":6}'), ("t", 0, b"x")], values) is None
    assert pair_up(expected, [("t", 1, b'{"id":5}'), ("u", 0, b'{"id":6}')], values) is None
