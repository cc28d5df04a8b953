"""`ota-hook task`: pushes that can be run, by hand or on a schedule. Their runs are in cli_runs.py."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from ota_hook.cli_options import ULID_CHARS, LimitOption, TypeFilter
from ota_hook.cli_session import Session, catalogue_command, require_type
from ota_hook.cli_task_options import (
    AtOption,
    AttributeOption,
    BackoffOption,
    ConcurrentOption,
    CronOption,
    DaysOption,
    DeviceTarget,
    EveryOption,
    ExpiresOption,
    FileTarget,
    JitterOption,
    MissedOption,
    ModuleOption,
    RampOption,
    RateOption,
    RetriesOption,
    StopAfterOption,
    StopPercentOption,
    TimeoutOption,
    TimesOption,
    TypeTarget,
    WindowOption,
    ZoneOption,
    days_text,
    faults_by_option,
    read_schedule,
    read_settings,
    read_target,
)
from ota_hook.errors import InputError
from ota_hook.terminal import Column, count_text, local_time, yes_no

Document = dict[str, Any]

task = typer.Typer(
    help="Tasks: pushes by hand or on a schedule, their runs, pause, resume, cancel.", no_args_is_help=True
)

TaskArgument = Annotated[str, typer.Argument(metavar="ID", help="The task's id.", show_default=False)]

_COLUMNS: Final = (
    Column("id", ULID_CHARS),
    Column("name"),
    Column("for"),
    Column("runs"),
    Column("next"),
    Column("enabled"),
    Column("open run", ULID_CHARS),
)


@task.command("list")
@catalogue_command
def list_tasks(session: Session, *, device_type: TypeFilter = None, limit: LimitOption = None) -> None:
    """List the tasks, when each runs next, and which are running.

    \b
    Example: ota-hook task list --type tracker
    """
    require_type(session, device_type)
    session.show_list(session.api.each(session.path("tasks"), device_type=device_type), _COLUMNS, _row, limit=limit)


def _row(entry: Document) -> tuple[str, ...]:
    return (
        entry["id"],
        entry["name"],
        _target_text(entry["target"]),
        entry["schedule_text"],
        _next_text(entry),
        yes_no(entry["enabled"]),
        entry["open_run"] or "–",
    )


def _next_text(entry: Document) -> str:
    """When it runs next, as the clocks of its schedule show it: so it can be compared with what was asked for."""
    return local_time(entry["next_due"], zone=entry["schedule"].get("zone"))


def _target_text(target: Document) -> str:
    return str(target["device_type"]) if "device_type" in target else count_text(len(target["devices"]), "device")


@task.command("show")
@catalogue_command
def show_task(session: Session, *, task_id: TaskArgument) -> None:
    """Show one task: its target, schedule and pace, and which due times were skipped.

    \b
    Example: ota-hook task show 01JZ0000000000000000000000
    """
    _show(session, session.api.get(session.path("tasks", task_id)))


def _show(session: Session, entry: Document) -> None:
    facts = [*zip((column.title for column in _COLUMNS), _row(entry), strict=True)]
    facts.append(("asks for", f"{entry['module'] or 'the module'} by {entry['version_attribute'] or 'the attribute'}"))
    if not (entry["module"] and entry["version_attribute"]):
        facts[-1] = (facts[-1][0], f"{facts[-1][1]} of the type's rule")
    facts += [("pace", _pace_text(entry)), ("window", _window_text(entry["window"]))]
    facts.append(
        (
            "timeout",
            f"{_span_text(entry['timeout_seconds'])}, waits for absent devices {_span_text(entry['expires_seconds'])}",
        )
    )
    facts.append(
        (
            "retries",
            f"{entry['retries']}, the first after {_span_text(entry['backoff_seconds'])}"
            if entry["retries"]
            else "none",
        )
    )
    stop = entry["stop_percent"]
    facts.append(("stops itself", f"at {stop} % failed of {entry['stop_after']} or more" if stop else "never"))
    facts.append(("missed due times", "one run on return" if entry["missed"] == "run" else "skipped"))
    facts += [("skipped", f"{local_time(skip['due'])}: {_skip_text(skip)}") for skip in entry["skipped"]]
    session.show(entry, facts)


def _pace_text(entry: Document) -> str:
    rate, ramp, most = entry["rate_per_minute"], entry["ramp_from_per_minute"], entry["max_concurrent"]
    parts = [f"{rate:,} a minute" if rate else "unbounded"]
    parts += [f"from {ramp:,} on"] if ramp else []
    parts += [f"at most {count_text(most, 'device')} at a time"] if most else []
    parts += [f"each up to {_span_text(entry['jitter_seconds'])} later"] if entry["jitter_seconds"] else []
    return ", ".join(parts)


def _window_text(window: Document | None) -> str:
    if window is None:
        return "always"
    return f"{days_text(window['days'])} {window['start']}-{window['end']} {window['zone']}".strip()


def _span_text(seconds: int) -> str:
    """`90m`, as it may be typed."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _skip_text(skip: Document) -> str:
    return f"the run {skip['run']} was open" if skip["run"] else "no worker ran then"


