"""Request bodies within bounds: JSON routes that read no more than a megabyte, and lines of a stream."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from admin_api.problems import too_large, unsupported_media_type
from ota_hook.errors import InputError

JSON_BODY_MAX_BYTES: Final = 1024 * 1024
LINE_MAX_BYTES: Final = 64 * 1024
STALL_S: Final = 60.0
"""A client that brings nothing for so long, or takes nothing, is given up."""
PACE_BYTES_A_S: Final = 16 * 1024
"""What a body brings at least, over the whole of it: heavy requests are few at a time, and others wait for a place."""
LINGER_S: Final = 1.0
LINGER_BYTES: Final = 16 * 1024 * 1024
"""So much of a body, for so long, is read after it was answered."""

NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
_NDJSON_TYPES: Final = (NDJSON, "application/ndjson", "application/jsonl")
_QUALITY: Final = re.compile(r"q\s*=\s*([01](?:\.[0-9]{0,3})?)")
_CHARSET: Final = re.compile(r';\s*charset\s*=\s*"?([^\s;"]+)', re.IGNORECASE)
_BOM: Final = b"\xef\xbb\xbf"
_LINES_AT_ONCE: Final = 200
"""A millisecond of parsing."""
_Passed = TypeVar("_Passed")
_JSON_TYPES: Final = frozenset({"application/json", "application/merge-patch+json"})


def media_type_of(request: Request) -> str:
    """The Content-Type without its parameters, in small letters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def declared_length(request: Request) -> int | None:
    """The Content-Length; None where the client does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


class JsonRoute(APIRoute):
    """A route whose body, where it takes one, is JSON of at most a megabyte: else 415, 413 or 408.

    A body that need not be there may be left out whole.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None
        needs_body = self.body_field is not None and self.body_field.field_info.is_required()

        async def handle_within_bounds(request: Request) -> Response:
            if needs_body or (takes_body and _announces_body(request.scope)):
                _refuse_encoded(request)
                if media_type_of(request) not in _JSON_TYPES:
                    raise unsupported_media_type("The body must be application/json.")
                if (declared_length(request) or 0) > JSON_BODY_MAX_BYTES:
                    raise _json_too_large()
                request = Request(request.scope, _bounded(request.receive))
            return await handle(request)

        return handle_within_bounds


def _refuse_encoded(request: Request) -> None:
    """415 for a compressed body (RFC 9110 §15.5.16): its bytes would be taken for text."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be sent as it is, not in {encoding[:64]!r}.",
            {"Accept-Encoding": "identity"},
        )


def _bounded(receive: Receive) -> Receive:
    read_bytes = 0
    receive_in_time = _in_time(receive)

    async def receive_within_bounds() -> Message:
        nonlocal read_bytes
        message = await receive_in_time()
        read_bytes += len(message.get("body", b""))
        if read_bytes > JSON_BODY_MAX_BYTES:
            raise _json_too_large()
        return message

    return receive_within_bounds


def _json_too_large() -> HTTPException:
    return too_large(f"The body has more than {JSON_BODY_MAX_BYTES} bytes.")


class Pace:
    """How long a client may keep us waiting: `stall_s` at a time, and in all that and a second for each 16 KiB.

    Only waiting counts: what is done with the bytes in between is not the client's time.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = self._left_s = stall_s

    async def keep(self, passing: Awaitable[_Passed], size_of: Callable[[_Passed], int]) -> _Passed:
        """Wait for bytes to pass. TimeoutError where that takes too long."""
        begun_s = time.monotonic()
        async with asyncio.timeout(min(self._left_s, self._stall_s)):
            passed = await passing
        self._left_s += size_of(passed) / PACE_BYTES_A_S - (time.monotonic() - begun_s)
        return passed


def body_bytes(message: Message) -> int:
    return len(message.get("body", b""))


def _in_time(receive: Receive) -> Receive:
    pace = Pace(STALL_S)

    async def receive_in_time() -> Message:
        try:
            return await pace.keep(receive(), body_bytes)
        except TimeoutError as exc:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "The body came too slowly.") from exc

    return receive_in_time


async def stream_body(request: Request) -> AsyncIterator[bytes]:
    """The body's pieces as they come; 408 where they come too slowly, ClientDisconnect where the client goes away."""
    _refuse_encoded(request)
    bounded = Request(request.scope, _in_time(request.receive))
    async for chunk in bounded.stream():
        if chunk:
            yield chunk


