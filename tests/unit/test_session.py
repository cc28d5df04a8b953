"""One gRPC connection, bytes in and bytes out, against another implementation's client."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TypeVar

import h2.events
import h2.settings
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from ota_hook.exhook._session import Call, Session
from tests.session_client import LOADED, PUBLISH, ROUTES, Answer, Peer, broker_headers, drain, framed, frames, kinds

_Kind = TypeVar("_Kind", bound=Frame)
KIB = 1024
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 3, 8, 12, 13, 14


class Connection:
    """A peer and a session that have shaken hands, and all that the session says after."""

    def __init__(self, session: Session[str] | None = None, peer: Peer | None = None) -> None:
        self.session = Session(ROUTES) if session is None else session
        self.peer = Peer() if peer is None else peer
        self.sent = b""
        self.deliver()
        self.deliver()
        self.sent = b""

    def deliver(self) -> list[Call[str]]:
        """The peer's bytes go to the session, what that says goes back; the calls that came of it."""
        calls = self.session.receive(self.peer.take())
        self.read()
        return calls

    def read(self) -> None:
        """The peer reads what the session has to say."""
        data = drain(self.session)
        self.sent += data
        self.peer.feed(data)

    def answer(self, stream_id: int) -> Answer:
        self.deliver()
        return self.peer.answers[stream_id]

    def frames(self, kind: type[_Kind]) -> list[_Kind]:
        return [frame for frame in frames(self.sent) if isinstance(frame, kind)]

    def works(self) -> bool:
        """Whether a further call is answered."""
        stream_id = self.peer.call(b"still there?")
        (call,) = self.deliver()
        self.session.respond(call, b"yes")
        self.read()
        return self.peer.answers[stream_id].message == b"yes"


@pytest.fixture
def connection() -> Connection:
    return Connection()


# --- calls and answers ---


def test_a_call_carries_what_its_path_stands_for_and_its_message(connection: Connection) -> None:
    stream_id = connection.peer.call(b"hello", broker_headers(LOADED))
    (call,) = connection.deliver()
    assert (call.route, call.message, call.stream_id) == ("v2 OnProviderLoaded", b"hello", stream_id)
    assert call.timeout_ms == 5000


def test_paths_of_one_length_are_told_apart() -> None:
    paths = [f"/emqx.exhook.v{version}.HookProvider/OnMessagePublish" for version in (1, 2, 3)]
    connection = Connection(Session({path.encode(): path for path in paths}))
    for path in paths + paths[::-1]:
        connection.peer.call(b"x", broker_headers(path))
    assert [call.route for call in connection.deliver()] == paths + paths[::-1]


def test_an_answer_has_its_message_and_ok_in_the_trailers(connection: Connection) -> None:
    stream_id = connection.peer.call(b"hello")
    (call,) = connection.deliver()
    connection.session.respond(call, b"\x08\x01")
    connection.read()
    answer = connection.peer.answers[stream_id]
    assert answer.headers == {":status": "200", "content-type": "application/grpc"}
    assert (answer.message, answer.trailers, answer.ended) == (b"\x08\x01", {"grpc-status": "0"}, True)
    assert connection.session.open_streams == connection.session.buffered_bytes == 0


def test_an_empty_answer_is_a_message_too(connection: Connection) -> None:
    stream_id = connection.peer.call(b"")
    (call,) = connection.deliver()
    assert call.message == b""
    connection.session.respond(call, b"")
    connection.read()
    assert connection.peer.answers[stream_id].body == framed(b"")


def test_calls_are_answered_in_any_order(connection: Connection) -> None:
    stream_ids = [connection.peer.call(b"%d" % index) for index in range(20)]
    for call in reversed(connection.deliver()):
        connection.session.respond(call, b"answer to " + call.message)
    connection.read()
    messages = [connection.peer.answers[stream_id].message for stream_id in stream_ids]
    assert messages == [b"answer to %d" % index for index in range(20)]


def test_after_the_first_answer_the_fields_are_sent_as_a_few_bytes(connection: Connection) -> None:
    for _ in range(2):
        connection.peer.call(b"x")
        (call,) = connection.deliver()
        connection.sent = b""
        connection.session.respond(call, b"\x08\x01")
        connection.read()
    assert len(connection.sent) == (9 + 2) + (9 + 5 + 2) + (9 + 1)


