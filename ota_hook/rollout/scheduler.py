"""Making runs of tasks that are due. A due time is claimed by who makes its run: with many workers each makes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from ota_hook.errors import OtaHookError
from ota_hook.ports.tasks import TaskStore
from ota_hook.rollout.schedule import next_due
from ota_hook.task import Missed, RunHead

LATE_MS: Final = 60_000
"""A due time that is older was missed: nothing ran that could make its run."""
_DUE_AT_ONCE: Final = 100

_log = structlog.get_logger("ota_hook.rollout")


class Scheduler:
    """Claims due times."""

    def __init__(self, tasks: TaskStore, *, new_id: Callable[[], str], clock_ms: Callable[[], int]) -> None:
        self._tasks = tasks
        self._new_id = new_id
        self._clock_ms = clock_ms

    async def make_due_runs(self) -> None:
        """One round. Several due times of one task that passed meanwhile are one; one that can't be read stops none."""
        now_ms = self._clock_ms()
        for task_id, due_ms in await self._tasks.load_due(before_ms=now_ms, limit=_DUE_AT_ONCE):
            try:
                await self._make_due_run(task_id, due_ms=due_ms, now_ms=now_ms)
            except OtaHookError:
                raise
            except Exception:  # noqa: BLE001 - logged whole
                _log.exception("task_not_run", task=task_id)

    async def _make_due_run(self, task_id: str, *, due_ms: int, now_ms: int) -> None:
        stored = await self._tasks.load_task(task_id)
        if stored is None:
            return
        task = stored.task
        is_missed = now_ms - due_ms > LATE_MS
        made = await self._tasks.create_run(
            RunHead(id=self._new_id(), task=task, created_at_ms=now_ms, due_at_ms=due_ms),
            expected=stored.stored,
            now_ms=now_ms,
            next_due_ms=next_due(task.schedule, now_ms),
            skip="missed" if is_missed and task.missed is Missed.SKIP else "",
        )
        if made.word in {"created", "skipped"}:
            _log.info("task_due", task=task.id, run=made.run_id, what=made.word, late_ms=now_ms - due_ms)
