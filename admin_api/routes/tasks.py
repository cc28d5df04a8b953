"""`/tasks` and `/tasks/{id}/runs`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Query, Request, Response

from admin_api.answers import answer, commit, documented, patch_body, problems
from admin_api.bodies import JsonRoute
from admin_api.conditions import Conditions, Preconditions, document_etag
from admin_api.context import AdminContext, Context
from admin_api.documents.runs import RunFields, RunOut
from admin_api.documents.tasks import NULLABLE_TASK_FIELDS, SkipOut, TaskDetail, TaskFields, TaskOut, task_fields
from admin_api.idempotency import REPLAYED_HEADER, create_once, fingerprint_of
from admin_api.pagination import Page, PageQuery, page_of
from admin_api.patches import apply_patch
from admin_api.routes.runs import STATE_TEXT, RunQuery, answer_run, list_page
from ota_hook.admission.tasks import admit_task
from ota_hook.admission.texts import check_ulid
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.model import Once
from ota_hook.ports.tasks import RunMade, StoredTask
from ota_hook.rollout.schedule import next_due
from ota_hook.task import Run, RunHead, RunState, Task

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)

_WIDENED: Final = (
    "The version attribute is new to a device type of the target: devices must report once more before it is known of"
    " them."
)
_PAST: Final = "Its time is past: it runs when somebody asks."
_ATTEMPTS: Final = 5
"""At a write while others write the same task."""
_LOADED_AT_ONCE: Final = 500
_NAMED: Final = 3


class TaskQuery(PageQuery):
    """Which tasks."""

    device_type: str | None = None
    enabled: bool | None = None


# ---- what all share


async def _load(context: AdminContext, task_id: str) -> StoredTask:
    stored = await context.tasks.load_task(task_id)
    if stored is None:
        raise NotFound(f"There is no task {task_id[:64]!r}.")
    return stored


async def _show(context: AdminContext, task: Task, *, notice: str | None = None) -> TaskDetail:
    (next_due_ms,) = await context.tasks.load_due_times([task.id])
    (open_run,) = await context.tasks.load_open_runs([task.id])
    shown = TaskDetail.with_state(task, next_due_ms=next_due_ms, open_run=open_run)
    shown.skipped = [SkipOut.of(skip) for skip in await context.tasks.load_skips(task.id)]
    shown.notice = notice
    return shown


async def _answer(context: AdminContext, task: Task, *, created: bool = False, notice: str | None = None) -> Response:
    return answer(
        await _show(context, task, notice=notice),
        status=HTTPStatus.CREATED if created else HTTPStatus.OK,
        etag=document_etag(task),
        location=f"/api/v1/tasks/{task.id}" if created else None,
    )


async def _write(context: AdminContext, proposed: Task, old: StoredTask | None) -> Response:
    """Write a task in place of `old`. ConflictError (stale) where that is not the stored one any more."""
    is_new_schedule = old is None or old.task.schedule != proposed.schedule
    keeps_due = old is not None and not is_new_schedule and old.task.enabled == proposed.enabled
    due_ms = next_due(proposed.schedule, context.now_ms()) if proposed.enabled else None
    is_past = proposed.enabled and due_ms is None and isinstance(proposed.schedule, Once)
    if is_past and is_new_schedule:
        raise InputError("`schedule.at` is past.", mend="Give a later time.", field="schedule.at")
    types = await _types_of_target(context, proposed)
    before = None if old is None else old.task
    widened = await commit(
        context.catalogue, lambda snapshot: admit_task(snapshot, proposed, before, device_types=types)
    )
    await context.tasks.put_task(
        proposed, expected=b"" if old is None else old.stored, due_at_ms=due_ms, keeps_due=keeps_due
    )
    notices = [_WIDENED] if widened else []
    if proposed.devices and (old is None or old.task.devices != proposed.devices):
        unknown = await context.devices.count_unknown(proposed.devices)
        notices += [f"Not registered: {unknown:,} of the {len(proposed.devices):,} listed."] if unknown else []
    if is_past and not keeps_due:
        notices.append(_PAST)
    return await _answer(context, proposed, created=old is None, notice=" ".join(notices) or None)


async def _types_of_target(context: AdminContext, task: Task) -> Collection[str]:
    """The types that keep the task's version attribute: those of its registered devices, where it lists devices."""
    if task.device_type is not None:
        return [task.device_type]
    if task.version_attribute is None:
        return ()
    return set((await _types_of(context, task.devices or ())).values())


async def _types_of(context: AdminContext, identifiers: Sequence[str]) -> dict[str, str]:
    """The type of each that is registered."""
    types = {}
    for start in range(0, len(identifiers), _LOADED_AT_ONCE):
        for device in await context.devices.load_devices(identifiers[start : start + _LOADED_AT_ONCE]):
            if device is not None:
                types[device.identifier] = device.device_type
    return types


