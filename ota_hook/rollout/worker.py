"""A worker: takes work from the queue, looks after open runs and offers, makes runs of due tasks, and notes outcomes.

Any number of them share one Redis. What one leaves undone, another takes over; none knows of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from ota_hook.endings import end_tasks
from ota_hook.errors import OtaHookError
from ota_hook.model import Outcome
from ota_hook.ports.runs import RunEvents, RunStore
from ota_hook.ports.work import Work, WorkQueue
from ota_hook.rollout.check_timer import CheckTimer
from ota_hook.rollout.keeper import Keeper
from ota_hook.rollout.planner import Planner
from ota_hook.rollout.scheduler import Scheduler
from ota_hook.rollout.sender import Sender
from ota_hook.rollout.watch import FirmwareWatch
from ota_hook.task import RunDevice, RunMove, RunState

CONCURRENT_WORK: Final = 8
ATTEMPTS_MAX: Final = 5
_BLOCK_MS: Final = 500
_ROUND_S: Final = 0.5
_TIMER_ROUND_S: Final = 10.0
_EVENTS: Final = 500
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0)

_log = structlog.get_logger("ota_hook.rollout")


class Worker:
    """See the module; `run` until it is cancelled."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        lease_ms: int,
        runs: RunStore,
        events: RunEvents,
        planner: Planner,
        sender: Sender,
        keeper: Keeper,
        timer: CheckTimer,
        scheduler: Scheduler,
        watch: FirmwareWatch,
        clock_ms: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._lease_ms = lease_ms
        self._runs = runs
        self._events = events
        self._planner = planner
        self._sender = sender
        self._keeper = keeper
        self._timer = timer
        self._scheduler = scheduler
        self._watch = watch
        self._clock_ms = clock_ms
        self._at_work: dict[asyncio.Task[None], Work] = {}

    async def run(self) -> None:
        """Work until cancelled. What is under way then is left to another worker."""
        loops = {
            asyncio.create_task(self._again_and_again(work, pause_s))
            for work, pause_s in (
                (self._take_work, 0),
                (self._renew, self._lease_ms / 4000),
                (self._keeper.look_after_all, _ROUND_S),
                (self._scheduler.make_due_runs, _ROUND_S),
                (self._watch.look, _ROUND_S),
                (self._timer.look, _TIMER_ROUND_S),
                (self._note_events, 0),
            )
        }
        try:
            await asyncio.wait(loops)
        finally:
            await end_tasks(loops)
            await end_tasks(set(self._at_work))

    async def _again_and_again(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        """For ever; a failure is logged once and tried again."""
        failures = 0
        while True:
            try:
                await work()
                failures = 0
                # Workers that started together shall not do the same at once.
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            except Exception as exc:  # noqa: BLE001 - whatever it is, this loop must go on
                if not failures:
                    _log.warning("worker_failed", problem=str(exc), exc_info=not isinstance(exc, OtaHookError))
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                failures += 1

    # ---- work

    async def _take_work(self) -> None:
        free = CONCURRENT_WORK - len(self._at_work)
        if free <= 0:
            await asyncio.wait(self._at_work, timeout=_BLOCK_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
            return
        for work in await self._queue.claim(most=free, block_ms=_BLOCK_MS):
            task = asyncio.create_task(self._do(work))
            self._at_work[task] = work
            task.add_done_callback(self._at_work.pop)

    async def _renew(self) -> None:
        await self._queue.renew(list(self._at_work.values()))

    async def _do(self, work: Work) -> None:
        try:
            run = await self._runs.load_run(work.run_id)
            if run is None or run.state.is_final:
                await self._queue.finish(work)
                return
            if work.attempt > ATTEMPTS_MAX:
                await self._give_up(work, "It was tried too often: each worker that had it ended.")
                return
            if work.chunk is None:
                await self._planner.plan(run.head)
            else:
                await self._sender.send_chunk(run.head, work.chunk)
            await self._queue.finish(work)
        except OtaHookError as exc:
            # Redis or the broker: the lease runs out, and then it is tried again by whoever is there.
            _log.warning("work_failed", run=work.run_id, chunk=work.chunk, problem=str(exc))
        except Exception as exc:  # noqa: BLE001 - logged whole; a fault of ours
            _log.exception("work_failed", run=work.run_id, chunk=work.chunk)
            if work.attempt >= ATTEMPTS_MAX:
                with contextlib.suppress(OtaHookError):
                    await self._give_up(work, repr(exc))

    async def _give_up(self, work: Work, reason: str) -> None:
        await self._queue.bury(work, reason)
        run = await self._runs.load_run(work.run_id)
        if run is not None:
            await self._runs.set_state(
                run.head,
                RunState.PAUSED,
                of=[RunState.WAITING, RunState.PLANNING, RunState.RUNNING],
                reason=f"A part of it was given up: {reason}",
                now_ms=self._clock_ms(),
            )

    # ---- events

    async def _note_events(self) -> None:
        read = await self._events.read(most=_EVENTS, block_ms=_BLOCK_MS)
        by_chunk: defaultdict[tuple[str, int], list[RunMove]] = defaultdict(list)
        for _, move in read:
            by_chunk[move.run_id, move.chunk].append(move)
        for (run_id, chunk), moves in by_chunk.items():
            await self._note(run_id, chunk, moves)
        await self._events.finish([entry for entry, _ in read])

    async def _note(self, run_id: str, chunk: int, moves: Sequence[RunMove]) -> None:
        """What became of devices of one chunk. `offered` says that it was not delivered, `planned` that it is back."""
        further = [
            RunDevice(move.identifier, move.outcome, "", "", at_ms=move.at_ms, code=move.code)
            for move in moves
            if move.outcome not in {Outcome.OFFERED, Outcome.PLANNED}
        ]
        if further:
            await self._runs.move(run_id, chunk, further, now_ms=self._clock_ms())
        undelivered = [move.identifier for move in moves if move.outcome is Outcome.OFFERED]
        if undelivered:
            await self._runs.note_undelivered(run_id, chunk, undelivered)
        back = [move.identifier for move in moves if move.outcome is Outcome.PLANNED]
        if back:
            await self._runs.send_again(run_id, chunk, back, now_ms=self._clock_ms())
