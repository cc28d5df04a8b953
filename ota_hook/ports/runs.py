"""Runs: planned, lent out in chunks, moved on, ended; and the news of their devices.

Owns what may be asked of a run and what comes back. Must not know who sends, or how records are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from ota_hook.task import Pacing, Run, RunDevice, RunHead, RunMove, RunState


class PlanPosition(NamedTuple):
    """How far the planning of a run is: its state, the place behind what was looked at, and the chunks so far."""

    state: RunState
    cursor: int
    chunks: int


class Taken(NamedTuple):
    """What a worker may send of a chunk. `word`: `taken`, `held` (by another), `paced` (not yet), `stopped`, `done`.

    `again`: an earlier holder may have sent these; `devices` are new. All have their command ids and are `sending`.
    `wait_ms` says when to ask for more, or how long another has it.
    """

    word: str
    wait_ms: int
    again: list[RunDevice]
    devices: list[RunDevice]


class Recount(NamedTuple):
    """How a recount went: whether nothing is left of it, and which counters were found wrong: found, and counted."""

    is_done: bool
    mended: Mapping[str, tuple[str, int]] = MappingProxyType({})


class RunStore(Protocol):
    """Runs: their records, counters and states. Raises DependencyError where Redis does not answer."""

    async def load_open(self) -> list[RunHead]:
        """The runs that are not closed."""
        ...

    async def load_run(self, run_id: str) -> Run | None:
        """None where there is none, or none that can be read: that is logged."""
        ...

    async def page_runs(
        self, *, task_id: str | None, before: str | None, limit: int, state: RunState | None = None
    ) -> tuple[list[Run], str | None]:
        """Runs (of a task, in a state), newest first, behind the run `before`; and what to pass for the next page.

        With `state` a page may be short, or empty, and not the last. A run that can't be read is left out.
        """
        ...

    async def read_chunk(self, run_id: str, chunk: int) -> list[RunDevice]:
        """Its devices. One whose record can't be read is left out, logged, and counts for nothing."""
        ...

    async def count_chunks(self, run_id: str) -> int: ...

    async def begin_plan(self, head: RunHead, *, now_ms: int) -> PlanPosition:
        """Begin to plan, or find out how far it is. Planning goes on only in the state `planning`."""
        ...

    async def add_chunk(
        self, run_id: str, devices: Sequence[RunDevice], *, before: PlanPosition, cursor: int
    ) -> PlanPosition | None:
        """Add devices, all there are up to `cursor`. None and nothing written where planning is not at `before`."""
        ...

    async def end_plan(self, run_id: str, position: PlanPosition, *, now_ms: int) -> bool:
        """All was looked at: the run runs; one without devices is completed."""
        ...

    async def queue_chunks(self, run_id: str, *, now_ms: int, stale_ms: int, most: int) -> list[int]:
        """Chunks to put into the queue: so that `most` are in it, those that nobody touched for `stale_ms` again."""
        ...

    async def take(
        self,
        run_id: str,
        chunk: int,
        *,
        worker: str,
        now_ms: int,
        lease_ms: int,
        first_id: int,
        most: int,
        pacing: Pacing,
        stop_after: int,
        stop_percent: int,
        is_first: bool,
    ) -> Taken:
        """Borrow a chunk (again) for `lease_ms` and take devices of it. Command ids are `first_id` and those behind.

        With `stop_after` above 0 no more devices are under way than twice the greater of it and of what succeeded, and
        the run is stopped as by `stop_if_it_fails`. Who is away and waited for is not under way.
        """
        ...

    async def mark_sent(
        self, run_id: str, chunk: int, devices: Sequence[RunDevice], *, now_ms: int, timeout_ms: int
    ) -> None:
        """What became of devices that were `sending`, with their firmware as it was sent; a planned one waits again."""
        ...

    async def move(self, run_id: str, chunk: int, devices: Sequence[RunDevice], *, now_ms: int) -> int:
        """Bring devices to later outcomes; what would lead back is ignored. Returns how many moved.

        One that failed or timed out is planned again where the run's task retries. The same news may come twice.
        """
        ...

    async def wake(self, run_id: str, *, now_ms: int) -> None:
        """Devices whose wait is over, for a retry or by chance, have something to be sent."""
        ...

    async def note_undelivered(self, run_id: str, chunk: int, identifiers: Sequence[str]) -> None:
        """Their command did not reach them: they don't time out, they are waited for until the run expires."""
        ...

    async def send_again(self, run_id: str, chunk: int, identifiers: Sequence[str], *, now_ms: int) -> int:
        """Their command goes once more, with its id, where they are `offered` still. Returns how many.

        For one that is `sending` now it goes once more when that was noted.
        """
        ...

    async def load_due_chunks(self, run_id: str, *, now_ms: int, limit: int) -> list[int]:
        """Chunks in which a device may have timed out, or one that was waited for may be back."""
        ...

    async def set_next_deadline(self, run_id: str, chunk: int, *, now_ms: int, timeout_ms: int) -> None:
        """Look for the next device of the chunk that times out; for those that are waited for after that time."""
        ...

    async def recount(self, run_id: str, *, now_ms: int, every_ms: int, most_chunks: int) -> Recount:
        """Count the run's devices anew, up to so many chunks of them, and mend the counters behind the last.

        It goes on where it was left, whoever left it, and begins where the last one is `every_ms` ago, or the run has
        ended since. Devices may move meanwhile.
        """
        ...

    async def set_state(
        self, head: RunHead, wanted: RunState | None, *, of: Sequence[RunState], reason: str, now_ms: int
    ) -> tuple[bool, RunState]:
        """Change the state where it is one `of` these: whether, and what it was. None: what it was before a pause.

        Behind a stop the run has another chance: what failed until then counts for no other.
        """
        ...

    async def is_news(self, run_id: str, state: RunState, *, now_ms: int) -> bool | None:
        """Whether others have to be told of that state, since the run was resumed. Who is answered so tells them.

        None where somebody is at it.
        """
        ...

    async def note_told(self, run_id: str, state: RunState) -> None:
        """They were told. Where this is not said within ten seconds, it is news once more."""
        ...

    async def stop_if_it_fails(self, run_id: str, *, stop_after: int, stop_percent: int) -> bool:
        """Stop the run where so many per cent of `stop_after` or more finished devices failed or timed out."""
        ...

    async def free_task(self, head: RunHead) -> None:
        """Its task may have another run. This one stays open for the worker that tells of its end and closes it."""
        ...

    async def close(self, head: RunHead) -> None:
        """A run in a final state: the task may have another, and the records are kept for 90 days."""
        ...


class RunEvents(Protocol):
    """What became of offers that belong to runs, as the hook and the admin role tell it. Raises DependencyError."""

    async def open(self) -> None: ...

    async def read(self, *, most: int, block_ms: int) -> list[tuple[str, RunMove]]:
        """Events that no other worker has, or that one had for too long; waits up to `block_ms` for some."""
        ...

    async def finish(self, entries: Sequence[str]) -> None: ...
