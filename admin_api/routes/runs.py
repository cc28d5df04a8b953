"""`/runs`, and `/work/dead`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from admin_api.answers import answer, documented, problems
from admin_api.bodies import NDJSON, JsonRoute, choose_accepted
from admin_api.context import AdminContext, Context
from admin_api.documents.runs import DeadWorkOut, RunDetail, RunDeviceOut, RunOut
from admin_api.pagination import Page, PageQuery, make_cursor, read_cursor
from admin_api.run_stream import EVENT_STREAM, RunStreams
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.model import Outcome
from ota_hook.task import Run, RunDevice, RunState

router = APIRouter(prefix="/runs", tags=["runs"], route_class=JsonRoute)
work = APIRouter(prefix="/work", tags=["runs"], route_class=JsonRoute)

STATE_TEXT: Final = (
    "With `state` a page may have fewer entries than `limit`; there are more while `next_cursor` is not null."
)
_CHUNKS_PER_PAGE: Final = 40
"""So many pieces of some hundred devices a page looks through, where few devices are at the wanted outcome."""
_AT_WORK: Final = (RunState.WAITING, RunState.PLANNING, RunState.RUNNING)
_HALTED: Final = (RunState.PAUSED, RunState.STOPPED)
_JSON: Final = "application/json"


class RunQuery(PageQuery):
    """Which runs."""

    state: RunState | None = None


class RunDeviceQuery(PageQuery):
    """Which devices of a run."""

    outcome: Outcome | None = None


class DeadWorkQuery(BaseModel):
    """How many."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000)] = 100


async def _load(context: AdminContext, run_id: str) -> Run:
    run = await context.runs.load_run(run_id)
    if run is None:
        raise NotFound(
            f"There is no run {run_id[:64]!r}, or it is not kept any more.",
            mend="A run's id is not its task's: `ota-hook task runs` lists both.",
        )
    return run


def answer_run(run: Run, *, status: int = HTTPStatus.OK, location: str | None = None) -> Response:
    return answer(RunOut.of(run), status=status, location=location)


async def list_page(context: AdminContext, query: RunQuery, *, task_id: str | None = None) -> Page[RunOut]:
    """A page of runs (of a task), newest first."""
    before = None if query.cursor is None else read_cursor(query.cursor)
    runs, behind = await context.runs.page_runs(task_id=task_id, before=before, limit=query.limit, state=query.state)
    next_cursor = None if behind is None else make_cursor(behind)
    return Page[RunOut](items=[RunOut.of(run) for run in runs], next_cursor=next_cursor)


@router.get(
    "",
    summary="List runs, newest first",
    description=STATE_TEXT,
    responses=documented(Page[RunOut], 200) | problems(404),
)
async def list_runs(context: Context, query: Annotated[RunQuery, Query()]) -> Response:
    return answer(await list_page(context, query))


@router.get(
    "/{run_id}",
    summary="Read a run: its state, its counters, and the task as it was copied",
    responses=documented(RunDetail, 200) | problems(404),
)
async def read_run(context: Context, run_id: str) -> Response:
    return answer(RunDetail.of(await _load(context, run_id)))


# ---- its devices


@router.get(
    "/{run_id}/devices",
    summary="What became of each device",
    description="Pages of JSON, or with `Accept: application/x-ndjson` all of them, one a line. With `outcome` a page"
    " may have fewer entries than `limit`; there are more while `next_cursor` is not null.",
    responses={200: {"model": Page[RunDeviceOut], "content": {NDJSON: {}}}, **problems(404, 406)},
)
async def list_run_devices(
    context: Context, request: Request, run_id: str, query: Annotated[RunDeviceQuery, Query()]
) -> Response:
    media_type = choose_accepted(request, (_JSON, NDJSON))
    await _load(context, run_id)
    if media_type == NDJSON:
        return StreamingResponse(_device_lines(context, run_id, query.outcome), media_type=NDJSON)
    return answer(await _device_page(context, run_id, query))


async def _read_chunk(context: AdminContext, run_id: str, chunk: int, outcome: Outcome | None) -> list[RunDevice]:
    """In the order of their identifiers, which no change disturbs."""
    devices = await context.runs.read_chunk(run_id, chunk)
    return sorted(device for device in devices if outcome in (None, device.outcome))


async def _device_lines(context: AdminContext, run_id: str, outcome: Outcome | None) -> AsyncIterator[bytes]:
    for chunk in range(await context.runs.count_chunks(run_id)):
        devices = await _read_chunk(context, run_id, chunk, outcome)
        yield b"".join(orjson.dumps(RunDeviceOut.of(device).model_dump()) + b"\n" for device in devices)
        await asyncio.sleep(0)  # a client that takes all at once must not keep others from their turn