@task.command("add")
@catalogue_command
def add_task(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.", show_default=False)],
    device_type: TypeTarget = None,
    device: DeviceTarget = None,
    devices: FileTarget = None,
    attribute: AttributeOption = None,
    module: ModuleOption = None,
    at: AtOption = None,
    days: DaysOption = None,
    times: TimesOption = None,
    cron: CronOption = None,
    zone: ZoneOption = None,
    every: EveryOption = None,
    missed: MissedOption = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Keep it, but let it run by hand alone.")] = False,
    rate: RateOption = None,
    ramp_from: RampOption = None,
    max_concurrent: ConcurrentOption = None,
    jitter: JitterOption = None,
    window: WindowOption = None,
    timeout: TimeoutOption = None,
    expires: ExpiresOption = None,
    retries: RetriesOption = None,
    backoff: BackoffOption = None,
    stop_percent: StopPercentOption = None,
    stop_after: StopAfterOption = None,
) -> None:
    """Add a task. Without a schedule it runs when you say `ota-hook task run`.

    \b
    Example: ota-hook task add 'winter release' --type tracker --rate 600 --ramp-from 10
    Example: ota-hook task add nightly --type tracker --days mon-fri --times 02:30 --zone Asia/Shanghai
    Example: ota-hook task add pilot --device d1 --device d2 --at 2026-05-04T02:30
    Example: ota-hook task add careful --type tracker --every 6h --window '02:00-05:00 Asia/Shanghai'
    """
    target = read_target(device_type, device, devices)
    if target is None:
        raise InputError("A task is for somebody.", mend="Give --type, --device or --devices.")
    schedule = read_schedule(at=at, days=days, times=times, cron=cron, zone=zone, every=every)
    if schedule is not None and schedule.get("kind") == "repeat":
        if "zone" not in schedule:
            raise InputError("--zone is missing.", mend="Give the time zone that is meant, as Asia/Shanghai or UTC.")
        if "cron" not in schedule:
            schedule.setdefault("days", ["daily"])
    fields = read_settings(
        attribute=attribute, module=module, schedule=schedule, missed=missed, rate=rate, ramp_from=ramp_from,
        max_concurrent=max_concurrent, jitter=jitter, window=window, timeout=timeout, expires=expires,
        retries=retries, backoff=backoff, stop_percent=stop_percent, stop_after=stop_after,
    )  # fmt: skip
    body = {"name": name, "target": target, "enabled": not disabled, **fields}
    with faults_by_option():
        document, _ = session.api.post(session.path("tasks"), body)
    _tell_notice(session, document)
    session.answer(document, f"The task {document['id']} is added; it runs {_when(document)}.")


