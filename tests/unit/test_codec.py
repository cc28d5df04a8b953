"""The codec on requests as EMQX sends them, on each kind of unusual one, and at the end of its buffer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ota_hook.exhook import _codec
from ota_hook.exhook._codec import IGNORE, Publish, read_publish, write_rewrite
from ota_hook.exhook.exhook_pb2 import ValuedResponse
from tests.publish_requests import (
    CHECK_FIELDS,
    MESSAGE,
    META,
    PROPS,
    V2_CHECK,
    V3_CHECK,
    fields_by_generated_class,
    fields_of,
)


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field of fewer than 128 bytes, or of fewer than 16,384."""
    size = len(body)
    return bytes([number << 3 | 2, *([size] if size < 128 else [size & 0x7F | 0x80, size >> 7])]) + body


def message(*fields: bytes) -> bytes:
    return field(1, b"".join(fields))


class NotToBeAsked:
    """In the place of the generated class where the reader must be sure by itself."""

    @staticmethod
    def FromString(_request: bytes) -> NoReturn:  # noqa: N802 - the generated class spells it so
        raise AssertionError("the request was left to the generated class")


@pytest.fixture
def reader_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_codec, "MessagePublishRequest", NotToBeAsked)


@pytest.mark.usefixtures("reader_alone")
@pytest.mark.parametrize("request_bytes", [V2_CHECK, V3_CHECK], ids=["v2", "v3"])
def test_a_check_as_emqx_sends_it_is_read(request_bytes: bytes) -> None:
    assert fields_of(read_publish(request_bytes)) == CHECK_FIELDS


@pytest.mark.usefixtures("reader_alone")
def test_fields_that_did_not_come_are_empty() -> None:
    empty = ("", b"", "", "", 0, 0)
    assert fields_of(read_publish(b"")) == empty
    assert fields_of(read_publish(message())) == empty
    assert fields_of(read_publish(message(field(8, field(1, b"username"))))) == empty
    assert fields_of(read_publish(META + PROPS)) == empty


@pytest.mark.usefixtures("reader_alone")
def test_text_beyond_ascii_is_read() -> None:
    username = field(8, field(1, b"username") + field(2, "设备".encode()))
    publish = read_publish(message(field(4, "é".encode()), field(5, "attributes/设备".encode()), username))
    assert fields_of(publish) == ("attributes/设备", b"", "é", "设备", 0, 0)


@pytest.mark.usefixtures("reader_alone")
def test_the_last_of_repeated_scalars_counts_and_a_qos_keeps_its_low_32_bits() -> None:
    publish = read_publish(
        message(b"\x18\x01\x18\x81\x80\x80\x80\x10", b"\x38\x05\x38\x07", field(6, b"a"), field(6, b"b"))
    )
    assert fields_of(publish) == ("", b"b", "", "", 1, 7)