def test_a_long_answer_comes_in_several_frames(connection: Connection) -> None:
    long = bytes(range(256)) * 4 * KIB
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.session.respond(call, long)
    while connection.session.open_streams:
        connection.read()
        connection.deliver()
    assert connection.peer.answers[stream_id].message == long
    assert len(connection.frames(DataFrame)) > 64


@pytest.mark.parametrize(
    ("text", "timeout_ms"),
    [
        ("5S", 5000),
        ("1H", 3_600_000),
        ("2M", 120_000),
        ("250m", 250),
        ("1u", 1),
        ("1001u", 2),
        ("1n", 1),
        ("0n", 0),
        ("99999999H", 99_999_999 * 3_600_000),
        (None, None),
        ("", None),
        ("5", None),
        ("S", None),
        ("5s", None),
        ("-5S", None),
        ("5.5S", None),
        ("999999999S", None),
        ("+5S", None),
    ],
)
def test_the_timeout_is_read_in_every_unit_and_ignored_where_it_cannot_be(
    connection: Connection, text: str | None, timeout_ms: int | None
) -> None:
    connection.peer.call(b"x", broker_headers(grpc_timeout=text))
    (call,) = connection.deliver()
    assert call.timeout_ms == timeout_ms


def test_a_failure_is_one_header_block_and_its_text_is_percent_encoded(connection: Connection) -> None:
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.session.fail(call, UNAVAILABLE, " 50 % of Zürich\n sleeps ")
    connection.read()
    answer = connection.peer.answers[stream_id]
    assert (answer.headers[":status"], answer.status, answer.body, answer.trailers) == ("200", UNAVAILABLE, b"", {})
    assert answer.text == "%2050 %25 of Z%C3%BCrich%0A sleeps%20"
    assert len([frame for frame in frames(connection.sent) if frame.stream_id == stream_id]) == 1


def test_a_failure_s_text_is_cut_and_may_hold_anything(connection: Connection) -> None:
    stream_ids = [connection.peer.call(b"x") for _ in range(3)]
    calls = connection.deliver()
    for call, text in zip(calls, ["x" * 5000, "\ud800", ""], strict=True):
        connection.session.fail(call, 1, text)
    connection.read()
    texts = [connection.peer.answers[stream_id].text for stream_id in stream_ids]
    assert texts == ["x" * 1024, "?", ""]


@pytest.mark.parametrize("status", [-1, 0, 17, 100])
def test_only_a_failure_s_status_can_be_failed_with(connection: Connection, status: int) -> None:
    connection.peer.call(b"x")
    (call,) = connection.deliver()
    with pytest.raises(ValueError, match=r"not a gRPC status"):
        connection.session.fail(call, status)
    connection.session.fail(call, INTERNAL)
    assert connection.session.open_calls == 0


def test_a_second_answer_to_a_call_is_dropped(connection: Connection) -> None:
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.session.respond(call, b"first")
    connection.session.respond(call, b"second")
    connection.session.fail(call, INTERNAL)
    connection.read()
    connection.session.respond(call, b"third")
    connection.read()
    assert connection.peer.answers[stream_id].message == b"first"
    assert connection.session.open_calls == 0


def test_a_call_of_another_session_is_refused(connection: Connection) -> None:
    other = Connection()
    other.peer.call(b"x")
    (call,) = other.deliver()
    with pytest.raises(ValueError, match="another session"):
        connection.session.respond(call, b"x")
    with pytest.raises(ValueError, match="another session"):
        connection.session.fail(call, INTERNAL)
    other.session.respond(call, b"x")


def test_a_call_can_only_come_from_a_session() -> None:
    with pytest.raises(TypeError, match=r"Session\.receive"):
        Call()


@pytest.mark.parametrize("view", [bytearray, memoryview])
def test_bytes_come_in_any_buffer(connection: Connection, view: type[bytearray | memoryview]) -> None:
    connection.peer.call(b"x")
    (call,) = connection.session.receive(view(connection.peer.take()))
    assert call.message == b"x"


# --- framing ---


def test_a_request_may_come_byte_by_byte(connection: Connection) -> None:
    connection.peer.send([b"\x00", b"\x00\x00", b"\x00\x05h", b"", b"ell", b"o", b""])
    calls = [call for byte in connection.peer.take() for call in connection.session.receive(bytes((byte,)))]
    assert [call.message for call in calls] == [b"hello"]