async def _change(
    context: AdminContext, task_id: str, conditions: Preconditions, decide: Callable[[Task | None], Task]
) -> Response:
    """Write what `decide` makes of the newest task; of two that write at once, the later one decides again."""
    attempts = _ATTEMPTS
    while True:
        old = await context.tasks.load_task(task_id)
        conditions.require(None if old is None else document_etag(old.task))
        proposed = decide(None if old is None else old.task)
        try:
            return await _write(context, proposed, old)
        except ConflictError as exc:
            attempts -= 1
            if not exc.stale or not attempts:
                raise


# ---- tasks


@router.get("", summary="List tasks, oldest first", responses=documented(Page[TaskOut], 200) | problems())
async def list_tasks(context: Context, query: Annotated[TaskQuery, Query()]) -> Response:
    wanted = {name: value for name in ("device_type", "enabled") if (value := getattr(query, name)) is not None}
    found = (
        (task.id, task)
        for task in await context.tasks.load_tasks()
        if all(getattr(task, name) == value for name, value in wanted.items())
    )
    page, next_cursor = page_of(found, query)
    ids = [task.id for task in page]
    due_times, open_runs = await context.tasks.load_due_times(ids), await context.tasks.load_open_runs(ids)
    items = [
        TaskOut.with_state(task, next_due_ms=next_due_ms, open_run=open_run)
        for task, next_due_ms, open_run in zip(page, due_times, open_runs, strict=True)
    ]
    return answer(Page[TaskOut](items=items, next_cursor=next_cursor))


@router.post(
    "", status_code=HTTPStatus.CREATED, summary="Create a task", responses=documented(TaskDetail, 201) | problems()
)
async def create_task(context: Context, request: Request, body: TaskFields) -> Response:
    task_id = context.new_id()

    async def create(earlier_ids: tuple[str, ...]) -> Response:
        for earlier_id in earlier_ids:
            earlier = await context.tasks.load_task(earlier_id)
            if earlier is not None:
                response = await _answer(context, earlier.task, created=True)
                response.headers[REPLAYED_HEADER] = "true"
                return response
        return await _write(context, body.to_task(task_id, now_ms=context.now_ms()), None)

    return await create_once(context, request, fingerprint_of(body), task_id, create)


@router.get(
    "/{task_id}",
    summary="Read a task, when it runs next, and which due times were skipped",
    responses=documented(TaskDetail, 200) | problems(404),
)
async def read_task(context: Context, task_id: str) -> Response:
    # The tag is for If-Match. It does not follow what runs, so that no reader is told that nothing changed.
    return await _answer(context, (await _load(context, task_id)).task)


@router.put(
    "/{task_id}",
    summary="Create or replace a task under an id of yours (a ULID)",
    responses=documented(TaskDetail, 200, 201) | problems(412),
)
async def put_task(context: Context, task_id: str, body: TaskFields, conditions: Conditions) -> Response:
    try:
        check_ulid(task_id)
    except InputError as exc:
        raise InputError(exc.detail, field="id") from exc
    return await _change(context, task_id, conditions, lambda old: _successor(context, body, task_id, old))


@router.patch(
    "/{task_id}",
    summary="Change a task (JSON merge patch); later runs follow it, not those that are open",
    description="A `schedule` of another `kind` and another form of `target` replace the old one as a whole.",
    responses=documented(TaskDetail, 200) | problems(404, 412),
    openapi_extra=patch_body(TaskFields),
)
async def patch_task(
    context: Context, task_id: str, patch: Annotated[dict[str, Any], Body()], conditions: Conditions
) -> Response:
    def decide(old: Task | None) -> Task:
        if old is None:
            raise NotFound(f"There is no task {task_id[:64]!r}.")
        fields = apply_patch(_base_of(old, patch), patch, TaskFields, TaskDetail, nullable=NULLABLE_TASK_FIELDS)
        return _successor(context, fields, task_id, old)

    await _load(context, task_id)
    return await _change(context, task_id, conditions, decide)


def _successor(context: AdminContext, fields: TaskFields, task_id: str, old: Task | None) -> Task:
    proposed = fields.to_task(task_id, now_ms=context.now_ms())
    return proposed if old is None else replace(proposed, created_at_ms=old.created_at_ms, revision=old.revision + 1)


