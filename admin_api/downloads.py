"""`GET|HEAD /firmware/{id}/{filename}`: what devices download, whole or in ranges, without a token.

RFC 9110 §13 and §14. A package never changes under its address, so that its ETag is its sha256.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Sequence
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from admin_api.answers import Responses, problems
from admin_api.conditions import parse_entity_tags
from admin_api.context import Context
from admin_api.problems import problem_response
from ota_hook.admission.firmware import find_firmware
from ota_hook.errors import DependencyError, InputError, NotFound
from ota_hook.model import Firmware
from ota_hook.ports.packages import PackageReader

router = APIRouter(tags=["downloads"])

RANGES_MAX: Final = 16
CHUNK_MIN_BYTES: Final = 64 * 1024
CHUNK_MAX_BYTES: Final = 1024 * 1024
STALL_S: Final = 600.0
"""A client that takes no chunk for so long is given up."""
_FAST_S: Final = 0.05
_SLOW_S: Final = 0.5

_RANGE: Final = re.compile(r"(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


class Span(NamedTuple):
    """Bytes `start` up to, not including, `end`."""

    start: int
    end: int


def parse_range(header: str, size_bytes: int) -> list[Span] | None:
    """The spans that a Range header asks for: ascending, none touching another.

    None: to be ignored (another unit, not well formed, over 16 ranges). Empty: none of them lies in the file (416).
    """
    unit, _, ranges = header.partition("=")
    specs = [spec.strip() for spec in ranges.split(",")]
    specs = [spec for spec in specs if spec]  # RFC 9110 §5.6.1: empty list elements don't count
    if unit.strip().lower() != "bytes" or not 1 <= len(specs) <= RANGES_MAX:
        return None
    spans = []
    for spec in specs:
        match = _RANGE.fullmatch(spec)
        if match is None:
            return None
        first, last, suffix = match.groups()
        if suffix is not None:
            spans.append(Span(max(size_bytes - int(suffix), 0), size_bytes))
        elif last and int(last) < int(first):
            return None
        else:
            spans.append(Span(int(first), min(int(last) + 1, size_bytes) if last else size_bytes))
    return _merged([span for span in spans if span.start < span.end])


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def _without_token(*statuses: int) -> Responses:
    return {status: response for status, response in problems(*statuses).items() if status != 401}


@router.head(
    "/firmware/{firmware_id}/{filename}",
    summary="What a download would be: its size and its digest",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        304: {"description": "Unchanged."},
        **_without_token(404, 410, 412),
    },
)
@router.get(
    "/firmware/{firmware_id}/{filename}",
    summary="Download a firmware's package",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The ranges asked for."},
        304: {"description": "Unchanged."},
        **_without_token(404, 410, 412, 416),
    },
)
async def download_firmware(context: Context, request: Request, firmware_id: str, filename: str) -> Response:
    firmware = find_firmware(context.catalogue.current, firmware_id)
    if filename != firmware.package.filename:
        raise NotFound("This firmware's file has another name.")
    headers = _headers(firmware)
    status = _precondition(request, headers)
    if status == HTTPStatus.NOT_MODIFIED:
        return Response(status_code=status, headers={k: v for k, v in headers.items() if k != "Content-Type"})
    if status is not None:
        return problem_response(status, "The file is not as If-Match or If-Unmodified-Since expects.")
    size_bytes = firmware.package.size_bytes
    spans = _requested(request, headers, size_bytes)
    if spans is not None and not spans:
        return problem_response(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The file has {size_bytes} bytes; no requested range lies in it.",
            headers={"Content-Range": f"bytes */{size_bytes}", "Accept-Ranges": "bytes"},
        )
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(size_bytes)})
    return PackageResponse(await context.packages.open(firmware.id), size_bytes, spans, headers)


def _headers(firmware: Firmware) -> dict[str, str]:
    package = firmware.package
    name = quote(package.filename, safe="")
    digest = base64.b64encode(bytes.fromhex(package.sha256)).decode()
    return {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{package.sha256}"',
        "Last-Modified": formatdate(firmware.created_at_ms // 1000, usegmt=True),
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "X-Content-Type-Options": "nosniff",
        # Its bytes never change, but it may be deleted: caches ask again, and the ETag makes that cheap.
        "Cache-Control": "public, max-age=300",
    }


def _precondition(request: Request, headers: dict[str, str]) -> HTTPStatus | None:
    """304 or 412 where the request's conditions say so, in the order of RFC 9110 §13.2.2."""
    asked, etag = request.headers, headers["ETag"]
    if "if-match" in asked:
        if not _names(asked["if-match"], etag):
            return HTTPStatus.PRECONDITION_FAILED
    elif "if-unmodified-since" in asked and _is_after(headers["Last-Modified"], asked["if-unmodified-since"]):
        return HTTPStatus.PRECONDITION_FAILED
    if "if-none-match" in asked:
        return HTTPStatus.NOT_MODIFIED if _names(asked["if-none-match"], etag, weakly=True) else None
    since = asked.get("if-modified-since")
    if since is not None and _is_after(headers["Last-Modified"], since) is False:
        return HTTPStatus.NOT_MODIFIED
    return None


