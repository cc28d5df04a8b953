"""Laws of the gRPC session: how the bytes are cut doesn't matter, and no bytes do harm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from hypothesis import event, example, given
from hypothesis import strategies as st

from ota_hook.exhook._session import Call, Session
from tests.session_client import LOADED, PUBLISH, ROUTES, Answer, Peer, broker_headers, drain, framed, frames

MAX_MESSAGE_BYTES = 20_000

Deed = tuple[str, bytes, int]
Seen = tuple[int, str, bytes, int | None]

messages = st.one_of(st.binary(max_size=80), st.integers(0, 19_000).map(bytes))
bodies = st.one_of(
    messages.map(framed),
    messages.map(framed),
    st.builds(lambda message, flag: framed(message, flag=flag), st.binary(max_size=9), st.integers(1, 3)),
    st.builds(lambda message, length: framed(message, length=length), st.binary(max_size=9), st.integers(0, 2**32 - 1)),
    st.lists(st.binary(max_size=9).map(framed), min_size=2, max_size=3).map(b"".join),
    st.binary(max_size=9),
)
deeds = st.lists(
    st.tuples(st.sampled_from(["send", "send", "send", "open", "finish", "reset", "ping"]), bodies, st.integers(0, 99)),
    min_size=1,
    max_size=12,
)
cuts = st.lists(st.floats(0, 1, exclude_max=True), max_size=30)


def written(script: list[Deed]) -> bytes:
    return written_and_reset(script)[0]


def written_and_reset(script: list[Deed]) -> tuple[bytes, set[int]]:
    """What a client writes that carries out these deeds, and stays within the windows that it starts with.

    Beside it the streams that it resets.
    """
    peer = Peer()
    unfinished: list[int] = []
    reset: set[int] = set()
    room = 60_000
    for deed, body, number in script:
        room -= len(body)
        if room < 0:
            break
        if deed == "send":
            part = number % (len(body) + 1)
            headers = broker_headers(LOADED if number % 7 == 0 else "/unknown" if number % 11 == 0 else PUBLISH)
            peer.send([body[:part], body[part:]] if number % 2 else body, headers)
        elif deed == "open":
            stream_id = peer.open()
            peer.write(stream_id, body[: number % (len(body) + 1)])
            unfinished.append(stream_id)
        elif deed == "ping":
            peer.h2.ping(bytes((number,)) * 8)
        elif unfinished:
            stream_id = unfinished.pop(number % len(unfinished))
            if deed == "finish":
                peer.write(stream_id, body, end=True)
            else:
                peer.h2.reset_stream(stream_id)
                reset.add(stream_id)
    return peer.take(), reset


def cut(data: bytes, places: list[float]) -> list[bytes]:
    edges = [0, *sorted(int(place * len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def served(parts: list[bytes], *, write: Literal["at the end", "after each read"]) -> tuple[list[Seen], bytes]:
    """What a session makes of these reads, each call answered with its own message backwards; and what it sends."""
    session = Session(ROUTES, max_message_bytes=MAX_MESSAGE_BYTES)
    seen: list[Seen] = []
    sent: list[bytes] = []
    waiting: list[Call[str]] = []
    for part in parts:
        calls = session.receive(part)
        seen += [(call.stream_id, call.route, call.message, call.timeout_ms) for call in calls]
        waiting += calls
        if write == "after each read":
            answer_all(session, waiting)
            waiting = []
            sent.append(drain(session))
    answer_all(session, waiting)
    sent.append(drain(session))
    assert session.open_calls == 0
    return seen, b"".join(sent)


def answer_all(session: Session[str], calls: list[Call[str]]) -> None:
    for call in calls:
        if call.message.startswith(b"\x07"):
            session.fail(call, 7, "no sevens")
        else:
            session.respond(call, call.message[::-1])


def by_stream(sent: bytes, *, but: set[int]) -> dict[int, Answer]:
    """What a client reads; it has opened as many streams as it is answered on."""
    peer = Peer()
    last = max((frame.stream_id for frame in frames(sent)), default=0)
    while peer.h2.highest_outbound_stream_id < last:
        peer.call(b"")
    peer.feed(sent)
    return {stream_id: answer for stream_id, answer in peer.answers.items() if answer.ended and stream_id not in but}


@given(deeds, cuts)
def test_the_same_bytes_in_any_reads_are_the_same_calls_and_the_same_answer(
    script: list[Deed], places: list[float]
) -> None:
    data, reset = written_and_reset(script)
    whole = served([data], write="at the end")
    event(f"{min(len(whole[0]), 5)} calls")
    assert served(cut(data, places), write="at the end") == whole
    seen, sent = served(cut(data, places), write="after each read")
    assert seen == whole[0]
    # An answer written at once may be out before the reset that takes it back is read.
    assert by_stream(sent, but=reset) == by_stream(whole[1], but=reset)


@given(deeds)
@example([("send", framed(b"hello"), 1), ("open", framed(b"x"), 3), ("send", framed(b""), 2)])
def test_one_byte_a_read_is_enough(script: list[Deed]) -> None:
    data = written([deed for deed in script if len(deed[1]) < 200])
    assert served([bytes((byte,)) for byte in data], write="at the end") == served([data], write="at the end")


def mutated(data: bytes, mutations: list[tuple[str, float, float, bytes]]) -> bytes:
    for kind, first, second, inserted in mutations:
        start, end = sorted((int(first * len(data)), int(second * len(data))))
        end = min(end, start + 64)
        if kind == "flip" and data:
            place = min(start, len(data) - 1)
            bit = 1 << int(second * 8)
            data = data[:place] + bytes((data[place] ^ bit,)) + data[place + 1 :]
        elif kind == "insert":
            data = data[:start] + inserted + data[start:]
        elif kind == "delete":
            data = data[:start] + data[end:]
        elif kind == "repeat":
            data = data[:end] + data[start:end] + data[end:]
        elif kind == "cut":
            data = data[: max(start, 24)]
    return data


def rearranged(data: bytes, changes: list[tuple[str, float, float, int]]) -> bytes:
    """Whole frames lost, doubled, moved, or with another flag, stream or byte within: what gets past HPACK's eyes."""
    preface, found = data[:24], []
    data = data[24:]
    while data:
        length = 9 + int.from_bytes(data[:3], "big")
        found.append(data[:length])
        data = data[length:]
    for kind, first, second, number in changes:
        if not found:
            break
        place = int(first * len(found))
        frame = found[place]
        if kind == "lose":
            del found[place]
        elif kind == "double":
            found.insert(place, frame)
        elif kind == "move":
            found.insert(int(second * len(found)), found.pop(place))
        elif kind == "flag":
            found[place] = frame[:4] + bytes((frame[4] ^ (1, 4, 8, 32)[number % 4],)) + frame[5:]
        elif kind == "stream":
            found[place] = frame[:5] + (number % 30).to_bytes(4, "big") + frame[9:]
        elif frame[3] == 0 and len(frame) > 9:  # a byte of a DATA frame
            at = 9 + int(second * (len(frame) - 9))
            found[place] = frame[:at] + bytes((number,)) + frame[at + 1 :]
    return preface + b"".join(found)


