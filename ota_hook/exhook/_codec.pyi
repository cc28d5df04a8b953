"""MessagePublish in, its rewriting out, compiled. Equal to the generated classes on every input.

The broker's messages are in protos/exhook.proto.
"""

from typing import Final, final

IGNORE: Final[bytes]
"""ValuedResponse{IGNORE}: the broker goes on as if it had not asked."""

@final
class Publish:
    """What is used of one publish. `""`, b"" and 0 stand for what the broker did not send, as in proto3.

    `clientid` is the message's `from`, `username` comes from its headers; `qos` is what was sent, be it above 2;
    `timestamp_ms` is the broker's clock, epoch milliseconds.
    """

    def __init__(
        self, topic: str, payload: bytes, clientid: str, username: str, qos: int, timestamp_ms: int
    ) -> None: ...
    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def clientid(self) -> str: ...
    @property
    def username(self) -> str: ...
    @property
    def qos(self) -> int: ...
    @property
    def timestamp_ms(self) -> int: ...

def read_publish(request: bytes) -> Publish | None:
    """The publish in a serialized MessagePublishRequest (v2 or v3); None where protobuf can't decode it.

    Never raises.
    """

def write_rewrite(topic: str, payload: bytes, qos: int) -> bytes:
    """ValuedResponse{STOP_AND_RETURN} with a message of that topic, payload and qos, serialized.

    Not checked here: some topics hurt the broker. UnicodeEncodeError for a topic with a lone surrogate, OverflowError
    for a qos that is no uint32.
    """
