"""A gRPC server's side of one HTTP/2 connection, sans I/O: bytes in, calls out, bytes out.

The caller owns the transport. After `receive`, after answers, and whenever the transport will take more, it writes what
`data_to_send` gives until that is empty; then it looks at `closing` and `paused`. Unary calls alone.

Errors of a call are trailers-only answers: no conforming peer ever sees a RST_STREAM. Statuses:

| the request | gRPC status |
| --- | --- |
| unknown path; no message or more than one; compressed with an encoding (none is known) | 12 UNIMPLEMENTED |
| longer than `max_message_bytes`; a header list over its bound; too much unfinished or unread on the connection | 8 |
| compressed without an encoding; another flag; the end within the message | 13 INTERNAL |
| a content-type other than application/grpc | 3, with HTTP status 415 |
| a method other than POST | 13, with HTTP status 405 |
"""

from types import GenericAlias
from typing import Generic, Never, Self, TypeVar, final

_Route = TypeVar("_Route")

@final
class Call(Generic[_Route]):
    """One whole request. Answered once, by `respond` or `fail`, even when the peer has reset it."""

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """TypeError: calls come from `Session.receive`."""

    @property
    def route(self) -> _Route:
        """What the table holds for the request's path."""

    @property
    def message(self) -> bytes:
        """Without gRPC's prefix."""

    @property
    def stream_id(self) -> int: ...
    @property
    def timeout_ms(self) -> int | None:
        """The peer's grpc-timeout, rounded up; None where it sent none, or one that can't be read."""

    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...

@final
class Session(Generic[_Route]):
    """One connection. Holds no more than its bounds, whatever the peer does; not for use by two threads at once."""

    def __new__(
        cls,
        routes: dict[bytes, _Route],
        *,
        max_message_bytes: int = 4194304,
        max_header_list_bytes: int = 65536,
        max_request_bytes: int = 8388608,
        max_answer_bytes: int = 1048576,
        retire_at_stream_id: int = 1073741824,
    ) -> Self:
        """`routes`: path, like b"/emqx.exhook.v2.HookProvider/OnMessagePublish", to what its calls carry; kept, not
        copied, so one table serves every connection.

        A stream counts 1 KiB beside its message in each of these:
        - `max_request_bytes` of unfinished requests: further ones get RESOURCE_EXHAUSTED, and at twice that the
          connection ends. Of calls in work: `paused`. Raised where it couldn't hold one message.
        - `max_answer_bytes` of answers that could be sent and weren't taken: `paused`. Of answers that the peer's flow
          control holds back: reading goes on, as it must to see the window open; at four times that, new calls get
          RESOURCE_EXHAUSTED.

        From `retire_at_stream_id` on the session drains by itself; stream ids end at 2^31.
        """

    def receive(self, data: bytes | bytearray | memoryview) -> list[Call[_Route]]:
        """The calls that these bytes complete. Never raises on any bytes; after a connection error there are none."""

    def respond(self, call: Call[_Route], message: bytes) -> None:
        """Answer with a message and status OK. Nothing happens where the call was answered or its stream is gone.

        ValueError for a call of another session.
        """

    def fail(self, call: Call[_Route], status: int, message: str = "") -> None:
        """Answer with a gRPC status from 1 to 16 and a text, cut after 1,024 characters. Otherwise as `respond`."""

    def data_to_send(self) -> bytes:
        """The next piece, 64 KiB at most; empty when there is nothing that may be sent now."""

    def start_drain(self) -> None:
        """Say goodbye (GOAWAY) as soon as no call is open, never before: the broker loses calls that are. Then see
        `drained`; `data_to_send` carries it."""

    @property
    def open_calls(self) -> int:
        """Calls handed out and not answered."""

    @property
    def open_streams(self) -> int:
        """Streams that either side hasn't ended: unfinished requests, open calls, answers not yet sent."""

    @property
    def draining(self) -> bool: ...
    @property
    def drained(self) -> bool:
        """The goodbye was handed out and no call is open. A call that crossed it is still answered: wait a moment for
        the peer to close, then close the transport."""

    @property
    def closing(self) -> bool:
        """Nothing will come of this connection any more, and `data_to_send` has given all: close the transport once it
        is written. A connection error, or the peer's GOAWAY with no call open."""

    @property
    def paused(self) -> bool:
        """Too much is in work, or waits to be sent: don't read from the transport until this is False."""

    @property
    def buffered_bytes(self) -> int:
        """What the bounds count at this moment, for metrics."""

    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