def _names(header: str, etag: str, *, weakly: bool = False) -> bool:
    try:
        tags = parse_entity_tags(header)
    except InputError:
        return False
    return "*" in tags or etag in (tags if not weakly else [tag.removeprefix("W/") for tag in tags])


def _is_after(modified: str, date: str) -> bool | None:
    """Whether the file is younger than `date`; None where that is no date."""
    try:
        return parsedate_to_datetime(modified) > parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None


def _requested(request: Request, headers: dict[str, str], size_bytes: int) -> list[Span] | None:
    """The spans to send; None: the whole file. If-Range needs our very ETag or date."""
    header = request.headers.get("range")
    if header is None or request.method != "GET":
        return None
    if request.headers.get("if-range", headers["ETag"]) not in (headers["ETag"], headers["Last-Modified"]):
        return None
    return parse_range(header, size_bytes)


class PackageResponse(Response):
    """Streams an open package and closes it. At most two chunks are in memory; a slow client gets smaller ones."""

    def __init__(
        self, reader: PackageReader, size_bytes: int, spans: list[Span] | None, headers: dict[str, str]
    ) -> None:
        self._reader = reader
        self._parts: list[tuple[bytes, Span]] = [(b"", span) for span in spans or [Span(0, size_bytes)]]
        self._tail = b""
        if spans is not None and len(spans) == 1:
            headers = headers | {"Content-Range": f"bytes {spans[0].start}-{spans[0].end - 1}/{size_bytes}"}
        elif spans is not None:
            headers = headers | self._frame(spans, size_bytes, headers["Content-Type"])
        length = sum(len(head) + span.end - span.start for head, span in self._parts) + len(self._tail)
        status = HTTPStatus.OK if spans is None else HTTPStatus.PARTIAL_CONTENT
        super().__init__(status_code=status, headers=headers | {"Content-Length": str(length)})

    def _frame(self, spans: Sequence[Span], size_bytes: int, content_type: str) -> dict[str, str]:
        boundary = secrets.token_hex(16)
        self._parts = [
            (
                f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
                f"Content-Range: bytes {span.start}-{span.end - 1}/{size_bytes}\r\n\r\n".encode(),
                span,
            )
            for span in spans
        ]
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        return {"Content-Type": f"multipart/byteranges; boundary={boundary}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for head, span in self._parts:
                if head:
                    await send({"type": "http.response.body", "body": head, "more_body": True})
                await self._send_span(span, send, gone)
                if gone.done():
                    return
            await send({"type": "http.response.body", "body": self._tail, "more_body": False})
        except TimeoutError:
            return  # the server ends a connection whose answer is left unfinished
        finally:
            gone.cancel()
            await asyncio.shield(self._reader.close())

    async def _send_span(self, span: Span, send: Send, gone: asyncio.Future[None]) -> None:
        offset, chunk_bytes = span.start, CHUNK_MIN_BYTES
        while offset < span.end and not gone.done():
            chunk = await self._reader.read(offset, min(chunk_bytes, span.end - offset))
            if not chunk:
                raise DependencyError("The package in the store is shorter than it was.")
            offset += len(chunk)
            began = time.monotonic()
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk_bytes = _next_chunk_bytes(chunk_bytes, time.monotonic() - began)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _next_chunk_bytes(chunk_bytes: int, took_s: float) -> int:
    """Large chunks for who takes them at once, small ones for the many slow: each holds its chunk in memory."""
    if took_s < _FAST_S:
        return min(chunk_bytes * 2, CHUNK_MAX_BYTES)
    return max(chunk_bytes // 2, CHUNK_MIN_BYTES) if took_s > _SLOW_S else chunk_bytes