fractions = st.floats(0, 1, exclude_max=True)
mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "flip", "insert", "delete", "repeat", "cut"]),
        fractions,
        fractions,
        st.binary(max_size=40),
    ),
    min_size=1,
    max_size=8,
)


rearrangements = st.lists(
    st.tuples(
        st.sampled_from(["lose", "double", "move", "flag", "stream", "byte", "byte"]),
        fractions,
        fractions,
        st.integers(0, 255),
    ),
    max_size=8,
)


def parts_and_choices(parts: list[bytes], choices: list[int]) -> Iterator[tuple[bytes, int]]:
    for index, part in enumerate(parts):
        yield part, choices[index % len(choices)] if choices else 0


@given(
    st.one_of(
        st.builds(lambda script, changes: mutated(written(script), changes), deeds, mutations),
        st.builds(lambda script, changes: rearranged(written(script), changes), deeds, rearrangements),
    ),
    cuts,
    st.lists(st.integers(0, 9), max_size=9),
)
def test_no_bytes_raise_or_outgrow_the_bounds(data: bytes, places: list[float], choices: list[int]) -> None:
    session = Session(ROUTES, max_message_bytes=2000, max_request_bytes=8_000, max_answer_bytes=4_000)
    waiting: list[Call[str]] = []
    sent: list[bytes] = []
    for part, choice in parts_and_choices(cut(data, places), choices):
        calls = session.receive(part)
        assert all(type(call.message) is bytes and len(call.message) <= 2000 for call in calls)
        waiting += calls
        if choice < 5 and waiting:
            session.respond(waiting.pop(choice % len(waiting)), b"y" * 100 * choice)
        elif choice == 9:
            session.start_drain()
        if choice % 2:
            sent.append(session.data_to_send())
        unfinished = session.buffered_bytes - sum(1024 + len(call.message) for call in waiting)
        assert 0 <= unfinished < 2 * 8_000 + 1024 + len(data)
    for call in waiting:
        session.fail(call, 14, "done")
    sent.append(drain(session))
    event("broken" if session.closing else "survived")
    assert session.open_calls == 0
    assert session.data_to_send() == b""
    for frame in frames(b"".join(sent)):
        assert frame.stream_id >= 0
    if session.closing:
        assert session.receive(data) == []
        assert session.data_to_send() == b""


@given(st.binary(max_size=2000), cuts)
def test_garbage_behind_a_good_preface_is_survived(garbage: bytes, places: list[float]) -> None:
    for start in (b"", Peer().take()):
        session = Session(ROUTES)
        for part in cut(start + garbage, places):
            assert session.receive(part) == []
        assert len(drain(session)) < 40 * (len(garbage) + 10)
