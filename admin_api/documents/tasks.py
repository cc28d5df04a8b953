"""Tasks as models: which fields there are, of what shape, and how ours become them and they ours.

Must not know how tasks are kept, or what their runs do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field

from admin_api.documents.fields import Attribute, Document, Identifier, Key, Name, checked_by, rfc3339, rfc3339_or_none
from ota_hook.admission.tasks import (
    BACKOFF_MAX_S,
    CONCURRENT_MAX,
    EXPIRES_MAX_S,
    JITTER_MAX_S,
    RATE_MAX,
    RETRIES_MAX,
    STOP_AFTER_MAX,
    TARGET_DEVICES_MAX,
    TIMEOUT_MAX_S,
)
from ota_hook.admission.texts import check_distinct
from ota_hook.errors import InputError
from ota_hook.model import Interval, Manual, Once, Repeat, Schedule, Window
from ota_hook.ports.tasks import SkippedDue
from ota_hook.rollout.schedule import describe, parse_interval, parse_moment, parse_repeat, parse_window
from ota_hook.task import (
    DEFAULT_BACKOFF_S,
    DEFAULT_EXPIRES_S,
    DEFAULT_STOP_AFTER,
    DEFAULT_STOP_PERCENT,
    DEFAULT_TIMEOUT_S,
    Missed,
    Pacing,
    Task,
)

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FIELDS_OF_KIND: Final[Mapping[str, frozenset[str]]] = {
    "manual": frozenset(),
    "once": frozenset({"at"}),
    "repeat": frozenset({"days", "times", "cron", "zone"}),
    "interval": frozenset({"every_seconds", "from"}),
}

TargetDevices = Annotated[
    list[Identifier], Field(min_length=1, max_length=TARGET_DEVICES_MAX), checked_by(check_distinct)
]
Rate = Annotated[int, Field(ge=1, le=RATE_MAX)]


def _is_none(value: object) -> bool:
    return value is None


def _optional(description: str, *, alias: str | None = None) -> Any:  # noqa: ANN401 - as pydantic's own
    """A field that is not shown where it is not set."""
    return Field(default=None, exclude_if=_is_none, description=description, alias=alias)


@contextmanager
def _within(field: str) -> Iterator[None]:
    """A refusal names the field with the one that holds it."""
    try:
        yield
    except InputError as exc:
        raise InputError(exc.detail, mend=exc.mend, field=f"{field}.{exc.field}" if exc.field else field) from exc


class TargetFields(Document):
    """Whom a task is for: one of the two."""

    device_type: Key | None = _optional("Every device of this type.")
    devices: TargetDevices | None = _optional("These devices, of any type.")

    def require_one(self) -> None:
        if (self.device_type is None) == (self.devices is None):
            raise InputError("A target is either a `device_type` or `devices`.", field="target")


class ScheduleFields(Document):
    """When a task runs by itself. Which fields belong to which kind their descriptions say."""

    kind: Literal["manual", "once", "repeat", "interval"] = "manual"
    at: str | None = _optional("once: a moment, RFC 3339 with its offset.")
    days: list[str] | None = _optional("repeat: of `mon` to `sun`, `weekdays`, `daily`.")
    times: list[str] | None = _optional("repeat: wall times as `HH:MM`.")
    cron: str | None = _optional("repeat: a cron line, in place of days and times.")
    zone: str | None = _optional("repeat: the IANA time zone of the wall times.")
    every_seconds: int | None = _optional("interval: from a minute to a year.")
    from_: str | None = _optional("interval: the moment it is counted from; default: now.", alias="from")

    def to_schedule(self, *, now_ms: int) -> Schedule:
        with _within("schedule"):
            self._refuse_others()
            match self.kind:
                case "manual":
                    return Manual()
                case "once":
                    return Once(parse_moment(_given(self.at, "at", "when it runs"), field="at"))
                case "repeat":
                    zone = _given(self.zone, "zone", "the IANA time zone of its wall times")
                    return parse_repeat(zone=zone, days=self.days or (), times=self.times or (), cron=self.cron)
                case "interval":
                    from_ms = now_ms if self.from_ is None else parse_moment(self.from_, field="from")
                    every = _given(self.every_seconds, "every_seconds", "how often it runs")
                    return parse_interval(every_seconds=every, from_ms=from_ms)

    def _refuse_others(self) -> None:
        for name, value in self.model_dump(by_alias=True).items():
            if name != "kind" and value is not None and name not in _FIELDS_OF_KIND[self.kind]:
                raise InputError(f"A schedule of the kind {self.kind!r} has no `{name}`.", field=name)

    @classmethod
    def of(cls, schedule: Schedule) -> dict[str, Any]:
        """As a document."""
        match schedule:
            case Manual():
                return {"kind": "manual"}
            case Once(at_ms):
                return {"kind": "once", "at": rfc3339(at_ms)}
            case Interval(every_s, from_ms):
                return {"kind": "interval", "every_seconds": every_s, "from": rfc3339(from_ms)}
            case Repeat(zone, cron=str(line)):
                return {"kind": "repeat", "cron": line, "zone": zone}
            case Repeat(zone, days, times):
                return {"kind": "repeat", "days": _day_names(days), "times": [*map(_clock, times)], "zone": zone}


def _given(value: Any, field: str, what: str) -> Any:  # noqa: ANN401 - the same value, and never None
    if value is None:
        raise InputError(f"A schedule of this kind says {what}: `{field}`.", field=field)
    return value


class WindowFields(Document):
    """When a run may send, as wall time: from `start` to `end`, on the next day where `end` is not later."""

    zone: Annotated[str, Field(description="An IANA time zone.")]
    days: Annotated[list[str], Field(description="On which it opens: of `mon` to `sun`, `weekdays`, `daily`.")]
    start: Annotated[str, Field(description="`HH:MM`.")]
    end: Annotated[str, Field(description="`HH:MM`; the same as `start`: a whole day.")]

    def to_window(self) -> Window:
        with _within("window"):
            return parse_window(zone=self.zone, days=self.days, start=self.start, end=self.end)

    @classmethod
    def of(cls, window: Window) -> dict[str, Any]:
        """As a document."""
        start, end = _clock(window.start), _clock(window.end)
        return {"zone": window.zone, "days": _day_names(window.days), "start": start, "end": end}


def _day_names(days: tuple[int, ...]) -> list[str]:
    return [_DAYS[day] for day in days]


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


class TaskFields(Document):
    """What an operator sets of a task. `version_attribute` and `module` null: what the rules of the type say."""

    name: Name
    target: TargetFields
    version_attribute: Attribute | None = None
    module: Key | None = None
    schedule: ScheduleFields = ScheduleFields()
    missed: Annotated[
        Literal["run", "skip"],
        Field(description="What becomes of a due time that passed while no worker ran: one run on return, or none."),
    ] = "run"
    enabled: Annotated[bool, Field(description="A disabled task is not due; who asks can run it.")] = True
    rate_per_minute: Annotated[Rate | None, Field(description="Commands per minute; null: unbounded.")] = None
    ramp_from_per_minute: Annotated[
        Rate | None, Field(description="The rate at the beginning; it doubles every minute up to the other.")
    ] = None
    max_concurrent: Annotated[
        int | None,
        Field(ge=1, le=CONCURRENT_MAX, description="So many devices at a time are offered and not finished."),
    ] = None
    jitter_seconds: Annotated[
        int, Field(ge=0, le=JITTER_MAX_S, description="Each device waits so long at most, by chance, before its turn.")
    ] = 0
    window: Annotated[WindowFields | None, Field(description="Outside of it nothing is sent.")] = None
    timeout_seconds: Annotated[
        int, Field(ge=1, le=TIMEOUT_MAX_S, description="So long after its command a device may take to report.")
    ] = DEFAULT_TIMEOUT_S
    expires_seconds: Annotated[
        int, Field(ge=1, le=EXPIRES_MAX_S, description="So long a run waits for devices that can't be reached.")
    ] = DEFAULT_EXPIRES_S
    retries: Annotated[
        int, Field(ge=0, le=RETRIES_MAX, description="So often a device that failed is sent its command again.")
    ] = 0
    backoff_seconds: Annotated[
        int, Field(ge=1, le=BACKOFF_MAX_S, description="Before the first retry; twice as long before each next one.")
    ] = DEFAULT_BACKOFF_S
    stop_percent: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            description="A run stops itself when so many per cent of its finished devices failed or timed out. Until"
            " then it sends no further ahead than twice the greater of `stop_after` and what succeeded. Null: neither.",
        ),
    ] = DEFAULT_STOP_PERCENT
    stop_after: Annotated[
        int, Field(ge=1, le=STOP_AFTER_MAX, description="So many devices must be finished before it judges.")
    ] = DEFAULT_STOP_AFTER

    def to_task(self, task_id: str, *, now_ms: int) -> Task:
        self.target.require_one()
        return Task(
            id=task_id,
            name=self.name,
            device_type=self.target.device_type,
            devices=None if self.target.devices is None else tuple(self.target.devices),
            version_attribute=self.version_attribute,
            module=self.module,
            schedule=self.schedule.to_schedule(now_ms=now_ms),
            missed=Missed(self.missed),
            enabled=self.enabled,
            pacing=Pacing(
                rate_per_minute=self.rate_per_minute,
                ramp_from_per_minute=self.ramp_from_per_minute,
                max_concurrent=self.max_concurrent,
                jitter_s=self.jitter_seconds,
            ),
            window=None if self.window is None else self.window.to_window(),
            timeout_s=self.timeout_seconds,
            expires_s=self.expires_seconds,
            retries=self.retries,
            backoff_s=self.backoff_seconds,
            stop_percent=self.stop_percent,
            stop_after=self.stop_after,
            created_at_ms=now_ms,
        )


NULLABLE_TASK_FIELDS: Final = (
    *("version_attribute", "module", "window", "stop_percent"),
    *("rate_per_minute", "ramp_from_per_minute", "max_concurrent"),
)
"""Null is a value of these: not set."""


def task_fields(task: Task) -> dict[str, Any]:
    """What of it may be patched."""
    target = {"device_type": task.device_type} if task.devices is None else {"devices": list(task.devices)}
    return {
        "name": task.name,
        "target": target,
        "version_attribute": task.version_attribute,
        "module": task.module,
        "schedule": ScheduleFields.of(task.schedule),
        "missed": task.missed.value,
        "enabled": task.enabled,
        "rate_per_minute": task.pacing.rate_per_minute,
        "ramp_from_per_minute": task.pacing.ramp_from_per_minute,
        "max_concurrent": task.pacing.max_concurrent,
        "jitter_seconds": task.pacing.jitter_s,
        "window": None if task.window is None else WindowFields.of(task.window),
        "timeout_seconds": task.timeout_s,
        "expires_seconds": task.expires_s,
        "retries": task.retries,
        "backoff_seconds": task.backoff_s,
        "stop_percent": task.stop_percent,
        "stop_after": task.stop_after,
    }


class TaskCopy(BaseModel):
    """A task as a run copied it when it was made."""

    id: str
    name: str
    target: TargetFields
    version_attribute: str | None
    module: str | None
    schedule: ScheduleFields
    schedule_text: str
    missed: str
    enabled: bool
    rate_per_minute: int | None
    ramp_from_per_minute: int | None
    max_concurrent: int | None
    jitter_seconds: int
    window: WindowFields | None
    timeout_seconds: int
    expires_seconds: int
    retries: int
    backoff_seconds: int
    stop_percent: int | None
    stop_after: int
    created_at: str | None
    revision: int

    @classmethod
    def of(cls, task: Task) -> Self:
        return cls(**_shown(task))


def _shown(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        **task_fields(task),
        "schedule_text": describe(task.schedule),
        "created_at": rfc3339(task.created_at_ms),
        "revision": task.revision,
    }


class TaskOut(TaskCopy):
    """A task. `next_due`: when it runs next by itself. `open_run`: the id of its run that is not over. `notice` says
    what else a change did, or what to know of it.
    """

    next_due: str | None
    open_run: str | None
    notice: str | None = None

    @classmethod
    def with_state(cls, task: Task, *, next_due_ms: int | None, open_run: str | None) -> Self:
        return cls(**_shown(task), next_due=rfc3339_or_none(next_due_ms), open_run=open_run)


class SkipOut(BaseModel):
    """A due time at which no run was made: `missed` (no worker ran, and the task skips these), or `run_open`: `run`."""

    due: str | None
    reason: str
    run: str | None

    @classmethod
    def of(cls, skip: SkippedDue) -> Self:
        word, _, run = skip.reason.partition(" ")
        reason = {"open": "run_open"}.get(word, word)
        return cls(due=rfc3339(skip.due_at_ms), reason=reason, run=run or None)


class TaskDetail(TaskOut):
    """A task with its last skipped due times, newest first."""

    skipped: list[SkipOut] = []