def test_a_request_may_end_with_an_empty_frame_or_with_trailers(connection: Connection) -> None:
    connection.peer.send([framed(b"one"), b""])
    stream_id = connection.peer.open()
    connection.peer.write(stream_id, framed(b"two"))
    assert [call.message for call in connection.deliver()] == [b"one"]
    connection.peer.h2.send_headers(stream_id, [("checksum", "1")], end_stream=True)
    assert [call.message for call in connection.deliver()] == [b"two"]


def test_padding_is_no_part_of_a_message(connection: Connection) -> None:
    stream_id = connection.peer.open()
    connection.peer.h2.send_data(stream_id, framed(b"hello")[:7], pad_length=200)
    connection.peer.h2.send_data(stream_id, framed(b"hello")[7:], pad_length=9, end_stream=True)
    (call,) = connection.deliver()
    assert call.message == b"hello"


def test_requests_may_be_interleaved(connection: Connection) -> None:
    stream_ids = [connection.peer.open() for _ in range(5)]
    message = bytes(range(256)) * 100
    for start in range(0, len(framed(message)), 1000):
        for index, stream_id in enumerate(stream_ids):
            part = framed(message + b"%d" % index)[start : start + 1000]
            connection.peer.write(stream_id, part, end=start + 1000 >= len(framed(message)))
    calls = connection.deliver()
    assert [call.message for call in calls] == [message + b"%d" % index for index in range(5)]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", UNIMPLEMENTED, "exactly one message"),
        (b"\x00\x00\x00", INTERNAL, "ends within"),
        (framed(b"hello")[:-1], INTERNAL, "ends within"),
        (framed(b"", length=1), INTERNAL, "ends within"),
        (framed(b"one") + framed(b"two"), UNIMPLEMENTED, "exactly one message"),
        (framed(b"") + framed(b""), UNIMPLEMENTED, "exactly one message"),
        (framed(b"one") + b"\x00", UNIMPLEMENTED, "exactly one message"),
        (framed(b"x", flag=1), INTERNAL, "without a grpc-encoding"),
        (framed(b"x", flag=2), INTERNAL, "flag"),
        (framed(b"x", flag=255), INTERNAL, "flag"),
        (framed(b"x" * (64 * KIB + 1)), RESOURCE_EXHAUSTED, "too long"),
        (framed(b"x", length=2**32 - 1), RESOURCE_EXHAUSTED, "too long"),
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_malformed_request_fails_alone(body: bytes, status: int, text: str, *, in_parts: bool) -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=64 * KIB))
    before = connection.peer.call(b"before")
    parts = [body[: len(body) // 2], body[len(body) // 2 :]] if in_parts else [body]
    bad = connection.peer.send(parts)
    after = connection.peer.call(b"after")
    calls = connection.deliver()
    assert [call.message for call in calls] == [b"before", b"after"]
    for call in calls:
        connection.session.respond(call, b"fine")
    answer = connection.answer(bad)
    assert (answer.status, answer.headers[":status"], answer.ended, answer.reset) == (status, "200", True, None)
    assert text in answer.text
    assert connection.peer.answers[before].message == connection.peer.answers[after].message == b"fine"
    assert not connection.frames(RstStreamFrame)
    assert connection.session.open_streams == connection.session.buffered_bytes == 0


@pytest.mark.parametrize(
    ("changes", "http_status", "status"),
    [
        ({"_path": "/emqx.exhook.v9.HookProvider/OnMessagePublish"}, "200", UNIMPLEMENTED),
        ({"_path": PUBLISH + "/"}, "200", UNIMPLEMENTED),
        ({"_path": PUBLISH[:-1]}, "200", UNIMPLEMENTED),
        ({"_path": PUBLISH.lower()}, "200", UNIMPLEMENTED),
        ({"_method": "GET"}, "405", INTERNAL),
        ({"_method": "POSTS"}, "405", INTERNAL),
        ({"_method": "post"}, "405", INTERNAL),
        ({"content_type": None}, "415", INVALID_ARGUMENT),
        ({"content_type": "application/json"}, "415", INVALID_ARGUMENT),
        ({"content_type": "application/grpc-web"}, "415", INVALID_ARGUMENT),
        ({"content_type": "application/grp"}, "415", INVALID_ARGUMENT),
    ],
)
def test_what_is_no_call_of_ours_is_refused_at_once_and_its_rest_swallowed(
    connection: Connection, changes: dict[str, str | None], http_status: str, status: int
) -> None:
    stream_id = connection.peer.open(broker_headers(PUBLISH, **changes))
    answer = connection.answer(stream_id)
    assert (answer.headers[":status"], answer.status, answer.ended, answer.reset) == (http_status, status, True, None)
    connection.peer.write(stream_id, framed(b"x" * 100_000), end=True)
    assert connection.deliver() == []
    assert not connection.frames(RstStreamFrame)
    assert connection.works()
    assert connection.session.open_streams == connection.session.buffered_bytes == 0


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_every_grpc_content_type_is_served(connection: Connection, content_type: str) -> None:
    connection.peer.call(b"x", broker_headers(content_type=content_type))
    assert len(connection.deliver()) == 1


def test_a_compressed_message_is_refused_with_the_encodings_that_are_known(connection: Connection) -> None:
    stream_id = connection.peer.send(framed(b"x", flag=1), broker_headers(grpc_encoding="gzip"))
    answer = connection.answer(stream_id)
    assert (answer.status, answer.headers["grpc-accept-encoding"]) == (UNIMPLEMENTED, "identity")


def test_without_an_encoding_header_the_flag_is_an_error_too(connection: Connection) -> None:
    stream_id = connection.peer.send(framed(b"x", flag=1), broker_headers(grpc_encoding=None))
    assert connection.answer(stream_id).status == INTERNAL


def test_a_message_that_is_not_compressed_needs_no_known_encoding(connection: Connection) -> None:
    connection.peer.call(b"x", broker_headers(grpc_encoding="gzip"))
    assert len(connection.deliver()) == 1


def test_a_request_of_headers_alone_is_refused(connection: Connection) -> None:
    stream_id = connection.peer.open(end=True)
    assert connection.answer(stream_id).status == UNIMPLEMENTED
    assert connection.session.open_streams == 0


# --- bounds ---


def test_a_message_of_the_longest_length_is_taken() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=300_000))
    connection.peer.call(b"x" * 300_000)
    (call,) = connection.deliver()
    assert call.message == b"x" * 300_000


