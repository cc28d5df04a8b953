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
    BAD_TEXT,
    CHECK_FIELDS,
    META,
    PROPS,
    REFUSED,
    UNUSUAL,
    V2_CHECK,
    V3_CHECK,
    field,
    fields_by_generated_class,
    fields_of,
    message,
)


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


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_request_is_read_all_the_same(name: str) -> None:
    request, expected = UNUSUAL[name]
    assert fields_of(read_publish(request)) == expected == fields_by_generated_class(request)


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