async def read_lines(request: Request) -> AsyncIterator[list[tuple[int, bytes]]]:
    """The numbered lines (from 1) of a body, up to 200 at a time, empty ones left out. Others get their turn between.

    A byte order mark before the first is left out. A line over 64 KiB is an InputError.
    """
    number = 0
    rest = b""
    async for chunk in stream_body(request):
        *lines, rest = (rest + chunk).split(b"\n")
        if number == 0 and lines:
            lines[0] = lines[0].removeprefix(_BOM)
        _short_enough(rest, number + len(lines) + 1)
        for start in range(0, len(lines), _LINES_AT_ONCE):
            some = lines[start : start + _LINES_AT_ONCE]
            yield [(n, _short_enough(line, n)) for n, line in enumerate(some, number + 1) if line.strip()]
            number += len(some)
            await asyncio.sleep(0)
    if number == 0:
        rest = rest.removeprefix(_BOM)
    if rest.strip():
        yield [(number + 1, rest)]


def _short_enough(line: bytes, number: int) -> bytes:
    if len(line) > LINE_MAX_BYTES:
        raise InputError(f"Line {number} has more than {LINE_MAX_BYTES} bytes.")
    return line


def choose_accepted(request: Request, media_types: Sequence[str]) -> str:
    """The media type that the client likes best, of equals the first; 406 where it can read none (RFC 9110 §12.5.1)."""
    given = ",".join(request.headers.getlist("accept"))
    if not given.strip(" ,"):
        return media_types[0]
    qualities = dict(_read_quality(entry) for entry in given.split(","))
    best = max(media_types, key=lambda media_type: _quality_of(media_type, qualities))
    if not _quality_of(best, qualities):
        only = "alone" if len(media_types) == 1 else "only"
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, f"This is available as {' or '.join(media_types)} {only}.")
    return best


def _quality_of(media_type: str, qualities: Mapping[str, float]) -> float:
    """What the most specific range says of it."""
    names = _NDJSON_TYPES if media_type == NDJSON else (media_type,)
    for media_ranges in (names, (media_type.partition("/")[0] + "/*",), ("*/*",)):
        found = [qualities[media_range] for media_range in media_ranges if media_range in qualities]
        if found:
            return max(found)
    return 0.0


def _read_quality(entry: str) -> tuple[str, float]:
    """`Text/CSV; q=0.5` → `("text/csv", 0.5)`; 1 where no quality is given that can be read."""
    media_range, *parameters = (part.strip().lower() for part in entry.split(";"))
    found = filter(None, map(_QUALITY.fullmatch, parameters))
    return media_range, next((float(quality[1]) for quality in found), 1.0)


def require_lines(request: Request) -> str:
    """NDJSON or CSV, whichever the body is; 415 for any other, and for CSV in another encoding than UTF-8."""
    media_type = media_type_of(request)
    if media_type in _NDJSON_TYPES:
        return NDJSON
    if media_type != CSV:
        raise unsupported_media_type(
            "The body must be application/x-ndjson, one JSON object a line, or text/csv with a header line."
        )
    charset = _CHARSET.search(request.headers["content-type"])
    if charset is not None and charset[1].lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise unsupported_media_type("CSV must be in UTF-8.")
    return CSV


class CloseUnread:
    """ASGI: an answer given before the body was read ends the connection, so that nobody sends all the rest in vain.

    It ends a little later: a connection closed on bytes under way is reset, and the client would lose the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _announces_body(scope):
            await self._app(scope, receive, send)
            return
        all_read = False

        async def noting_receive() -> Message:
            nonlocal all_read
            message = await receive()
            all_read = all_read or message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def closing_send(message: Message) -> None:
            if all_read:
                await send(message)
            elif message["type"] == "http.response.start":
                await send({**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]})
            elif message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "more_body": True})
                await _linger(noting_receive)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, noting_receive, closing_send)


async def _linger(receive: Receive) -> None:
    """Read on for a while, to nowhere."""
    read_bytes, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while more and read_bytes < LINGER_BYTES:
                message = await receive()
                read_bytes += len(message.get("body", b""))
                more = bool(message.get("more_body", False))


def _announces_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )
