"""How many requests that read or write many devices run at a time: the service has other work too."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Final

from fastapi import HTTPException, Request
from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from admin_api.auth import API_PREFIX
from admin_api.bodies import NDJSON, STALL_S, Pace, body_bytes, choose_accepted
from admin_api.problems import RETRY_AFTER_S, problem_response

HEAVY_AT_ONCE: Final = 2
HEAVY_WAIT_S: Final = 10.0

_STREAMS: Final = re.compile(
    rf"{API_PREFIX}/(devices-(import|export)|firmware/[^/]+/devices|device-types/[^/]+/versions)"
)
_RUN_DEVICES: Final = re.compile(rf"{API_PREFIX}/runs/[^/]+/devices")
_DEVICES: Final = f"{API_PREFIX}/devices"
_FILTERS: Final = frozenset({"type", "tag"})


class LimitHeavy:
    """ASGI: at most two heavy requests run at once; the next waits up to ten seconds and is then refused (503).

    Heavy are imports, exports, device lists, a run's devices as a stream, counts of versions, and a page of the devices
    of one type or tag, which may read all. A client that takes its answer too slowly gives its place up, as one does
    that sends too slowly.
    """

    def __init__(
        self, app: ASGIApp, *, at_once: int = HEAVY_AT_ONCE, wait_s: float = HEAVY_WAIT_S, stall_s: float = STALL_S
    ) -> None:
        self._app = app
        self._places = asyncio.Semaphore(at_once)
        self._wait_s = wait_s
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_heavy(scope):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError:
            refusal = problem_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Other requests over many devices are still running.",
                mend="Try again when they are done.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
            await refusal(scope, receive, send)
            return
        try:
            await self._run(scope, receive, send)
        finally:
            self._places.release()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        stalled = False
        pace = Pace(self._stall_s)

        async def bounded_send(message: Message) -> None:
            nonlocal stalled
            try:
                await pace.keep(send(message), lambda _: body_bytes(message))
            except TimeoutError:
                stalled = True
                raise

        try:
            await self._app(scope, receive, bounded_send)
        except Exception:
            if not stalled:  # else the server ends a connection whose answer is left unfinished
                raise


def _is_heavy(scope: Scope) -> bool:
    path = scope["path"]
    if path == _DEVICES:
        return scope["method"] == "GET" and not _FILTERS.isdisjoint(QueryParams(scope["query_string"]))
    if _RUN_DEVICES.fullmatch(path):
        return _asks_for_lines(scope)
    return _STREAMS.fullmatch(path) is not None


def _asks_for_lines(scope: Scope) -> bool:
    try:
        return choose_accepted(Request(scope), ("application/json", NDJSON)) == NDJSON
    except HTTPException:  # the route says so
        return False