def test_a_message_that_is_too_long_is_refused_by_its_prefix_and_never_kept() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=64 * KIB))
    stream_id = connection.peer.open()
    connection.peer.write(stream_id, framed(b"", length=64 * KIB + 1))
    answer = connection.answer(stream_id)
    assert (answer.status, answer.ended) == (RESOURCE_EXHAUSTED, True)
    for _ in range(200):
        connection.peer.write(stream_id, b"x" * 10_000)
        connection.deliver()
        assert connection.session.buffered_bytes < 4 * KIB
    connection.peer.write(stream_id, b"", end=True)
    connection.deliver()
    assert not connection.frames(RstStreamFrame)
    assert connection.session.open_streams == 0
    assert connection.works()


def test_an_announced_length_takes_no_memory_before_its_bytes_come(connection: Connection) -> None:
    for _ in range(100):
        connection.peer.write(connection.peer.open(), framed(b"x", length=4 * KIB * KIB))
    connection.deliver()
    assert connection.session.buffered_bytes < 100 * 2 * KIB


def test_unfinished_requests_are_bounded_together() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=64 * KIB, max_request_bytes=256 * KIB))
    stream_ids = [connection.peer.open() for _ in range(50)]
    for stream_id in stream_ids:
        connection.peer.write(stream_id, framed(b"x" * 16_000, length=32_000))
        connection.deliver()
    assert connection.session.buffered_bytes <= 256 * KIB
    for stream_id in stream_ids:
        connection.peer.write(stream_id, b"y" * 16_000, end=True)
    calls = connection.deliver()
    refused = [stream_id for stream_id in stream_ids if connection.peer.answers[stream_id].ended]
    assert {connection.peer.answers[stream_id].status for stream_id in refused} == {RESOURCE_EXHAUSTED}
    assert 0 < len(calls) == 50 - len(refused) < 50
    assert {call.message for call in calls} == {b"x" * 16_000 + b"y" * 16_000}
    assert not connection.frames(RstStreamFrame)


def test_whole_messages_that_nobody_ends_are_bounded_too() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=16 * KIB, max_request_bytes=64 * KIB))
    stream_ids = [connection.peer.open() for _ in range(50)]
    connection.deliver()
    for stream_id in stream_ids:
        connection.peer.write(stream_id, framed(b"x" * 10_000))
        connection.deliver()
        assert connection.session.buffered_bytes <= 64 * KIB
    assert connection.peer.answers[stream_ids[0]].ended is False
    assert connection.peer.answers[stream_ids[-1]].status == RESOURCE_EXHAUSTED