async def _device_page(context: AdminContext, run_id: str, query: RunDeviceQuery) -> Page[RunDeviceOut]:
    first, after = (0, "") if query.cursor is None else _read_place(query.cursor)
    chunks = await context.runs.count_chunks(run_id)
    behind = min(chunks, first + _CHUNKS_PER_PAGE)
    found: list[RunDevice] = []
    place = ""
    for chunk in range(first, behind):
        for device in await _read_chunk(context, run_id, chunk, query.outcome):
            if chunk == first and device.identifier <= after:
                continue
            if len(found) == query.limit:
                return _page(found, place)
            found.append(device)
            place = f"{chunk} {device.identifier}"
    return _page(found, f"{behind} " if behind < chunks else None)


def _page(devices: Sequence[RunDevice], place: str | None) -> Page[RunDeviceOut]:
    items = [RunDeviceOut.of(device) for device in devices]
    return Page[RunDeviceOut](items=items, next_cursor=None if place is None else make_cursor(place))


def _read_place(cursor: str) -> tuple[int, str]:
    number, _, identifier = read_cursor(cursor).partition(" ")
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise InputError("The cursor is not one of this list.", mend="Start without one.", field="cursor")
    return int(number), identifier


# ---- its state


async def _set_state(
    context: AdminContext, run_id: str, wanted: RunState | None, *, of: Sequence[RunState], reason: str, verb: str
) -> Run:
    """The run after the change, or as it is where it is as wanted already; else 409 with its state."""
    run = await _load(context, run_id)
    changed, state = await context.runs.set_state(run.head, wanted, of=of, reason=reason, now_ms=context.now_ms())
    as_wanted = state in _AT_WORK if wanted is None else state is wanted
    if not changed and not as_wanted:
        raise ConflictError(f"The run is {state.value}: it can't be {verb}.")
    return await _load(context, run_id)


@router.post(
    "/{run_id}/pause",
    summary="Send nothing more until it is resumed; what was sent goes on",
    responses=documented(RunOut, 200) | problems(404, 409),
)
async def pause_run(context: Context, run_id: str) -> Response:
    reason = "Paused by an operator."
    return answer_run(await _set_state(context, run_id, RunState.PAUSED, of=_AT_WORK, reason=reason, verb="paused"))


@router.post(
    "/{run_id}/resume",
    summary="Go on with a run that was paused, or that stopped itself",
    responses=documented(RunOut, 200) | problems(404, 409),
)
async def resume_run(context: Context, run_id: str) -> Response:
    run = await _set_state(context, run_id, None, of=_HALTED, reason="", verb="resumed")
    if not run.is_planned:
        # The worker that met the pause left its planning; where another is still at it, the two don't disturb.
        await context.work.add(run_id, None)
    return answer_run(run)


@router.post(
    "/{run_id}/cancel",
    summary="End a run; devices without an outcome are cancelled",
    description="A command that was sent can't be called back: a device that upgrades all the same is not counted.",
    responses=documented(RunOut, 200) | problems(404, 409),
)
async def cancel_run(context: Context, run_id: str) -> Response:
    reason = "Cancelled by an operator."
    return answer_run(
        await _set_state(context, run_id, RunState.CANCELLED, of=(*_AT_WORK, *_HALTED), reason=reason, verb="cancelled")
    )


# ---- how it goes


@router.get(
    "/{run_id}/events",
    summary="The run whenever it changes, as server-sent events, until it is over",
    description="Each event is called `run`; its data is the run as `/runs/{id}` shows it, without the task. At most"
    " two a second; comments in between keep the connection open.",
    response_class=StreamingResponse,
    responses={200: {"content": {EVENT_STREAM: {}}}, **problems(404, 406)},
)
async def follow_run(context: Context, request: Request, run_id: str) -> Response:
    choose_accepted(request, (EVENT_STREAM,))
    await _load(context, run_id)
    streams: RunStreams = request.app.state.run_streams
    return streams.open(context, run_id)


# ---- what was given up


@work.get(
    "/dead",
    summary="Work that was given up, newest first, with its reason",
    description="Its run is paused. Resumed, a run sends what is left; the last thousand are kept.",
    responses=documented(Page[DeadWorkOut], 200) | problems(),
)
async def list_dead_work(context: Context, query: Annotated[DeadWorkQuery, Query()]) -> Response:
    dead = [DeadWorkOut.of(entry) for entry in await context.work.load_dead(limit=query.limit)]
    return answer(Page[DeadWorkOut](items=dead, next_cursor=None))
