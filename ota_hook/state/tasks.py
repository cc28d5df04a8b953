"""Tasks in Redis, when they are due, and making their runs: implements ports.tasks.TaskStore.

Owns the hash of tasks, the sorted set of due times and what all runs share. Must not know what a schedule means: the
caller says when a task is due next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
import structlog
from pydantic import TypeAdapter, ValidationError

from ota_hook.errors import ConflictError
from ota_hook.ports.tasks import RunMade, SkippedDue, StoredTask
from ota_hook.state.connection import Call, RedisClient, redis_errors, run_command, run_commands
from ota_hook.state.durability import DurableWriter
from ota_hook.state.keys import Keys, as_text
from ota_hook.state.task_scripts import CREATE_RUN, DELETE, PUT
from ota_hook.task import RunHead, Task

_TASK: Final[TypeAdapter[Task]] = TypeAdapter(Task)

_log = structlog.get_logger("ota_hook.state.tasks")


class RedisTasks:
    """ports.tasks.TaskStore. `writer` confirms what operators write."""

    def __init__(self, redis: RedisClient, keys: Keys, *, writer: DurableWriter | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer or DurableWriter(redis)

    async def load_tasks(self) -> list[Task]:
        """See ports.tasks.TaskStore."""
        with redis_errors("reading tasks"):
            found: dict[bytes, bytes] = await run_command(self._redis, "HGETALL", self._keys.tasks)
        tasks = []
        for key, stored in found.items():
            try:
                tasks.append(_TASK.validate_json(stored))
            except ValidationError as exc:
                _log.error("task_unreadable", task=as_text(key), problem=str(exc))
        return sorted(tasks, key=lambda task: task.id)

    async def load_task(self, task_id: str) -> StoredTask | None:
        """See ports.tasks.TaskStore."""
        with redis_errors("reading a task"):
            stored: bytes | None = await run_command(self._redis, "HGET", self._keys.tasks, task_id)
        return None if stored is None else StoredTask(_TASK.validate_json(stored), stored)

    async def put_task(
        self, task: Task, *, expected: bytes, due_at_ms: int | None = None, keeps_due: bool = False
    ) -> None:
        """See ports.tasks.TaskStore."""
        arguments = (task.id, expected, orjson.dumps(task), "kept" if keeps_due else _number(due_at_ms))
        call: Call = ((self._keys.tasks, self._keys.due), arguments)
        if (await self._writer.write_or_fail(PUT, [call]))[0] != 1:
            raise ConflictError("The task was changed meanwhile.", mend="Read it and try again.", stale=True)

    async def delete_task(self, task_id: str, *, expected: bytes) -> None:
        """See ports.tasks.TaskStore."""
        keys = (self._keys.tasks, self._keys.due, self._keys.skips_of(task_id))
        if (await self._writer.write_or_fail(DELETE, [(keys, (task_id, expected))]))[0] != 1:
            raise ConflictError("The task was changed meanwhile.", mend="Read it and try again.", stale=True)

    async def load_due(self, *, before_ms: int, limit: int) -> list[tuple[str, int]]:
        """See ports.tasks.TaskStore."""
        with redis_errors("looking for due tasks"):
            found = await run_command(
                self._redis, "ZRANGE", self._keys.due, "-inf", before_ms, "BYSCORE", "LIMIT", 0, limit, "WITHSCORES"
            )
        return [(as_text(task_id), int(due)) for task_id, due in _pairs(found)]

    async def load_due_times(self, task_ids: Sequence[str]) -> list[int | None]:
        """See ports.tasks.TaskStore."""
        with redis_errors("reading due times"):
            scores = await run_commands(self._redis, [("ZSCORE", self._keys.due, task_id) for task_id in task_ids])
        return [None if score is None else int(float(score)) for score in scores]

    async def load_open_runs(self, task_ids: Sequence[str]) -> list[str | None]:
        """See ports.tasks.TaskStore."""
        with redis_errors("reading open runs"):
            found = await run_commands(
                self._redis, [("HGET", self._keys.open_run_by_task, task_id) for task_id in task_ids]
            )
        return [None if run_id is None else as_text(run_id) for run_id in found]

    async def load_skips(self, task_id: str) -> list[SkippedDue]:
        """See ports.tasks.TaskStore."""
        with redis_errors("reading skipped due times"):
            entries = await run_command(self._redis, "LRANGE", self._keys.skips_of(task_id), 0, -1)
        skips = []
        for entry in entries:
            due, _, reason = as_text(entry).partition(" ")
            skips.append(SkippedDue(int(due), reason))
        return skips

    async def create_run(
        self,
        head: RunHead,
        *,
        expected: bytes,
        now_ms: int,
        next_due_ms: int | None = None,
        skip: str = "",
    ) -> RunMade:
        """See ports.tasks.TaskStore."""
        task_id = head.task.id
        keys = (
            self._keys.tasks,
            self._keys.due,
            self._keys.open_run_by_task,
            self._keys.open_runs,
            self._keys.runs,
            self._keys.runs_of(task_id),
            self._keys.work,
            self._keys.skips_of(task_id),
        )
        arguments = (
            task_id,
            expected,
            head.id,
            orjson.dumps(head),
            now_ms,
            _number(head.due_at_ms),
            _number(next_due_ms),
            skip,
        )
        ((word, run_id),) = await self._writer.write_or_fail(CREATE_RUN, [(keys, arguments)])
        return RunMade(as_text(word), as_text(run_id))


def _number(value: int | None) -> int | str:
    return "" if value is None else value


def _pairs(flat: Sequence[Any]) -> list[tuple[bytes, float]]:
    """What ZRANGE … WITHSCORES answered: pairs, or one flat list, as the client has it."""
    if flat and isinstance(flat[0], (list, tuple)):
        return [(member, float(score)) for member, score in flat]
    return [(member, float(score)) for member, score in zip(flat[::2], flat[1::2], strict=True)]