def test_a_peer_that_only_opens_streams_is_refused_and_then_cut_off() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=KIB, max_request_bytes=64 * KIB))
    stream_ids: list[int] = []
    while not connection.session.closing:
        assert len(stream_ids) < 200
        stream_ids.append(connection.peer.open())
        connection.deliver()
        assert connection.session.buffered_bytes <= 130 * KIB
    assert connection.peer.answers[stream_ids[10]].ended is False
    assert connection.peer.answers[stream_ids[100]].status == RESOURCE_EXHAUSTED
    (goodbye,) = connection.frames(GoAwayFrame)
    assert goodbye.error_code == 0xB  # ENHANCE_YOUR_CALM


def test_reading_pauses_while_too_much_is_in_work() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=KIB, max_request_bytes=16 * KIB))
    for _ in range(20):
        connection.peer.call(b"x" * 500)
    calls = connection.deliver()
    assert len(calls) == 20  # what was read is served
    assert connection.session.paused
    for call in calls[:15]:
        connection.session.respond(call, b"")
    connection.read()
    assert not connection.session.paused


def test_reading_pauses_while_answers_are_not_taken() -> None:
    session = Session(ROUTES, max_answer_bytes=16 * KIB)
    connection = Connection(session)
    for _ in range(10):
        connection.peer.call(b"x")
    calls = connection.deliver()
    for call in calls:
        session.respond(call, b"y" * 4000)
    assert session.paused
    connection.read()
    assert not session.paused


def test_a_piece_to_send_is_64_kib_at_most(connection: Connection) -> None:
    for _ in range(10):
        connection.peer.call(b"x")
    connection.peer.h2.increment_flow_control_window(10_000_000)
    for call in connection.deliver():
        connection.peer.h2.increment_flow_control_window(100_000, call.stream_id)
        connection.session.respond(call, b"y" * 50_000)
    connection.session.receive(connection.peer.take())
    pieces = []
    while piece := connection.session.data_to_send():
        pieces.append(len(piece))
    assert set(pieces[:-1]) == {64 * KIB}
    assert sum(pieces) > 500_000


def test_an_answer_waits_for_the_peer_s_window_and_reading_goes_on() -> None:
    session = Session(ROUTES, max_answer_bytes=16 * KIB)
    connection = Connection(session, Peer(window=3, open_again=False))
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    session.respond(call, b"y" * 30_000)
    connection.read()
    assert connection.peer.answers[stream_id].body == framed(b"y" * 30_000)[:3]
    assert not session.paused  # the update of the window must be read
    connection.peer.h2.increment_flow_control_window(40_000, stream_id)
    connection.deliver()
    assert connection.peer.answers[stream_id].message == b"y" * 30_000


def test_answers_trickle_through_a_tiny_window() -> None:
    connection = Connection(peer=Peer(window=1))
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.session.respond(call, b"hello")
    connection.read()
    while connection.session.open_streams:
        connection.deliver()
    assert connection.peer.answers[stream_id].message == b"hello"


def test_answers_that_the_peer_s_window_holds_back_are_bounded() -> None:
    session = Session(ROUTES, max_answer_bytes=16 * KIB)
    connection = Connection(session, Peer(window=0, open_again=False))
    stream_ids = []
    for _ in range(100):
        stream_ids.append(connection.peer.call(b"x"))
        for call in connection.deliver():
            session.respond(call, b"y" * 2000)
        connection.read()
        assert session.buffered_bytes < 4 * 16 * KIB + 4 * KIB
        assert not session.paused
    answers = [connection.peer.answers[stream_id] for stream_id in stream_ids]
    refused = [answer for answer in answers if answer.ended]
    assert 0 < len(refused) < 100
    assert {answer.status for answer in refused} == {RESOURCE_EXHAUSTED}
    connection.peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    connection.peer.h2.increment_flow_control_window(10_000_000)
    connection.deliver()
    assert all(answer.ended for answer in answers)
    assert session.buffered_bytes == 0
    assert not connection.frames(RstStreamFrame)


@pytest.mark.parametrize("bytes_", [0, 2**29 + 1])
def test_a_bound_that_cannot_be_kept_is_refused(bytes_: int) -> None:
    with pytest.raises(ValueError, match="max_message_bytes"):
        Session(ROUTES, max_message_bytes=bytes_)


def test_a_header_list_over_its_bound_is_refused(connection: Connection) -> None:
    headers = [*broker_headers(), *((f"x-{index}", "v" * 1000) for index in range(70))]
    stream_id = connection.peer.send(framed(b"x"), headers)
    assert connection.answer(stream_id).status == RESOURCE_EXHAUSTED
    assert connection.works()


