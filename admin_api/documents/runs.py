"""Runs, their devices and work that was given up, as models. Must not know how runs are kept."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel

from admin_api.documents.fields import Document, rfc3339, rfc3339_or_none
from admin_api.documents.tasks import TargetDevices, TaskCopy
from ota_hook.ports.work import DeadWork
from ota_hook.task import Run, RunDevice


class RunFields(Document):
    """A run to begin now. `devices`: these of the target alone."""

    devices: TargetDevices | None = None


class RunOut(BaseModel):
    """A run. `counters` says how many devices are at each outcome; they add up to `total`, which grows until it is
    `planned`. `retried`: how often a device that failed was planned again. `away`: how many of the offered are devices
    that could not be reached, and are sent it again when they are back. `due`: the due time that it was made for, null
    where somebody asked.
    """

    id: str
    task_id: str
    task_name: str
    state: str
    reason: str | None
    planned: bool
    total: int
    retried: int
    away: int
    counters: dict[str, int]
    due: str | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(**_run_fields(run))


def _run_fields(run: Run) -> dict[str, Any]:
    head = run.head
    return {
        "id": head.id,
        "task_id": head.task.id,
        "task_name": head.task.name,
        "state": run.state.value,
        "reason": run.reason or None,
        "planned": run.is_planned,
        "total": run.total,
        "retried": run.retried,
        "away": run.away,
        "counters": {outcome.value: count for outcome, count in run.counters.items()},
        "due": rfc3339_or_none(head.due_at_ms),
        "created_at": rfc3339(head.created_at_ms),
        "started_at": rfc3339_or_none(run.started_at_ms),
        "finished_at": rfc3339_or_none(run.finished_at_ms),
    }


class RunDetail(RunOut):
    """A run with its task as it was copied, and the `devices` that were chosen; null: all of the target."""

    task: TaskCopy
    devices: list[str] | None

    @classmethod
    def of(cls, run: Run) -> Self:
        chosen = None if run.head.devices is None else list(run.head.devices)
        return cls(**_run_fields(run), task=TaskCopy.of(run.head.task), devices=chosen)


class RunDeviceOut(BaseModel):
    """A device in a run. `at`: when it came to its outcome; `code` says more of it. `command_id` is null before it is
    sent its command.
    """

    identifier: str
    outcome: str
    code: str | None
    firmware_id: str
    from_version: str
    command_id: int | None
    at: str | None

    @classmethod
    def of(cls, device: RunDevice) -> Self:
        return cls(
            identifier=device.identifier,
            outcome=device.outcome.value,
            code=device.code or None,
            firmware_id=device.firmware_id,
            from_version=device.from_version,
            command_id=device.command_id or None,
            at=rfc3339_or_none(device.at_ms or None),
        )


class DeadWorkOut(BaseModel):
    """Work that was given up: the planning of a run (`chunk` null), or sending to a chunk of its devices."""

    at: str | None
    run: str
    chunk: int | None
    reason: str

    @classmethod
    def of(cls, work: DeadWork) -> Self:
        return cls(at=rfc3339(work.at_ms), run=work.run_id, chunk=work.chunk, reason=work.reason)