@task.command("edit")
@catalogue_command
def edit_task(
    session: Session,
    *,
    task_id: TaskArgument,
    name: Annotated[str | None, typer.Option("--name", help="What people call it.", show_default=False)] = None,
    device_type: TypeTarget = None,
    device: DeviceTarget = None,
    devices: FileTarget = None,
    attribute: AttributeOption = None,
    module: ModuleOption = None,
    manual: Annotated[bool, typer.Option("--manual", help="No schedule any more.")] = False,
    at: AtOption = None,
    days: DaysOption = None,
    times: TimesOption = None,
    cron: CronOption = None,
    zone: ZoneOption = None,
    every: EveryOption = None,
    missed: MissedOption = None,
    rate: RateOption = None,
    ramp_from: RampOption = None,
    max_concurrent: ConcurrentOption = None,
    jitter: JitterOption = None,
    window: WindowOption = None,
    timeout: TimeoutOption = None,
    expires: ExpiresOption = None,
    retries: RetriesOption = None,
    backoff: BackoffOption = None,
    stop_percent: StopPercentOption = None,
    stop_after: StopAfterOption = None,
) -> None:
    """Change what is given of a task, for its later runs; an open run goes on as it is.

    0 takes a bound away, and '' a window, an attribute or a module.

    \b
    Example: ota-hook task edit 01JZ0000000000000000000000 --times 03:00 --rate 0
    Example: ota-hook task edit 01JZ0000000000000000000000 --window ''
    """
    schedule = read_schedule(at=at, days=days, times=times, cron=cron, zone=zone, every=every, manual=manual)
    if schedule is not None and schedule.get("kind") == "repeat":
        others = ("days", "times") if "cron" in schedule else ("cron",)
        schedule |= dict.fromkeys(others)
    changes = read_settings(
        attribute=attribute, module=module, schedule=schedule, missed=missed, rate=rate, ramp_from=ramp_from,
        max_concurrent=max_concurrent, jitter=jitter, window=window, timeout=timeout, expires=expires,
        retries=retries, backoff=backoff, stop_percent=stop_percent, stop_after=stop_after,
    )  # fmt: skip
    target = read_target(device_type, device, devices)
    changes |= {field: value for field, value in (("name", name), ("target", target)) if value is not None}
    if not changes:
        raise InputError("Nothing to change was given.", mend="`ota-hook task edit --help` has the options.")
    with faults_by_option():
        document = session.api.patch(session.path("tasks", task_id), changes)
    _tell_notice(session, document)
    session.answer(document, f"The task {task_id} ({document['name']}) is as you say; it runs {_when(document)}.")


def _tell_notice(session: Session, document: Document) -> None:
    if document["notice"]:
        session.terminal.note(document["notice"])


def _when(document: Document) -> str:
    if not document["enabled"]:
        return "when somebody asks: it is disabled"
    next_due = f", next on {_next_text(document)}" if document["next_due"] else ""
    return f"{document['schedule_text']}{next_due}"


@task.command("enable")
@catalogue_command
def enable_task(session: Session, *, task_id: TaskArgument) -> None:
    """Let a task run by its schedule again, from its next due time on.

    \b
    Example: ota-hook task enable 01JZ0000000000000000000000
    """
    _switch(session, task_id, enabled=True)


@task.command("disable")
@catalogue_command
def disable_task(session: Session, *, task_id: TaskArgument) -> None:
    """Keep a task from running by itself. Its open run goes on.

    \b
    Example: ota-hook task disable 01JZ0000000000000000000000
    """
    _switch(session, task_id, enabled=False)


def _switch(session: Session, task_id: str, *, enabled: bool) -> None:
    document = session.api.patch(session.path("tasks", task_id), {"enabled": enabled})
    _tell_notice(session, document)
    session.answer(document, f"The task {task_id} ({document['name']}) runs {_when(document)}.")


@task.command("delete")
@catalogue_command
def delete_task(session: Session, *, task_id: TaskArgument) -> None:
    """Delete a task that has no open run. Its runs are kept.

    \b
    Example: ota-hook task delete 01JZ0000000000000000000000
    """
    session.api.delete(session.path("tasks", task_id))
    session.answer({"deleted": task_id}, f"The task {task_id} is deleted.")