def test_a_megabyte_of_headers_ends_the_connection_with_a_goodbye(connection: Connection) -> None:
    head = HeadersFrame(1, data=b"\x00")
    flood = head.serialize()[:3] + b"\x01\x00" + head.serialize()[5:]
    for _ in range(64):
        flood += ContinuationFrame(1, data=b"\x00\x03abc\x7f\x80\x7f" + b"x" * 16_000).serialize()
    assert connection.session.receive(flood) == []
    goodbye = drain(connection.session)
    assert isinstance(frames(goodbye)[-1], GoAwayFrame)
    assert connection.session.closing


# --- the connection ---


def test_the_first_bytes_advertise_room_for_every_call() -> None:
    session = Session(ROUTES)
    settings, *others = frames(session.data_to_send())
    assert isinstance(settings, SettingsFrame)
    assert settings.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 2**31 - 1
    assert settings.settings[SettingsFrame.INITIAL_WINDOW_SIZE] >= 8 * KIB * KIB
    assert settings.settings[SettingsFrame.MAX_HEADER_LIST_SIZE] == 64 * KIB
    assert [frame.stream_id for frame in others if isinstance(frame, WindowUpdateFrame)] == [0]
    assert not session.closing


def test_settings_and_pings_are_answered(connection: Connection) -> None:
    connection.peer.h2.ping(b"12345678")
    connection.deliver()
    assert connection.peer.seen(h2.events.SettingsAcknowledged)
    assert connection.peer.seen(h2.events.PingAckReceived)


def test_a_thousand_calls_cost_no_window_update_and_no_reset(connection: Connection) -> None:
    for _ in range(20):
        for _ in range(50):
            connection.peer.call(b"x" * 400)
        for call in connection.deliver():
            connection.session.respond(call, b"\x08\x01")
        connection.read()
    assert set(kinds(connection.sent)) == {"HEADERS", "DATA"}


def test_windows_are_opened_again_over_many_bytes() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=512 * KIB))
    for _ in range(100):  # 50 MB through a window of 16
        connection.peer.call(b"x" * 500 * KIB)
        (call,) = connection.deliver()
        connection.session.respond(call, b"")
        connection.read()
    assert connection.frames(WindowUpdateFrame)


def test_a_reset_call_is_answered_into_nothing(connection: Connection) -> None:
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.peer.h2.reset_stream(stream_id)
    connection.deliver()
    assert (connection.session.open_streams, connection.session.open_calls) == (0, 1)
    connection.sent = b""
    connection.session.respond(call, b"too late")
    connection.read()
    assert connection.sent == b""
    assert connection.session.open_calls == connection.session.buffered_bytes == 0
    assert connection.works()


def test_a_reset_takes_an_unsent_answer_with_it() -> None:
    connection = Connection(peer=Peer(window=10, open_again=False))
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.session.respond(call, b"y" * 10_000)
    connection.read()
    assert connection.session.buffered_bytes > 10_000
    connection.peer.h2.reset_stream(stream_id)
    connection.deliver()
    assert connection.session.buffered_bytes == 0


def test_a_reset_within_a_request_frees_what_was_read(connection: Connection) -> None:
    stream_id = connection.peer.open()
    connection.peer.write(stream_id, framed(b"x" * 1000, length=5000))
    connection.deliver()
    assert connection.session.buffered_bytes > 1000
    connection.peer.h2.reset_stream(stream_id)
    connection.deliver()
    assert connection.session.buffered_bytes == connection.session.open_streams == 0


def test_calls_that_were_reset_still_count_until_they_are_answered() -> None:
    connection = Connection(Session(ROUTES, max_message_bytes=KIB, max_request_bytes=16 * KIB))
    calls = []
    while not connection.session.paused:
        stream_id = connection.peer.call(b"x")
        calls += connection.deliver()
        connection.peer.h2.reset_stream(stream_id)
        connection.deliver()
        assert len(calls) < 100
    for call in calls:
        connection.session.respond(call, b"")
    assert not connection.session.paused
    assert connection.works()


def test_a_drain_says_goodbye_once_no_call_is_open(connection: Connection) -> None:
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.session.start_drain()
    connection.read()
    assert not connection.frames(GoAwayFrame)
    assert connection.session.draining
    assert not connection.session.drained
    connection.session.respond(call, b"y")
    connection.read()
    assert connection.peer.answers[stream_id].message == b"y"
    (goodbye,) = connection.frames(GoAwayFrame)
    assert (goodbye.error_code, goodbye.last_stream_id) == (0, 2**31 - 1)
    assert connection.session.drained
    assert not connection.session.closing


