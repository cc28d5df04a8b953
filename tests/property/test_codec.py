"""The codec equals the generated classes: the same requests refused, the same values read, the same bytes written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_hook.exhook._codec import read_publish, write_rewrite
from ota_hook.exhook.exhook_pb2 import Message, MessagePublishRequest, ValuedResponse
from tests.publish_requests import MESSAGE, META, V2_CHECK, V3_CHECK, fields_by_generated_class, fields_of

T = TypeVar("T")

VARINT, FIXED64, LENGTH_DELIMITED, START_GROUP, END_GROUP, FIXED32 = range(6)


def mostly(usual: st.SearchStrategy[T], rare: st.SearchStrategy[T], *, one_in: int) -> st.SearchStrategy[T]:
    return st.sampled_from([usual] * (one_in - 1) + [rare]).flatmap(lambda chosen: chosen)


UINT64 = st.integers(0, 2**64 - 1)
PLAIN_TEXT = st.sampled_from(
    ["", "d1", "username", "event_report/d1", "emqx@127.0.0.1", "seven77", "eight888", "a" * 130]
)
TEXT = mostly(
    PLAIN_TEXT | st.text(st.characters(max_codepoint=127), max_size=20),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    one_in=12,
)


def spell_varint(value: int, *, padding: int = 0) -> bytes:
    """`padding`: groups of seven zero bits more than needed."""
    low, groups = value, []
    while low >= 0x80:
        groups.append(low & 0x7F | 0x80)
        low >>= 7
    groups.append(low)
    for _ in range(padding):
        groups[-1] |= 0x80
        groups.append(0)
    return bytes(groups)


def spell_field(number: int, body: bytes) -> bytes:
    return spell_varint(number << 3 | LENGTH_DELIMITED) + spell_varint(len(body)) + body


PADDING = mostly(st.just(0), st.integers(1, 10), one_in=8)
SPELLED_NUMBERS = st.builds(
    lambda value, padding: spell_varint(value, padding=padding),
    st.sampled_from([0, 1, 2, 3, 127, 128, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]) | UINT64,
    PADDING,
)
BAD_UTF8_TEXTS = [
    *(
        b"\xff",
        b"\x80",
        b"d\xc3",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"eight888\xf0\x9f\x98",
    ),
    # In each place of a word of eight bytes, and behind one.
    *(b"a" * at + b"\xff" + b"a" * (8 - at) for at in range(9)),
]
BAD_UTF8 = st.sampled_from(BAD_UTF8_TEXTS)
STRINGS = mostly(TEXT.map(str.encode), BAD_UTF8, one_in=40)


def records_of(known: dict[int, st.SearchStrategy[bytes]]) -> st.SearchStrategy[bytes]:
    """Fields one behind the other. `known`: by number, what stands between its length and the next field, or for
    numbers of scalars (SPELLED_NUMBERS) behind the tag."""

    def spell(number: int, body: bytes) -> bytes:
        if known[number] is SPELLED_NUMBERS:
            return spell_varint(number << 3 | VARINT) + body
        return spell_field(number, body)

    ordinary = st.one_of([st.builds(spell, st.just(number), body) for number, body in known.items()])
    return st.lists(mostly(ordinary, padded_records() | strange_records(), one_in=30), max_size=9).map(b"".join)


def padded_records() -> st.SearchStrategy[bytes]:
    """Lengths spelled with more bytes than they need, tags likewise."""
    return st.builds(
        lambda number, body, more_tag, more_length: (
            spell_varint(number << 3 | LENGTH_DELIMITED, padding=more_tag)
            + spell_varint(len(body), padding=more_length)
            + body
        ),
        st.integers(1, 8),
        STRINGS,
        PADDING,
        PADDING,
    )


def strange_records() -> st.SearchStrategy[bytes]:
    """Any field number in any wire type, whole or not, and groups."""
    numbers = st.integers(0, 9) | st.sampled_from([15, 16, 2047, 2**28, 2**29 - 1, 2**29, 2**32])
    tags = st.builds(lambda number, kind: spell_varint(number << 3 | kind), numbers, st.integers(0, 7))
    bodies = st.one_of(SPELLED_NUMBERS, st.binary(max_size=9), STRINGS.map(lambda text: spell_field(1, text)[1:]))
    single = st.builds(lambda tag, body: tag + body, tags, bodies)
    groups = st.builds(
        lambda number, other, body: (
            spell_varint(number << 3 | START_GROUP) + body + spell_varint(other << 3 | END_GROUP)
        ),
        st.integers(1, 9),
        st.integers(1, 9),
        single | st.just(b""),
    )
    matched = st.builds(
        lambda number, depth, body: (
            spell_varint(number << 3 | START_GROUP) * depth + body + spell_varint(number << 3 | END_GROUP) * depth
        ),
        st.integers(1, 9),
        st.sampled_from([1, 2, 97, 98, 99, 100, 101, 120]),
        st.builds(spell_field, st.integers(1, 9), STRINGS),
    )
    return st.one_of(single, groups, matched)


HEADERS = records_of({1: st.just(b"username") | STRINGS, 2: STRINGS})
META_BODIES = records_of({1: STRINGS, 2: STRINGS, 3: STRINGS, 4: STRINGS})
PROPERTIES = records_of({1: STRINGS, 2: STRINGS})
MESSAGES = records_of(
    {
        1: STRINGS,
        2: STRINGS,
        3: SPELLED_NUMBERS,
        4: STRINGS,
        5: STRINGS,
        6: st.binary(max_size=300),
        7: SPELLED_NUMBERS,
        8: HEADERS,
    }
)
REQUESTS = records_of({1: MESSAGES, 2: META_BODIES, 3: PROPERTIES, 4: PROPERTIES})

TEXTS = [b"", b"d1", b"username", "é".encode(), "\U0010ffff".encode(), *BAD_UTF8_TEXTS]
NUMBERS = [0, 1, 127, 128, 2**31, 2**32 - 1, 2**32 + 2, 2**63, 2**64 - 1]


def odd_records() -> Iterator[bytes]:
    """One field each: every kind of text, key, spelling and wire type in fields known and not."""
    for number, text in product(range(1, 17), TEXTS):
        yield spell_field(number, text)
    for key, value in product([b"", b"username", b"usernamf", b"usernam", b"protocol", b"key"], TEXTS):
        yield spell_field(8, spell_field(1, key) + spell_field(2, value))
        yield spell_field(8, spell_field(2, value) + spell_field(1, key))
        yield spell_field(8, spell_field(1, value) + spell_field(2, key))
        yield spell_field(8, spell_field(1, value) + spell_field(1, key))
        yield spell_field(8, spell_field(2, value) + spell_field(1, key) + spell_field(2, b"last"))
    for number, more_tag, more_length in product(range(1, 9), range(7), range(11)):
        tag = spell_varint(number << 3 | LENGTH_DELIMITED, padding=more_tag)
        yield tag + spell_varint(1, padding=more_length) + b"a"
        yield tag + spell_varint(2, padding=more_length) + b"a"
    for number, scalar, padding in product((1, 3, 7, 9), NUMBERS, range(12)):
        yield spell_varint(number << 3 | VARINT) + spell_varint(scalar, padding=padding)
    for number, kind in product([*range(10), 15, 16, 17, 2047, 2**28, 2**29 - 1, 2**29], range(8)):
        for body in (b"", b"\x00", b"\x01a", b"\x0a\x00", b"\x02\x0a\x05", bytes(4), bytes(8)):
            yield spell_varint(number << 3 | kind) + body
            yield spell_varint(number << 3 | kind, padding=1) + body


# Nothing else in them is odd, so nothing hides what becomes of the odd field.
PLACES: tuple[Callable[[bytes], bytes], ...] = (
    lambda odd: odd + V3_CHECK,
    lambda odd: V3_CHECK + odd,
    lambda odd: spell_field(1, odd + MESSAGE) + META,
    lambda odd: META + spell_field(1, MESSAGE + odd),
    lambda odd: V2_CHECK + spell_field(1, spell_field(8, odd + spell_field(1, b"key") + spell_field(2, b"value"))),
    lambda odd: V2_CHECK + spell_field(1, spell_field(8, spell_field(1, b"key") + odd)),
    lambda odd: spell_field(1, odd),
    lambda odd: spell_field(2, odd) + V2_CHECK,
    lambda odd: V2_CHECK + spell_field(3, odd),
    lambda odd: V2_CHECK + spell_field(4, odd + spell_field(2, b"value")),
)

SENT_BY_A_BROKER = st.builds(
    lambda message, username, meta, props: MessagePublishRequest(
        message=Message(headers={"username": username, "protocol": "mqtt"}, **message),
        meta={"node": meta, "version": "5.8.9"},
        user_props=props,
    ).SerializeToString(),
    st.fixed_dictionaries(
        {
            "node": TEXT,
            "id": TEXT,
            "qos": st.integers(0, 2**32 - 1),
            "from": TEXT,
            "topic": TEXT,
            "payload": st.binary(max_size=300),
            "timestamp": UINT64,
        }
    ),
    TEXT,
    TEXT,
    st.lists(st.fixed_dictionaries({"name": TEXT, "value": TEXT}), max_size=3),
)


@st.composite
def spoiled(draw: st.DrawFn, requests: st.SearchStrategy[bytes]) -> bytes:
    """A request with up to four bits turned, parts cut, repeated, moved or put in."""
    request = bytearray(draw(requests))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(request)))
        stop = draw(st.integers(at, min(len(request), at + 40)))
        change = draw(st.sampled_from(["turn", "turn", "set", "cut", "end", "repeat", "append", "insert"]))
        if change == "turn" and at < len(request):
            request[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "set" and at < len(request):
            request[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif change == "cut":
            del request[at:stop]
        elif change == "end":
            del request[at:]
        elif change == "repeat":
            request[at:at] = request[at:stop]
        elif change == "append":
            request += request[at:stop]
        else:
            request[at:at] = draw(st.binary(min_size=1, max_size=12))
    return bytes(request)


def assert_equal_to_the_generated_class(request: bytes) -> None:
    assert fields_of(read_publish(request)) == fields_by_generated_class(request)


@given(SENT_BY_A_BROKER)
def test_what_a_broker_sends_is_read_as_the_generated_class_reads_it(request: bytes) -> None:
    assert read_publish(request) is not None
    assert_equal_to_the_generated_class(request)


@given(REQUESTS)
def test_fields_in_any_order_number_and_spelling_are_read_as_the_generated_class_reads_them(request: bytes) -> None:
    assert_equal_to_the_generated_class(request)


@pytest.mark.parametrize("place", PLACES)
def test_one_odd_field_in_an_ordinary_request_counts_as_with_the_generated_class(
    place: Callable[[bytes], bytes],
) -> None:
    for odd in odd_records():
        assert_equal_to_the_generated_class(place(odd))


@given(st.lists(MESSAGES, min_size=2, max_size=3))
def test_a_message_in_several_parts_is_merged_as_the_generated_class_merges_it(parts: list[bytes]) -> None:
    assert_equal_to_the_generated_class(b"".join(spell_field(1, part) for part in parts))


@given(spoiled(st.one_of(st.sampled_from([V2_CHECK, V3_CHECK]), SENT_BY_A_BROKER, REQUESTS)))
def test_spoiled_requests_are_refused_or_read_as_by_the_generated_class(request: bytes) -> None:
    assert_equal_to_the_generated_class(request)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read_as_by_the_generated_class(request: bytes) -> None:
    assert_equal_to_the_generated_class(request)


@given(
    topic=TEXT | st.integers(0, 70_000).map(lambda size: "t" * size),
    payload=st.binary(max_size=300) | st.sampled_from([127, 128, 16_383, 16_384, 2_097_152]).map(bytes),
    qos=st.integers(0, 3) | st.integers(0, 2**32 - 1),
)
def test_a_rewrite_is_written_as_the_generated_class_writes_it(topic: str, payload: bytes, qos: int) -> None:
    expected = ValuedResponse(
        type=ValuedResponse.STOP_AND_RETURN, message=Message(topic=topic, payload=payload, qos=qos)
    ).SerializeToString()
    assert write_rewrite(topic, payload, qos) == expected