def _base_of(task: Task, patch: dict[str, Any]) -> dict[str, Any]:
    """What the patch is merged into. What it turns into another kind begins anew: merged, the two would contradict."""
    base = task_fields(task)
    schedule, target = patch.get("schedule"), patch.get("target")
    if isinstance(schedule, dict) and schedule.get("kind", task.schedule.kind) != task.schedule.kind:
        base["schedule"] = {}
    if isinstance(target, dict) and any(target.get(name) is not None for name in target.keys() - base["target"].keys()):
        base["target"] = {}
    return base


@router.delete(
    "/{task_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a task that has no open run; its runs stay",
    responses=documented(None, 204) | problems(404, 409, 412),
)
async def delete_task(context: Context, task_id: str, conditions: Conditions) -> Response:
    attempts = _ATTEMPTS
    while True:
        stored = await _load(context, task_id)
        conditions.require(document_etag(stored.task))
        (open_run,) = await context.tasks.load_open_runs([task_id])
        if open_run is not None:
            await _free_of_completed(context, open_run)
        try:
            await context.tasks.delete_task(task_id, expected=stored.stored)
        except ConflictError as exc:
            attempts -= 1
            if not exc.stale or not attempts:
                raise
        else:
            return Response(status_code=HTTPStatus.NO_CONTENT)


# ---- its runs


@router.get(
    "/{task_id}/runs",
    summary="List a task's runs, newest first",
    description=STATE_TEXT,
    responses=documented(Page[RunOut], 200) | problems(404),
)
async def list_runs_of_task(context: Context, task_id: str, query: Annotated[RunQuery, Query()]) -> Response:
    page = await list_page(context, query, task_id=task_id)
    if not page.items:
        await _load(context, task_id)
    return answer(page)


@router.post(
    "/{task_id}/runs",
    status_code=HTTPStatus.ACCEPTED,
    summary="Run a task now, for its target or for `devices` of it; a disabled one too",
    responses=documented(RunOut, 202) | problems(404, 409),
)
async def run_task(context: Context, request: Request, task_id: str, body: RunFields | None = None) -> Response:
    chosen = None if body is None or body.devices is None else tuple(body.devices)
    run_id = context.new_id()

    async def create(earlier_ids: tuple[str, ...]) -> Response:
        for earlier_id in earlier_ids:
            earlier = await context.runs.load_run(earlier_id)
            if earlier is not None:
                response = _accepted(earlier)
                response.headers[REPLAYED_HEADER] = "true"
                return response
        made = await _make_run(context, task_id, run_id, chosen)
        run = await context.runs.load_run(made.run_id)
        if run is None:
            raise NotFound("The run is not kept any more.")
        return _accepted(run)

    return await create_once(context, request, fingerprint_of(body or RunFields()), run_id, create)


def _accepted(run: Run) -> Response:
    return answer_run(run, status=HTTPStatus.ACCEPTED, location=f"/api/v1/runs/{run.head.id}")


async def _make_run(context: AdminContext, task_id: str, run_id: str, chosen: tuple[str, ...] | None) -> RunMade:
    for _ in range(_ATTEMPTS):
        stored = await _load(context, task_id)
        if not context.has_broker:
            raise ConflictError(
                "No broker is configured, so that nothing can be pushed.", mend="Set OTA_HOOK_MQTT_URL to its address."
            )
        if chosen is not None:
            await _require_in_target(context, stored.task, chosen)
        now_ms = context.now_ms()
        head = RunHead(id=run_id, task=stored.task, created_at_ms=now_ms, devices=chosen)
        made = await context.tasks.create_run(head, expected=stored.stored, now_ms=now_ms)
        if made.word == "created":
            return made
        if made.word == "open":
            await _free_of_completed(context, made.run_id)
    raise ConflictError("The task was changed meanwhile, again and again.", mend="Try again.")


async def _free_of_completed(context: AdminContext, run_id: str) -> None:
    """A worker closes a run that is over, within a second, and tells of it; who comes sooner need not wait for it.

    ConflictError for one that is not over, or whose devices a worker has yet to cancel.
    """
    run = await context.runs.load_run(run_id)
    if run is not None:
        if run.state is not RunState.COMPLETED:
            raise ConflictError(
                f"The task's run {run_id} is open ({run.state.value}).", mend="Wait for its end, or cancel it."
            )
        await context.runs.free_task(run.head)


async def _require_in_target(context: AdminContext, task: Task, chosen: tuple[str, ...]) -> None:
    if task.devices is not None:
        target: Collection[str] = set(task.devices)
    else:
        types = await _types_of(context, chosen)
        target = {identifier for identifier, device_type in types.items() if device_type == task.device_type}
    outside = [identifier for identifier in chosen if identifier not in target]
    if outside:
        named = ", ".join(map(repr, outside[:_NAMED])) + (", …" if len(outside) > _NAMED else "")
        raise InputError(f"The task is not for {named}.", mend="Name devices of its target.", field="devices")