def test_a_drain_waits_for_an_unfinished_request_too(connection: Connection) -> None:
    stream_id = connection.peer.open()
    connection.deliver()
    connection.session.start_drain()
    connection.read()
    assert not connection.frames(GoAwayFrame)
    connection.peer.write(stream_id, framed(b"x"), end=True)
    (call,) = connection.deliver()
    connection.session.respond(call, b"y")
    connection.read()
    assert connection.session.drained


def test_a_reset_call_holds_up_the_end_of_a_drain_but_not_the_goodbye(connection: Connection) -> None:
    stream_id = connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.peer.h2.reset_stream(stream_id)
    connection.session.start_drain()
    connection.deliver()
    assert connection.frames(GoAwayFrame)
    assert not connection.session.drained
    connection.session.respond(call, b"y")
    connection.read()
    assert connection.session.drained


def test_an_idle_session_says_goodbye_at_once(connection: Connection) -> None:
    connection.session.start_drain()
    assert kinds(drain(connection.session)) == ["GOAWAY"]
    assert connection.session.drained


def test_a_call_that_crosses_the_goodbye_is_answered(connection: Connection) -> None:
    connection.session.start_drain()
    goodbye = drain(connection.session)
    stream_id = connection.peer.call(b"x")  # the peer has not read it yet
    (call,) = connection.session.receive(connection.peer.take())
    assert not connection.session.drained
    connection.session.respond(call, b"y")
    late = drain(connection.session)
    assert kinds(late) == ["HEADERS", "DATA", "HEADERS"]
    assert {frame.stream_id for frame in frames(late)} == {stream_id}
    assert connection.session.drained
    assert isinstance(frames(goodbye)[-1], GoAwayFrame)


def test_a_session_retires_by_itself_long_before_its_stream_ids_run_out() -> None:
    connection = Connection(Session(ROUTES, retire_at_stream_id=9))
    for _ in range(4):
        assert connection.works()
    assert not connection.session.draining
    assert connection.works()
    assert connection.session.drained
    assert connection.frames(GoAwayFrame)


def test_a_peer_s_goodbye_closes_once_its_calls_are_answered(connection: Connection) -> None:
    stream_id = connection.peer.call(b"x")
    request = connection.peer.take()
    connection.peer.h2.close_connection()
    (call,) = connection.session.receive(request + connection.peer.take())
    drain(connection.session)
    assert not connection.session.closing
    connection.session.respond(call, b"y")
    answer = drain(connection.session)
    assert kinds(answer) == ["HEADERS", "DATA", "HEADERS"]
    assert {frame.stream_id for frame in frames(answer)} == {stream_id}
    assert connection.session.closing


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client's first bytes",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + PingFrame(0, b"x" * 8).serialize(),
    ],
)
def test_what_is_no_http_2_gets_a_goodbye_and_is_closed(data: bytes) -> None:
    session = Session(ROUTES)
    assert session.receive(data) == []
    assert not session.closing  # the goodbye is to be sent first
    goodbye = frames(drain(session))[-1]
    assert isinstance(goodbye, GoAwayFrame)
    assert goodbye.error_code == 1  # PROTOCOL_ERROR
    assert session.closing
    assert session.receive(b"more") == []


def test_after_a_connection_error_nothing_is_read_and_open_calls_can_be_answered(connection: Connection) -> None:
    connection.peer.call(b"x")
    (call,) = connection.deliver()
    connection.session.receive(b"\0\0\1\0\0\0\0\0\0x")  # a DATA frame on stream 0
    more = Peer()
    more.call(b"y")
    assert connection.session.receive(more.take()) == []
    assert isinstance(frames(drain(connection.session))[-1], GoAwayFrame)
    assert connection.session.closing
    connection.session.respond(call, b"y")
    assert connection.session.open_calls == 0


@pytest.mark.parametrize("frame", [PingFrame(0, b"x" * 8), SettingsFrame(0)])
def test_a_flood_that_wants_answers_is_cut_off(connection: Connection, frame: Frame) -> None:
    connection.session.receive(frame.serialize() * 5000)
    said = frames(drain(connection.session))
    assert len(said) < 1100
    assert isinstance(said[-1], GoAwayFrame)
    assert connection.session.closing


