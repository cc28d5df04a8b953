"""`ota-hook task`, the commands on runs: how each goes, what became of its devices, pause, resume, cancel."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from ota_hook.cli_options import ULID_CHARS, LimitOption
from ota_hook.cli_session import Session, catalogue_command
from ota_hook.cli_tasks import TaskArgument, task
from ota_hook.errors import InputError
from ota_hook.model import Outcome
from ota_hook.task import RunState
from ota_hook.terminal import Column, count_text, local_time

__all__ = ["task"]

Document = dict[str, Any]

_OUTCOMES: Final = tuple(outcome.value for outcome in Outcome)
_DONE: Final = frozenset(outcome.value for outcome in Outcome if outcome.is_final)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)]
WatchOption = Annotated[
    bool,
    typer.Option(
        "--watch", "-w", help="Stay until it is over, or stops itself; status 0 if every device succeeded, else 1."
    ),
]

_RUN_COLUMNS: Final = (
    Column("run", ULID_CHARS),
    Column("task"),
    Column("state"),
    Column("devices", right=True),
    Column("outcomes"),
    Column("begun"),
    Column("ended"),
)


@task.command("run")
@catalogue_command
def run_task(
    session: Session,
    *,
    task_id: TaskArgument,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="ID", help="For this device of its target alone; repeat it.", show_default=False
        ),
    ] = None,
    watch: WatchOption = False,
) -> None:
    """Run a task now, whether it is enabled or not.

    \b
    Example: ota-hook task run 01JZ0000000000000000000000 --watch
    Example: ota-hook task run 01JZ0000000000000000000000 --device DU_7VFGiJjjv8QoS
    """
    body: Document = {"devices": device} if device else {}
    run, _ = session.api.post(session.path("tasks", task_id, "runs"), body)
    if watch:
        _watch(session, run)
        return
    session.answer(run, f"The run {run['id']} begins; `ota-hook task watch {run['id']}` shows how it goes.")


@task.command("watch")
@catalogue_command
def watch_run(session: Session, *, run_id: RunArgument) -> None:
    """Follow a run until it is over, or stops itself; the status is 0 if every device succeeded, else 1.

    Ctrl-C leaves it running.

    \b
    Example: ota-hook task watch 01JZ0000000000000000000000
    """
    _watch(session, session.api.get(session.path("runs", run_id)))


def _watch(session: Session, run: Document) -> None:
    events = session.api.follow(session.path("runs", run["id"], "events"))
    try:
        with session.terminal.tally(run["task_name"]) as show:
            while not (_is_over(run) or run["state"] == RunState.STOPPED):
                run = next(events)
                show(_done(run), run["total"], _progress_text(run))
    except KeyboardInterrupt:
        session.terminal.note(f"The run goes on; `ota-hook task cancel {run['id']}` ends it.")
        raise
    session.answer(run, _run_text(run))
    if run["state"] == RunState.STOPPED:
        verbs = (f"`ota-hook task {verb} {run['id']}`" for verb in ("resume", "cancel"))
        session.terminal.note("{} goes on with it, {} ends it.".format(*verbs))
    if run["state"] != RunState.COMPLETED or run["counters"].get(Outcome.SUCCEEDED, 0) != run["total"]:
        session.fail()


def _is_over(run: Document) -> bool:
    """Of one that was cancelled, its devices are counted a moment later."""
    return RunState(run["state"]).is_final and (_done(run) == run["total"] or run["state"] == RunState.FAILED)


def _done(run: Document) -> int:
    return sum(count for outcome, count in run["counters"].items() if outcome in _DONE)


def _progress_text(run: Document) -> str:
    state = "" if run["state"] == RunState.RUNNING else run["state"]
    return ", ".join(filter(None, (state, _outcomes_text(run))))


def _outcomes_text(run: Document) -> str:
    """`60 offered (20 away), 40 succeeded`."""
    counters, away = run["counters"], run.get("away", 0)  # an older service does not say it
    notes = {Outcome.OFFERED.value: f" ({away:,} away)"} if away else {}
    told = (f"{counters[one]:,} {one}{notes.get(one, '')}" for one in _OUTCOMES if counters.get(one))
    return ", ".join(told) or "–"


def _run_text(run: Document) -> str:
    reason = f": {run['reason']}" if run["reason"] else ""
    if run["state"] == RunState.CANCELLED and (left := run["total"] - _done(run)):
        return f"The run {run['id']} is cancelled; {count_text(left, 'device')} without an outcome will be in a moment."
    devices = f"{count_text(run['total'], 'device')}: {_outcomes_text(run)}" if run["total"] else ""
    return f"The run {run['id']} is {run['state']}{reason.rstrip('.')}. {devices or 'No device had anything newer'}."


@task.command("runs")
@catalogue_command
def list_runs(
    session: Session,
    *,
    task_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of this task alone.", show_default=False)
    ] = None,
    state: Annotated[
        RunState | None, typer.Option("--state", help="In this state alone.", show_default=False, metavar="STATE")
    ] = None,
    limit: LimitOption = 20,
) -> None:
    """List runs, newest first. They are waiting, planning, running, paused, stopped, cancelled, completed or failed.

    \b
    Example: ota-hook task runs
    Example: ota-hook task runs --state running
    Example: ota-hook task runs 01JZ0000000000000000000000 --limit 0
    """
    path = session.path("runs") if task_id is None else session.path("tasks", task_id, "runs")
    runs = session.api.each(path, state=state and state.value, limit=100)
    session.show_list(runs, _RUN_COLUMNS, _run_row, limit=limit)


def _run_row(run: Document) -> tuple[str, ...]:
    return (
        run["id"],
        run["task_name"],
        run["state"],
        f"{run['total']:,}",
        _outcomes_text(run),
        local_time(run["started_at"]),
        local_time(run["finished_at"]),
    )


@task.command("status")
@catalogue_command
def show_run(session: Session, *, run_id: RunArgument) -> None:
    """Show one run: its state, why it is in it, and how many devices are at which outcome.

    \b
    Example: ota-hook task status 01JZ0000000000000000000000
    """
    run = session.api.get(session.path("runs", run_id))
    facts = [*zip((column.title for column in _RUN_COLUMNS), _run_row(run), strict=True)]
    facts += [("why", run["reason"])] if run["reason"] else []
    facts += [("retried", f"{run['retried']:,}")] if run["retried"] else []
    session.show(run, facts)


@task.command("pause")
@catalogue_command
def pause_run(session: Session, *, run_id: RunArgument) -> None:
    """Send nothing more until the run is resumed. What was sent goes on.

    \b
    Example: ota-hook task pause 01JZ0000000000000000000000
    """
    _move(session, run_id, "pause")


@task.command("resume")
@catalogue_command
def resume_run(session: Session, *, run_id: RunArgument) -> None:
    """Go on with a run that was paused, or that stopped itself.

    \b
    Example: ota-hook task resume 01JZ0000000000000000000000
    """
    _move(session, run_id, "resume")


@task.command("cancel")
@catalogue_command
def cancel_run(session: Session, *, run_id: RunArgument) -> None:
    """End a run for good. Commands that were sent can't be called back.

    \b
    Example: ota-hook task cancel 01JZ0000000000000000000000
    """
    _move(session, run_id, "cancel")


def _move(session: Session, run_id: str, verb: str) -> None:
    run, _ = session.api.post(session.path("runs", run_id, verb), {})
    session.answer(run, _run_text(run) if run["total"] else f"The run {run_id} is {run['state']}.")


_DEVICE_COLUMNS: Final = (
    Column("device"),
    Column("outcome"),
    Column("code"),
    Column("from"),
    Column("firmware", ULID_CHARS),
    Column("command", right=True),
    Column("since"),
)


@task.command("devices")
@catalogue_command
def list_run_devices(
    session: Session,
    *,
    run_id: RunArgument,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="WORD", help="At this outcome alone.", show_default=False)
    ] = None,
    limit: LimitOption = None,
) -> None:
    """List what became of each device of a run.

    \b
    Example: ota-hook task devices 01JZ0000000000000000000000 --outcome failed
    """
    if outcome is not None and outcome not in _OUTCOMES:
        raise InputError(f"--outcome {outcome!r} is none.", mend=f"Outcomes are {', '.join(_OUTCOMES)}.")
    entries = session.api.each(session.path("runs", run_id, "devices"), outcome=outcome)
    session.show_list(entries, _DEVICE_COLUMNS, _device_row, limit=limit)


def _device_row(entry: Document) -> tuple[str, ...]:
    return (
        entry["identifier"],
        entry["outcome"],
        entry["code"] or "–",
        entry["from_version"],
        entry["firmware_id"],
        str(entry["command_id"] or "–"),
        local_time(entry["at"]),
    )


_DEAD_COLUMNS: Final = (Column("given up"), Column("run", ULID_CHARS), Column("what"), Column("why"))


@task.command("dead")
@catalogue_command
def list_dead_work(session: Session, *, limit: LimitOption = None) -> None:
    """List work that workers gave up, newest first; the runs are paused, and `task resume` sends what is left.

    \b
    Example: ota-hook task dead
    """
    entries = session.api.get(session.path("work", "dead"), limit=1000)["items"]
    session.show_list(iter(entries), _DEAD_COLUMNS, _dead_row, limit=limit)


def _dead_row(entry: Document) -> tuple[str, ...]:
    what = "planning" if entry["chunk"] is None else f"sending, chunk {entry['chunk']}"
    return local_time(entry["at"]), entry["run"], what, entry["reason"]
