"""The peer's side of a gRPC connection as raw bytes, on `h2`: another HTTP/2 than the one under test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import h2.config
import h2.connection
import h2.events
import h2.settings
from hyperframe.frame import Frame

PUBLISH = "/emqx.exhook.v2.HookProvider/OnMessagePublish"
LOADED = "/emqx.exhook.v2.HookProvider/OnProviderLoaded"
ROUTES: dict[bytes, str] = {PUBLISH.encode(): "v2 OnMessagePublish", LOADED.encode(): "v2 OnProviderLoaded"}

Headers = Sequence[tuple[str, str]]


class Speaker(Protocol):
    """The session, as far as `talk` needs it."""

    def data_to_send(self) -> bytes: ...


def broker_headers(path: str = PUBLISH, **changes: str | None) -> Headers:
    """What the broker sends with a call. `changes`: `_` for `-`, `_method` for `:method`, None leaves one out."""
    headers: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "127.0.0.1:9000",
        "content-type": "application/grpc+proto",
        "user-agent": "grpc-erlang/0.6.12",
        "grpc-encoding": "identity",
        "grpc-message-type": "emqx.exhook.v2.MessagePublishRequest",
        "te": "trailers",
        "grpc-timeout": "5S",
    }
    for name, value in changes.items():
        headers[(":" + name[1:] if name.startswith("_") else name).replace("_", "-")] = value
    return [(name, value) for name, value in headers.items() if value is not None]


def framed(message: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message behind gRPC's prefix."""
    return bytes((flag,)) + (len(message) if length is None else length).to_bytes(4, "big") + message


@dataclass(slots=True)
class Answer:
    """All that the peer has seen of one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        """The gRPC status; KeyError where none was sent."""
        return int((self.trailers or self.headers)["grpc-status"])

    @property
    def text(self) -> str:
        return (self.trailers or self.headers).get("grpc-message", "")

    @property
    def message(self) -> bytes:
        """The one message of the body."""
        assert self.body[:5] == framed(self.body[5:])[:5]
        return self.body[5:]


class Peer:
    """A client's connection. What it writes is kept in `take()`, what it reads is in `answers` and `events`.

    `window`: its flow control; `open_again`: it takes what it reads off its windows, as a client that reads does.
    """

    def __init__(self, *, window: int = 65_535, open_again: bool = True) -> None:
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.h2.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.events: list[h2.events.Event] = []
        self._open_again = open_again

    def take(self) -> bytes:
        """The bytes that the peer has written since the last time."""
        return self.h2.data_to_send()

    def call(self, message: bytes, headers: Headers | None = None) -> int:
        """A whole call as the broker makes it."""
        return self.send(framed(message), headers)

    def send(self, body: bytes | Iterable[bytes], headers: Headers | None = None, *, end: bool = True) -> int:
        """A request with this body, in one DATA frame or several."""
        stream_id = self.open(headers)
        parts = [body] if isinstance(body, bytes) else list(body)
        for index, part in enumerate(parts):
            self.write(stream_id, part, end=end and index == len(parts) - 1)
        return stream_id

    def open(self, headers: Headers | None = None, *, end: bool = False) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.answers[stream_id] = Answer()
        self.h2.send_headers(stream_id, broker_headers() if headers is None else headers, end_stream=end)
        return stream_id

    def write(self, stream_id: int, body: bytes, *, end: bool = False) -> None:
        limit = self.h2.max_outbound_frame_size
        while len(body) > limit:
            self.h2.send_data(stream_id, body[:limit])
            body = body[limit:]
        self.h2.send_data(stream_id, body, end_stream=end)

    def feed(self, data: bytes) -> None:
        """Read what the server wrote."""
        for event in self.h2.receive_data(data):
            self.events.append(event)
            match event:
                case h2.events.ResponseReceived(stream_id=stream_id, headers=headers):
                    self.answers[stream_id].headers = _pairs(headers)
                case h2.events.TrailersReceived(stream_id=stream_id, headers=headers):
                    self.answers[stream_id].trailers = _pairs(headers)
                case h2.events.DataReceived(stream_id=stream_id, data=body, flow_controlled_length=taken):
                    self.answers[stream_id].body += body
                    if self._open_again and taken:
                        self.h2.acknowledge_received_data(taken, stream_id)
                case h2.events.StreamEnded(stream_id=stream_id):
                    self.answers[stream_id].ended = True
                case h2.events.StreamReset(stream_id=stream_id, error_code=code):
                    self.answers[stream_id].reset = int(code)

    def seen(self, kind: type[h2.events.Event]) -> bool:
        return any(isinstance(event, kind) for event in self.events)


def drain(speaker: Speaker) -> bytes:
    """All that the session may send now."""
    pieces = []
    while piece := speaker.data_to_send():
        pieces.append(piece)
    return b"".join(pieces)


def frames(data: bytes) -> list[Frame]:
    """The HTTP/2 frames in what a server wrote."""
    view = memoryview(data)
    found = []
    while view:
        frame, length = Frame.parse_frame_header(view[:9])
        frame.parse_body(view[9 : 9 + length])
        found.append(frame)
        view = view[9 + length :]
    return found


def kinds(data: bytes) -> list[str]:
    """The names of those frames: "HEADERS", "DATA", …"""
    return [type(frame).__name__.removesuffix("Frame").upper() for frame in frames(data)]


def _pairs(headers: Iterable[tuple[bytes | str, bytes | str]] | None) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in headers or ()}


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