def test_a_flood_of_resets_is_cut_off() -> None:
    connection = Connection()
    connection.peer.h2.reset_stream(connection.peer.open())
    flood = [connection.peer.take()]
    connection.peer.open()
    head = connection.peer.take()
    for stream_id in range(3, 2 * 30_000, 2):
        flood += [head[:5], stream_id.to_bytes(4, "big"), head[9:], RstStreamFrame(stream_id, 8).serialize()]
    assert connection.session.receive(b"".join(flood)) == []
    assert isinstance(frames(drain(connection.session))[-1], GoAwayFrame)
    assert connection.session.closing


def test_a_few_thousand_calls_that_time_out_together_are_no_flood(connection: Connection) -> None:
    stream_ids = [connection.peer.call(b"x") for _ in range(3000)]
    calls = connection.deliver()
    for stream_id in stream_ids:
        connection.peer.h2.reset_stream(stream_id)
    connection.deliver()
    for call in calls:
        connection.session.respond(call, b"")
    assert connection.works()


# --- memory ---


def test_a_session_lets_go_of_everything_it_held() -> None:
    route = object()
    answer = b"a private answer %d" % id(route)
    held = sys.getrefcount(route), sys.getrefcount(answer)
    session = Session({PUBLISH.encode(): route})
    peer = Peer(window=3)
    for _ in range(10):
        peer.call(b"in work, answered, or not")
        peer.write(peer.open(), framed(b"unfinished", length=1000))
        peer.write(peer.open(), framed(b"whole, but not ended"))
    calls = session.receive(peer.take())
    for call in calls[:5]:
        session.respond(call, answer)
    session.data_to_send()
    assert sys.getrefcount(answer) == held[1] + 5
    assert sys.getrefcount(route) > held[0]
    del session, calls, call
    gc.collect()
    assert (sys.getrefcount(route), sys.getrefcount(answer)) == held


def test_a_call_outlives_its_session() -> None:
    connection = Connection()
    connection.peer.call(b"hello")
    (call,) = connection.deliver()
    del connection
    gc.collect()
    assert (call.message, call.route) == (b"hello", "v2 OnMessagePublish")


def test_memory_stays_flat_over_many_calls() -> None:
    session = Session(ROUTES)
    reads = broker_reads(4000)

    def run(part: list[bytes]) -> None:
        for read in part:
            for call in session.receive(read):
                session.respond(call, call.message)
            drain(session)

    run(reads[:1000])
    before = resident_bytes()
    run(reads[1000:])
    assert session.buffered_bytes == session.open_streams == session.open_calls == 0
    assert resident_bytes() - before < 512 * KIB


def test_memory_stays_flat_over_what_goes_wrong() -> None:
    peer = Peer(window=10)
    for _ in range(10):
        peer.send([framed(b"in parts" * 100)[:400], framed(b"in parts" * 100)[400:]])
        peer.write(peer.open(), framed(b"unfinished" * 50, length=1000))
        peer.send([framed(b"too long" * 100)[:400], framed(b"too long" * 100)[400:], b"!"])
        peer.h2.reset_stream(peer.send(framed(b"x" * 500), end=False))
        peer.call(b"x", broker_headers("/unknown"))
    data = peer.take()

    def run(rounds: int) -> None:
        for _ in range(rounds):
            session = Session(ROUTES)
            calls = session.receive(data)
            assert len(calls) == 10
            for call in calls[::2]:
                session.respond(call, call.message[:100])
            session.data_to_send()

    run(200)
    before = resident_bytes()
    run(1000)
    assert resident_bytes() - before < 512 * KIB


def broker_reads(count: int) -> list[bytes]:
    """The bytes of a long connection, 50 calls a read after the first: 200,000 calls for 4,000 reads."""
    peer = Peer()
    peer.h2.increment_flow_control_window(2**31 - 1 - 65_535)
    peer.call(b"x" * 300)
    start = peer.take()
    peer.call(b"x" * 300)
    again = peer.take()
    data_at = int.from_bytes(again[:3], "big") + 9
    stream_ids = iter(range(3, 2**31, 2))

    def call() -> bytes:
        stream_id = next(stream_ids).to_bytes(4, "big")
        return (
            again[:5] + stream_id + again[9:data_at] + again[data_at : data_at + 5] + stream_id + again[data_at + 9 :]
        )

    return [start, *(b"".join(call() for _ in range(50)) for _ in range(count))]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
