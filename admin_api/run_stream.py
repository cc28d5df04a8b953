"""A run as server-sent events: what it is whenever that changed, until it is over, the client goes or the service ends.

It looks at the run twice a second and holds nothing in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from admin_api.context import AdminContext
from admin_api.documents.runs import RunOut
from ota_hook.errors import DependencyError

EVENT_STREAM: Final = "text/event-stream"
STREAMS_MAX: Final = 100
LOOK_S: Final = 0.5
HEARTBEAT_S: Final = 15.0
_LAST_LOOKS: Final = 10
"""At a run that is over: what its devices were at is counted anew a moment after it was cancelled."""
_RETRY: Final = b"retry: 2000\n\n"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class RunStreams:
    """How many streams are open: each asks Redis again and again, so they are bounded."""

    def __init__(self) -> None:
        self._open = 0

    def open(self, context: AdminContext, run_id: str) -> StreamingResponse:
        """The response. DependencyError where too many are open."""
        if self._open >= STREAMS_MAX:
            raise DependencyError(f"{STREAMS_MAX} streams of runs are open already.", mend="Try again later.")
        return _CountedResponse(self, run_events(context, run_id))

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class _CountedResponse(StreamingResponse):
    """Counts while it is sent."""

    def __init__(self, streams: RunStreams, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers=_HEADERS, media_type=EVENT_STREAM)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.counted():
            await super().__call__(scope, receive, send)


async def run_events(context: AdminContext, run_id: str) -> AsyncIterator[bytes]:
    """The stream's pieces. While Redis does not answer there are heartbeats alone."""
    yield _RETRY
    shown, said_at_s = "", time.monotonic()
    last_looks = _LAST_LOOKS
    while not context.closing.is_set():
        with contextlib.suppress(DependencyError):
            run = await context.runs.load_run(run_id)
            if run is None:
                return
            document = RunOut.of(run).model_dump_json()
            if document != shown:
                shown, said_at_s = document, time.monotonic()
                yield f"event: run\ndata: {document}\n\n".encode()
            if run.state.is_final:
                last_looks -= 1
                if not last_looks or all(outcome.is_final for outcome in run.counters):
                    return
        if time.monotonic() - said_at_s >= HEARTBEAT_S:
            said_at_s = time.monotonic()
            yield b": still there\n\n"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(context.closing.wait(), LOOK_S)