UNUSUAL = {
    "a field that no version has": (V2_CHECK + b"\x48\x01", CHECK_FIELDS),
    "a field of the message that no version has": (message(MESSAGE, b"\x50\x01"), CHECK_FIELDS),
    "a group": (V2_CHECK + b"\x53\x08\x01\x54", CHECK_FIELDS),
    "the topic twice": (message(field(5, b"a"), field(5, b"b")), ("b", b"", "", "", 0, 0)),
    "the message in two parts": (V2_CHECK + message(field(5, b"b")), ("b", *CHECK_FIELDS[1:])),
    "the user name twice": (
        message(field(8, field(1, b"username") + field(2, b"a")), field(8, field(1, b"username") + field(2, b"b"))),
        ("", b"", "", "b", 0, 0),
    ),
    "a header's key twice": (
        message(field(8, field(1, b"x") + field(1, b"username") + field(2, b"a"))),
        ("", b"", "", "a", 0, 0),
    ),
    "text beyond ASCII that is not read": (V2_CHECK + field(4, field(2, "é".encode())), CHECK_FIELDS),
    "the topic as a number": (message(b"\x28\x01"), ("", b"", "", "", 0, 0)),
    "a tag of two bytes": (message(b"\xaa\x00\x01a"), ("a", b"", "", "", 0, 0)),
    "a length of five bytes": (message(b"\x2a\x81\x80\x80\x80\x00a"), ("a", b"", "", "", 0, 0)),
    "a number of ten bytes": (message(b"\x38" + b"\xff" * 9 + b"\x01"), ("", b"", "", "", 0, 2**64 - 1)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_request_is_read_all_the_same(name: str) -> None:
    request, expected = UNUSUAL[name]
    assert fields_of(read_publish(request)) == expected == fields_by_generated_class(request)


BAD_TEXT = b"eight888\xff"
REFUSED = {
    "text that is no UTF-8 in node": message(field(1, BAD_TEXT)),
    "text that is no UTF-8 in id": message(field(2, BAD_TEXT)),
    "text that is no UTF-8 in from": message(field(4, BAD_TEXT)),
    "text that is no UTF-8 in topic": message(field(5, BAD_TEXT)),
    "text that is no UTF-8 in a topic before the last": message(field(5, BAD_TEXT), field(5, b"a")),
    "text that is no UTF-8 in a header's key": message(field(8, field(1, BAD_TEXT))),
    "text that is no UTF-8 in a header's value": message(field(8, field(1, b"protocol") + field(2, BAD_TEXT))),
    "text that is no UTF-8 in the user name": message(field(8, field(1, b"username") + field(2, BAD_TEXT))),
    "text that is no UTF-8 in meta": field(2, field(4, BAD_TEXT)),
    "text that is no UTF-8 in props": field(3, field(1, BAD_TEXT)),
    "text that is no UTF-8 in user_props": field(4, field(2, BAD_TEXT)),
    "a surrogate": message(field(5, b"\xed\xa0\x80")),
    "an overlong NUL": message(field(5, b"\xc0\x80")),
    "field number 0": b"\x02\x00",
    "a number of eleven bytes": message(b"\x38" + b"\x80" * 10 + b"\x01"),
    "a length beyond the end": b"\x0a\x05",
    "a length beyond the message's end": message(b"\x2a\x02a") + b"a",
    "a group that does not end": b"\x53",
    "a group's end alone": b"\x54",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_protobuf_refuses_is_none(name: str) -> None:
    assert fields_by_generated_class(REFUSED[name]) is None
    assert read_publish(REFUSED[name]) is None


def test_bytes_that_are_no_text_may_be_in_the_payload() -> None:
    publish = read_publish(message(field(6, BAD_TEXT)))
    assert publish is not None
    assert publish.payload == BAD_TEXT


@pytest.mark.parametrize("argument", [None, "text", bytearray(V2_CHECK), memoryview(V2_CHECK)])
def test_a_request_is_bytes(argument: Any) -> None:
    with pytest.raises(TypeError):
        read_publish(argument)


def test_a_publish_is_read_only() -> None:
    publish: Any = Publish(topic="t", payload=b"p", clientid="c", username="u", qos=1, timestamp_ms=2)
    assert fields_of(publish) == ("t", b"p", "c", "u", 1, 2)
    with pytest.raises(AttributeError):
        publish.topic = "other"


AT_THE_END = """
from tests.guarded_bytes import GuardedBytes
from tests.publish_requests import V3_CHECK, fields_by_generated_class, fields_of
from ota_hook.exhook._codec import read_publish

guarded = GuardedBytes(1 << 16)
ends = [V3_CHECK[:end] for end in range(len(V3_CHECK) + 1)]
# Every byte in turn says that more, or less, comes than is there.
for at in range(len(V3_CHECK)):
    ends += [V3_CHECK[:at] + bytes([byte]) + V3_CHECK[at + 1:] for byte in (0, 127, 128, 255)]
# Text of every length up to some words, ended by the buffer itself.
ends += [b"\\x12" + bytes([size + 2]) + b"\\x0a" + bytes([size]) + b"n" * size for size in range(40)]
for request in ends:
    assert guarded.call(lambda held: fields_of(read_publish(held)), request) == fields_by_generated_class(request)
print(len(ends), "read")
"""


def test_nothing_is_read_behind_the_end_of_a_request() -> None:
    # In a process of its own, for a read behind the end kills it.
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", AT_THE_END], cwd=root, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{5 * len(V3_CHECK) + 41} read\n"


def test_nothing_read_or_written_is_kept() -> None:
    def work() -> None:
        for request in (V2_CHECK, V3_CHECK, *REFUSED.values(), *(request for request, _ in UNUSUAL.values())):
            read_publish(request)
        write_rewrite("command_send/d1", bytes(300), 1)

    work()
    before = sys.getallocatedblocks()
    for _ in range(1_000):
        work()
    assert sys.getallocatedblocks() - before < 200


def test_ignore_is_what_the_generated_class_writes() -> None:
    assert ValuedResponse(type=ValuedResponse.IGNORE).SerializeToString() == IGNORE


def test_a_rewrite_carries_topic_payload_and_qos() -> None:
    answer = write_rewrite("command_send/d1", b"{}", 1)
    assert answer == b"\x08\x02\x22\x17\x18\x01\x2a\x0fcommand_send/d1\x32\x02{}"


def test_an_empty_rewrite_still_carries_a_message() -> None:
    assert write_rewrite("", b"", 0) == b"\x08\x02\x22\x00"


@pytest.mark.parametrize("qos", [-1, 2**32])
def test_a_qos_that_is_no_uint32_is_refused(qos: int) -> None:
    with pytest.raises(OverflowError):
        write_rewrite("t", b"", qos)


def test_a_topic_that_utf8_can_not_hold_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        write_rewrite("command_send/\ud800", b"", 0)
