"""MessagePublish requests as EMQX sends them, and what the generated class says of any request: the codec's oracle."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from ota_hook.exhook._codec import Publish
from ota_hook.exhook.exhook_pb2 import MessagePublishRequest

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

PublishFields = tuple[str, bytes, str, str, int, int]
"""Topic, payload, client id, user name, qos, timestamp in ms."""


def fields_by_generated_class(request: bytes) -> PublishFields | None:
    """None where it raises DecodeError."""
    try:
        message = MessagePublishRequest.FromString(request).message
    except DecodeError:
        return None
    return (
        message.topic,
        message.payload,
        getattr(message, "from"),
        message.headers.get("username", ""),
        message.qos,
        message.timestamp,
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
