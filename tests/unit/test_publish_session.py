"""The packets of a connection that only publishes, byte for byte as MQTT 3.1.1 has them."""

from __future__ import annotations

import pytest

from ota_hook.publish.session import PublishSession, SessionError

CONNACK = bytes.fromhex("20020000")


def accepted_session() -> PublishSession[str]:
    session = PublishSession[str]()
    session.connect(client_id="c", username=None, password=None, keepalive_s=60)
    session.take_output()
    assert session.receive(CONNACK) == []
    assert session.accepted
    return session


@pytest.mark.parametrize(
    ("username", "password", "flags", "tail"),
    [
        (None, None, 0x02, b""),
        (None, "p", 0x02, b""),
        ("u", None, 0x82, b"\0\1u"),
        ("u", "pä", 0xC2, b"\0\1u\0\3p\xc3\xa4"),
    ],
)
def test_connect_asks_for_a_clean_session(username: str | None, password: str | None, flags: int, tail: bytes) -> None:
    session = PublishSession[str]()
    session.connect(client_id="id", username=username, password=password, keepalive_s=300)
    body = b"\0\4MQTT\4" + bytes((flags,)) + b"\x01\x2c\0\2id" + tail
    assert session.take_output() == b"\x10" + bytes((len(body),)) + body
    assert session.take_output() == b""


def test_a_publish_carries_a_packet_id_only_above_qos_0() -> None:
    session = accepted_session()
    for qos in range(3):
        session.publish(b"a/b", b"xy", qos, f"at {qos}")
    assert session.take_output() == b"\x30\x07\0\3a/bxy" + b"\x32\x09\0\3a/b\0\1xy" + b"\x34\x09\0\3a/b\0\2xy"
    assert session.in_flight == 2
    assert session.oldest == "at 1"


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_151, b"\xff\xff\x7f"),
        (2_097_152, b"\x80\x80\x80\x01"),
    ],
)
def test_the_length_has_seven_bits_a_byte(size: int, length: bytes) -> None:
    session = accepted_session()
    payload = bytes(size - 3)
    session.publish(b"t", payload, 0, "")
    assert session.take_output() == b"\x30" + length + b"\0\1t" + payload


def test_an_acknowledgement_names_its_publish() -> None:
    session = accepted_session()
    session.publish(b"t", b"", 1, "one")
    session.publish(b"t", b"", 1, "two")
    assert session.receive(b"\x40\x02\0\2") == ["two"]
    assert session.receive(b"\x40\x02\0\1") == ["one"]
    assert session.in_flight == 0
    assert session.oldest is None


def test_at_qos_2_the_broker_has_it_when_the_release_is_confirmed() -> None:
    session = accepted_session()
    session.publish(b"t", b"", 2, "one")
    session.take_output()
    assert session.receive(b"\x50\x02\0\1") == []
    assert session.take_output() == b"\x62\x02\0\1"
    assert session.in_flight_at_qos_2 == 1
    assert session.receive(b"\x70\x02\0\1") == ["one"]
    assert session.in_flight == session.in_flight_at_qos_2 == 0


def test_packet_ids_begin_anew_and_leave_out_those_in_flight() -> None:
    session = accepted_session()
    session.publish(b"t", b"", 1, "stays")
    for _ in range(65_534):
        session.publish(b"t", b"", 1, "goes")
        session.receive(b"\x40\x02" + session._last_id.to_bytes(2))
    session.take_output()
    session.publish(b"t", b"", 1, "next")
    assert session.take_output() == b"\x32\x05\0\1t\0\2"
    assert session.drain() == ["stays", "next"]


def test_what_a_broker_publishes_to_everyone_is_passed_over() -> None:
    session = accepted_session()
    session.publish(b"t", b"", 1, "one")
    forced = b"\x32\xac\x02" + bytes(300)
    assert session.receive(forced + b"\x40\x02\0\1") == ["one"]


def test_a_pong_is_no_news() -> None:
    session = accepted_session()
    session.ping()
    assert session.take_output() == b"\xc0\0"
    assert session.receive(b"\xd0\0") == []


def test_disconnect_is_a_packet() -> None:
    session = accepted_session()
    session.disconnect()
    assert session.take_output() == b"\xe0\0"


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "MQTT 3.1.1"), (2, "client id"), (4, "password"), (5, "not authorized"), (99, "code 99")]
)
def test_a_refusal_says_why(code: int, reason: str) -> None:
    session = PublishSession[str]()
    with pytest.raises(SessionError, match=reason):
        session.receive(bytes((0x20, 2, 0, code)))
    assert not session.accepted


@pytest.mark.parametrize(
    "data",
    [
        CONNACK,  # a second one
        b"\x40\x02\0\2",  # PUBACK of what was not sent
        b"\x50\x02\0\1",  # PUBREC of a publish at qos 1
        b"\x70\x02\0\1",  # PUBCOMP likewise
        b"\x40\x03\0\1\0",  # PUBACK of another length
        b"\x90\x03\0\1\0",  # SUBACK
        b"\x62\x02\0\1",  # PUBREL
        b"HTTP/1.1 200 OK",
        b"\x30\xff\xff\xff\xff",  # a PUBLISH of impossible length
    ],
)
def test_what_mqtt_does_not_allow_here_ends_the_session(data: bytes) -> None:
    session = accepted_session()
    session.publish(b"t", b"", 1, "one")
    with pytest.raises(SessionError):
        session.receive(data)


def test_nothing_comes_before_the_broker_accepted() -> None:
    session = PublishSession[str]()
    with pytest.raises(SessionError):
        session.receive(b"\xd0\0")
