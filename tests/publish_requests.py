"""MessagePublish requests, ordinary and not, and what the generated class says of any: the codec's oracle."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from ota_hook.exhook._codec import Publish
from ota_hook.exhook.exhook_pb2 import MessagePublishRequest

PublishFields = tuple[str, bytes, str, str, int, int]
"""Topic, payload, client id, user name, qos, timestamp in ms."""

MESSAGE = (
    b"\n\x0femqx@172.17.0.2"
    b"\x12 000634F6C0F1D2B2F4450000082A0001"
    b"\x18\x01"
    b'"\x17DU_7VFGiJjjv8QoS-client'
    b"*\x1devent_report/DU_7VFGiJjjv8QoS"
    b'2!{"method":"otaCheck","params":{}}'
    b"8\xad\xcf\xec\x90\xf82"
    b"B\x15\n\rallow_publish\x12\x04true"
    b"B\x16\n\x08peerhost\x12\n172.17.0.1"
    b"B\x10\n\x08protocol\x12\x04mqtt"
    b"B\x1c\n\x08username\x12\x10DU_7VFGiJjjv8QoS"
)
META = b'\x12&\n\x0femqx@172.17.0.2\x12\x055.8.9\x1a\x04EMQX"\x06emqxcl'
PROPS = b'\x1a\x1d\n\x17Message-Expiry-Interval\x12\x0260"\x0c\n\x05trace\x12\x03abc'

V2_CHECK = b"\n\xf6\x01" + MESSAGE + META
V3_CHECK = V2_CHECK + PROPS
CHECK_FIELDS = (
    "event_report/DU_7VFGiJjjv8QoS",
    b'{"method":"otaCheck","params":{}}',
    "DU_7VFGiJjjv8QoS-client",
    "DU_7VFGiJjjv8QoS",
    1,
    1_750_234_507_181,
)


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field of fewer than 128 bytes, or of fewer than 16,384."""
    size = len(body)
    return bytes([number << 3 | 2, *([size] if size < 128 else [size & 0x7F | 0x80, size >> 7])]) + body


def message(*fields: bytes) -> bytes:
    return field(1, b"".join(fields))


def fields_by_generated_class(request: bytes) -> PublishFields | None:
    """None where it raises DecodeError."""
    try:
        publish = MessagePublishRequest.FromString(request).message
    except DecodeError:
        return None
    return (
        publish.topic,
        publish.payload,
        getattr(publish, "from"),
        publish.headers.get("username", ""),
        publish.qos,
        publish.timestamp,
    )


def fields_of(publish: Publish | None) -> PublishFields | None:
    if publish is None:
        return None
    return (
        publish.topic,
        publish.payload,
        publish.clientid,
        publish.username,
        publish.qos,
        publish.timestamp_ms,
    )


UNUSUAL: dict[str, tuple[bytes, PublishFields]] = {
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

BAD_TEXT = b"eight888\xff"
REFUSED = {
    "text that is no UTF-8 in node": message(field(1, BAD_TEXT)),
    "text that is no UTF-8 in id": message(field(2, BAD_TEXT)),
    "text that is no UTF-8 in from": message(field(4, BAD_TEXT)),
    "text that is no UTF-8 in topic": message(field(5, BAD_TEXT)),
    "text that is no UTF-8 in a topic before the last": message(field(5, BAD_TEXT), field(5, b"a")),
    "text that is no UTF-8 in a user name before the last": message(
        field(8, field(1, b"username") + field(2, BAD_TEXT)), field(8, field(1, b"username") + field(2, b"a"))
    ),
    "text that is no UTF-8 in a header's key": message(field(8, field(1, BAD_TEXT))),
    "text that is no UTF-8 in a header's value": message(field(8, field(1, b"protocol") + field(2, BAD_TEXT))),
    "text that is no UTF-8 in the user name": message(field(8, field(1, b"username") + field(2, BAD_TEXT))),
    "text that is no UTF-8 in meta": field(2, field(4, BAD_TEXT)),
    "text that is no UTF-8 in props": field(3, field(1, BAD_TEXT)),
    "text that is no UTF-8 in user_props": field(4, field(2, BAD_TEXT)),
    "a surrogate": message(field(5, b"\xed\xa0\x80")),
    "an overlong NUL": message(field(5, b"\xc0\x80")),
    "field number 0": b"\x02\x00",
    "field number 0 in meta": field(2, b"\x02\x00"),
    "field number 0 behind a tag of two bytes": field(2, b"\x82\x00"),
    "field number 0 in a header": message(field(8, b"\x02\x00")),
    "a text of meta as a number": field(2, b"\x08\x02\x0a\x05"),
    "a length of six bytes": message(b"\x2a\x81\x80\x80\x80\x80\x00a"),
    "a number of eleven bytes": message(b"\x38" + b"\x80" * 10 + b"\x01"),
    "a length beyond the end": b"\x0a\x05",
    "a length beyond the message's end": message(b"\x2a\x02a") + b"a",
    "a group that does not end": b"\x53",
    "a group's end alone": b"\x54",
}
