"""Tasks: written by operators, due for workers, the origin of runs.

Owns how tasks are stored and become runs. Must not know schedules, or what a run does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ota_hook.task import RunHead, Task


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task, and its bytes as they are stored: what a write expects to find."""

    task: Task
    stored: bytes


class SkippedDue(NamedTuple):
    """A due time at which no run was made."""

    due_at_ms: int
    reason: str


class RunMade(NamedTuple):
    """What came of making a run.

    `created`; `open`: `run_id` is the task's open run; `skipped`: a due time passed while one was open; `overtaken`:
    another worker claimed that due time; `changed`: the task is another now, or gone.
    """

    word: str
    run_id: str


class TaskStore(Protocol):
    """Tasks, when they are due, and making their runs. Raises DependencyError where Redis does not answer."""

    async def load_tasks(self) -> list[Task]:
        """Every task, by id. One that can't be read is left out and logged."""
        ...

    async def load_task(self, task_id: str) -> StoredTask | None: ...

    async def put_task(
        self, task: Task, *, expected: bytes, due_at_ms: int | None = None, keeps_due: bool = False
    ) -> None:
        """Write the task and when it is due next: at `due_at_ms` (None: never), or with `keeps_due` as it was.

        ConflictError (stale) where not `expected` is stored (b"": none).
        """
        ...

    async def delete_task(self, task_id: str, *, expected: bytes) -> None:
        """Forget the task; its runs stay. ConflictError as above."""
        ...

    async def load_due(self, *, before_ms: int, limit: int) -> list[tuple[str, int]]:
        """Tasks that are due, the earliest first, with the time."""
        ...

    async def load_due_times(self, task_ids: Sequence[str]) -> list[int | None]:
        """When each is due next."""
        ...

    async def load_open_runs(self, task_ids: Sequence[str]) -> list[str | None]:
        """The open run of each."""
        ...

    async def load_skips(self, task_id: str) -> list[SkippedDue]:
        """The last 20, newest first."""
        ...

    async def create_run(
        self, head: RunHead, *, expected: bytes, now_ms: int, next_due_ms: int | None = None, skip: str = ""
    ) -> RunMade:
        """Make a run of the task as `expected`, and queue its planning. A task has one open run at most.

        Where `head.due_at_ms` is set, that due time is claimed and `next_due_ms` becomes the next one; with a reason in
        `skip` it is claimed and noted, and no run is made. Asked twice for one run id, it makes one run.
        """
        ...
