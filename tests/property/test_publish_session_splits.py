"""However a connection cuts the broker's bytes, a publishing session reads the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ota_hook.publish.session import PublishSession, SessionError

PUBLISHES = 6
_ID = st.integers(1, PUBLISHES).map(lambda number: number.to_bytes(2))
_PACKETS = st.one_of(
    _ID.map(lambda packet_id: b"\x40\x02" + packet_id),
    st.just(b"\xd0\0"),
    st.binary(max_size=127).map(lambda body: b"\x30" + bytes((len(body),)) + body),
    st.integers(128, 700).map(lambda size: b"\x32" + bytes((size & 127 | 128, size >> 7)) + bytes(size)),
)


def started() -> PublishSession[int]:
    session = PublishSession[int]()
    session.receive(b"\x20\x02\0\0")
    for number in range(PUBLISHES):
        session.publish(b"t", b"", 1, number)
    return session


def read(session: PublishSession[int], pieces: list[bytes]) -> tuple[list[int], bool]:
    """What was acknowledged, and whether the session ended with an error."""
    acknowledged: list[int] = []
    try:
        for piece in pieces:
            acknowledged += session.receive(piece)
    except SessionError:
        return acknowledged, True
    return acknowledged, False


@given(st.lists(_PACKETS, max_size=12), st.data())
def test_splits_change_nothing(packets: list[bytes], data: st.DataObject) -> None:
    one_by_one = read(started(), packets)
    stream = b"".join(packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    acknowledged, failed = read(started(), pieces)
    assert failed == one_by_one[1]
    if not failed:
        assert acknowledged == one_by_one[0]


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    acknowledged, _ = read(started(), pieces)
    assert len(set(acknowledged)) == len(acknowledged)
