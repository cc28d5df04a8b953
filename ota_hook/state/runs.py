"""Runs in Redis: implements ports.runs.RunStore.

Owns each run's records and counters, in a slot of its own (run_scripts.py). Must not know what is sent nor to whom: the
rollout package decides.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack
import orjson
import structlog
from pydantic import TypeAdapter, ValidationError

from ota_hook.errors import NotFound
from ota_hook.model import Outcome
from ota_hook.ports.runs import PlanPosition, Recount, Taken
from ota_hook.state.connection import Argument, RedisClient, redis_errors, run_command, run_commands
from ota_hook.state.durability import DurableWriter
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.run_scripts import (
    AGAIN,
    BEGIN,
    END_PLAN,
    IS_NEWS,
    MOVE,
    NEXT_DEADLINE,
    NOTE_UNDELIVERED,
    PLAN,
    QUEUE,
    RECOUNT,
    SENT,
    SET_STATE,
    STOP_IF_IT_FAILS,
    TAKE,
    WAKE,
)
from ota_hook.state.task_scripts import CLOSE_RUN, FREE_TASK
from ota_hook.task import Pacing, Run, RunDevice, RunHead, RunState

KEPT_SECONDS: Final = 90 * 86_400
"""So long a run that is over is kept."""

_LOOKED_AT: Final = 500
"""So many runs a page looks through at least, where few are in the wanted state."""

_RECOUNTED_AT_ONCE: Final = 4
"""Chunks of a recount that Redis counts at once: a thousand devices, a millisecond or two."""

_TELLING_MS: Final = 10_000
"""Who began to tell of a state, and did not say that it is told, was lost."""

_FAILED: Final = 8
"""Where a record has its last failure."""

_HEAD: Final[TypeAdapter[RunHead]] = TypeAdapter(RunHead)
_packer = msgpack.Packer(unicode_errors="surrogatepass")

_log = structlog.get_logger("ota_hook.state.runs")


class RedisRuns:
    """ports.runs.RunStore."""

    def __init__(self, redis: RedisClient, keys: Keys, *, writer: DurableWriter | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer or DurableWriter(redis)

    # ---- reading

    async def load_open(self) -> list[RunHead]:
        """See ports.runs.RunStore."""
        with redis_errors("reading open runs"):
            found: dict[bytes, bytes] = await run_command(self._redis, "HGETALL", self._keys.open_runs)
        heads = []
        for key, stored in found.items():
            try:
                heads.append(_HEAD.validate_json(stored))
            except ValidationError as exc:
                _log.error("run_unreadable", run=as_text(key), problem=str(exc))
        return heads

    async def load_run(self, run_id: str) -> Run | None:
        """See ports.runs.RunStore."""
        with redis_errors("reading a run"):
            fields: dict[bytes, bytes] = await run_command(self._redis, "HGETALL", self._keys.run(run_id))
            stored = fields.get(b"head") or await run_command(self._redis, "HGET", self._keys.open_runs, run_id)
        return None if stored is None else _run_of(run_id, stored, fields)

    async def page_runs(
        self, *, task_id: str | None, before: str | None, limit: int, state: RunState | None = None
    ) -> tuple[list[Run], str | None]:
        """See ports.runs.RunStore."""
        key = self._keys.runs if task_id is None else self._keys.runs_of(task_id)
        with redis_errors("listing runs"):
            start = 0
            if before is not None:
                rank = await run_command(self._redis, "ZREVRANK", key, before)
                if rank is None:
                    raise NotFound("The run of this cursor is not kept any more.", mend="Start without a cursor.")
                start = rank + 1
            looked_at = limit if state is None else max(limit, _LOOKED_AT)
            ids = [as_text(one) for one in await run_command(self._redis, "ZREVRANGE", key, start, start + looked_at)]
            found = await self._load_runs(ids[:looked_at])
        page: list[Run] = []
        for place, run in enumerate(found):
            if run is not None and state in (None, run.state):
                page.append(run)
            if len(page) == limit or place == looked_at - 1:
                return page, ids[place] if place + 1 < len(ids) else None
        return page, None

    async def _load_runs(self, run_ids: Sequence[str]) -> list[Run | None]:
        """`load_run` for many, in one round trip, and a second where some have not begun."""
        found = await run_commands(self._redis, [("HGETALL", self._keys.run(run_id)) for run_id in run_ids])
        headless = [run_id for run_id, fields in zip(run_ids, found, strict=True) if b"head" not in fields]
        heads = await run_commands(self._redis, [("HGET", self._keys.open_runs, run_id) for run_id in headless])
        head_by_id = dict(zip(headless, heads, strict=True))
        runs: list[Run | None] = []
        for run_id, fields in zip(run_ids, found, strict=True):
            stored = fields.get(b"head") or head_by_id[run_id]
            runs.append(None if stored is None else _run_of(run_id, stored, fields))
        return runs

    async def read_chunk(self, run_id: str, chunk: int) -> list[RunDevice]:
        """See ports.runs.RunStore."""
        with redis_errors("reading a chunk of a run"):
            found = await run_command(self._redis, "HGETALL", self._keys.run_chunk(run_id, chunk))
        devices = [device for identifier, packed in found.items() if (device := _device_of(identifier, packed))]
        if len(devices) < len(found):
            _log.warning("run_devices_unreadable", run=run_id, chunk=chunk, count=len(found) - len(devices))
        return devices

    async def count_chunks(self, run_id: str) -> int:
        """See ports.runs.RunStore."""
        with redis_errors("reading a run"):
            return int(await run_command(self._redis, "HGET", self._keys.run(run_id), "chunks") or 0)

    # ---- planning

    async def begin_plan(self, head: RunHead, *, now_ms: int) -> PlanPosition:
        """See ports.runs.RunStore."""
        await self._keep_head(head)
        with redis_errors("beginning a run"):
            arguments = (now_ms, head.task.retries, head.task.backoff_s * 1000)
            state, cursor, chunks = await BEGIN.run(self._redis, (self._keys.run(head.id),), arguments)
        return PlanPosition(RunState(as_text(state)), int(cursor or 0), int(chunks or 0))

    async def add_chunk(
        self, run_id: str, devices: Sequence[RunDevice], *, before: PlanPosition, cursor: int
    ) -> PlanPosition | None:
        """See ports.runs.RunStore."""
        keys = (
            self._keys.run(run_id),
            self._keys.run_chunk(run_id, before.chunks),
            self._keys.run_unsent(run_id),
        )
        arguments: list[Argument] = [before.cursor, cursor, before.chunks]
        for device in devices:
            arguments += (as_bytes(device.identifier), _pack(device))
        with redis_errors("planning a run"):
            added = await PLAN.run(self._redis, keys, arguments)
        return PlanPosition(RunState.PLANNING, cursor, before.chunks + 1) if added else None

    async def end_plan(self, run_id: str, position: PlanPosition, *, now_ms: int) -> bool:
        """See ports.runs.RunStore."""
        with redis_errors("planning a run"):
            return bool(await END_PLAN.run(self._redis, (self._keys.run(run_id),), (position.cursor, now_ms)))

    # ---- sending

    async def queue_chunks(self, run_id: str, *, now_ms: int, stale_ms: int, most: int) -> list[int]:
        """See ports.runs.RunStore."""
        keys = (self._keys.run(run_id), self._keys.run_unsent(run_id))
        with redis_errors("queueing chunks of a run"):
            return [int(chunk) for chunk in await QUEUE.run(self._redis, keys, (now_ms, now_ms - stale_ms, most))]

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
        """See ports.runs.RunStore."""
        keys = (
            *(self._keys.run(run_id), self._keys.run_chunk(run_id, chunk)),
            *(self._keys.run_unsent(run_id), self._keys.run_later(run_id)),
        )
        arguments = (
            *(chunk, worker, now_ms, lease_ms, most, first_id, int(is_first)),
            *(pacing.rate_per_minute or 0, pacing.ramp_from_per_minute or 0, pacing.max_concurrent or 0),
            *(stop_after, stop_percent, pacing.jitter_s * 1000, random.getrandbits(31)),
        )
        with redis_errors("taking devices of a run"):
            word, wait_ms, again, taken = await TAKE.run(self._redis, keys, arguments)
        return Taken(as_text(word), wait_ms, _devices_of(again), _devices_of(taken))

    async def mark_sent(
        self, run_id: str, chunk: int, devices: Sequence[RunDevice], *, now_ms: int, timeout_ms: int
    ) -> None:
        """See ports.runs.RunStore."""
        keys = (self._keys.run(run_id), self._keys.run_chunk(run_id, chunk), self._keys.run_deadlines(run_id))
        arguments: list[Argument] = [chunk, now_ms, timeout_ms]
        for device in devices:
            arguments += (
                as_bytes(device.identifier),
                device.outcome.value,
                as_bytes(device.code),
                device.firmware_id,
                as_bytes(device.from_version),
            )
        with redis_errors("noting what was sent"):
            await SENT.run(self._redis, keys, arguments)

    async def move(self, run_id: str, chunk: int, devices: Sequence[RunDevice], *, now_ms: int) -> int:
        """See ports.runs.RunStore."""
        keys = (self._keys.run(run_id), self._keys.run_chunk(run_id, chunk), self._keys.run_later(run_id))
        arguments: list[Argument] = [chunk, now_ms]
        for device in devices:
            arguments += (as_bytes(device.identifier), device.outcome.value, as_bytes(device.code), device.at_ms)
        with redis_errors("noting outcomes"):
            return int(await MOVE.run(self._redis, keys, arguments))

    async def wake(self, run_id: str, *, now_ms: int) -> None:
        """See ports.runs.RunStore."""
        with redis_errors("looking for retries"):
            await WAKE.run(self._redis, (self._keys.run_unsent(run_id), self._keys.run_later(run_id)), (now_ms,))

    async def note_undelivered(self, run_id: str, chunk: int, identifiers: Sequence[str]) -> None:
        """See ports.runs.RunStore."""
        keys = (self._keys.run(run_id), self._keys.run_chunk(run_id, chunk))
        with redis_errors("noting what was not delivered"):
            await NOTE_UNDELIVERED.run(self._redis, keys, [chunk, *map(as_bytes, identifiers)])

    async def send_again(self, run_id: str, chunk: int, identifiers: Sequence[str], *, now_ms: int) -> int:
        """See ports.runs.RunStore."""
        keys = (self._keys.run(run_id), self._keys.run_chunk(run_id, chunk), self._keys.run_unsent(run_id))
        with redis_errors("sending commands again"):
            return int(await AGAIN.run(self._redis, keys, (chunk, now_ms, *map(as_bytes, identifiers))))

    async def load_due_chunks(self, run_id: str, *, now_ms: int, limit: int) -> list[int]:
        """See ports.runs.RunStore."""
        with redis_errors("looking for devices that timed out"):
            found = await run_command(
                self._redis,
                *("ZRANGE", self._keys.run_deadlines(run_id), "-inf", now_ms, "BYSCORE", "LIMIT", 0, limit),
            )
        return [int(chunk) for chunk in found]

    async def set_next_deadline(self, run_id: str, chunk: int, *, now_ms: int, timeout_ms: int) -> None:
        """See ports.runs.RunStore."""
        keys = (self._keys.run(run_id), self._keys.run_chunk(run_id, chunk), self._keys.run_deadlines(run_id))
        with redis_errors("looking for devices that time out"):
            await NEXT_DEADLINE.run(self._redis, keys, (chunk, timeout_ms, now_ms))

    # ---- counters

    async def recount(self, run_id: str, *, now_ms: int, every_ms: int, most_chunks: int) -> Recount:
        """See ports.runs.RunStore."""
        run = self._keys.run(run_id)
        wanted = ("recount", "chunks", "state", "started", "recounted", "recounted_in")
        with redis_errors("counting the devices of a run"):
            at, chunks, state, *before = await run_command(self._redis, "HMGET", run, *wanted)
            if at is None and not _is_recount_due(state, *before, now_ms=now_ms, every_ms=every_ms):
                return Recount(is_done=True)
            first, count = int(at or 0), int(chunks or 0)
            last = first + most_chunks
            while first < last:
                numbers = range(first, min(first + _RECOUNTED_AT_ONCE, count, last))
                keys = (run, *(self._keys.run_chunk(run_id, number) for number in numbers))
                first, is_done, mended = await RECOUNT.run(self._redis, keys, (first, now_ms))
                if is_done:
                    found = zip(mended[::3], mended[1::3], mended[2::3], strict=True)
                    return Recount(is_done=True, mended={as_text(n): (as_text(was), is_) for n, was, is_ in found})
                if first < 0 or not numbers:  # another worker counts as well, or planning has gone on
                    break
        return Recount(is_done=False)

    # ---- states

    async def set_state(
        self, head: RunHead, wanted: RunState | None, *, of: Sequence[RunState], reason: str, now_ms: int
    ) -> tuple[bool, RunState]:
        """See ports.runs.RunStore."""
        await self._keep_head(head)
        arguments = ("resumed" if wanted is None else wanted.value, as_bytes(reason), now_ms, *(s.value for s in of))
        ((changed, state),) = await self._writer.write_or_fail(SET_STATE, [((self._keys.run(head.id),), arguments)])
        return bool(changed), RunState(as_text(state))

    async def is_news(self, run_id: str, state: RunState, *, now_ms: int) -> bool | None:
        """See ports.runs.RunStore."""
        arguments = (state.value, now_ms, _TELLING_MS)
        with redis_errors("writing a run"):
            answer = await IS_NEWS.run(self._redis, (self._keys.run(run_id),), arguments)
        return None if answer < 0 else bool(answer)

    async def note_told(self, run_id: str, state: RunState) -> None:
        """See ports.runs.RunStore."""
        with redis_errors("writing a run"):
            await run_command(self._redis, "HSET", self._keys.run(run_id), f"told:{state.value}", 1)

    async def stop_if_it_fails(self, run_id: str, *, stop_after: int, stop_percent: int) -> bool:
        """See ports.runs.RunStore."""
        with redis_errors("looking whether a run fails"):
            return bool(await STOP_IF_IT_FAILS.run(self._redis, (self._keys.run(run_id),), (stop_after, stop_percent)))

    async def free_task(self, head: RunHead) -> None:
        """See ports.runs.RunStore."""
        with redis_errors("closing a run"):
            await FREE_TASK.run(self._redis, (self._keys.open_run_by_task,), (head.id, head.task.id))

    async def close(self, head: RunHead) -> None:
        """See ports.runs.RunStore."""
        chunks = await self.count_chunks(head.id)
        keys = [
            self._keys.run(head.id),
            self._keys.run_unsent(head.id),
            self._keys.run_deadlines(head.id),
            self._keys.run_later(head.id),
            *(self._keys.run_chunk(head.id, chunk) for chunk in range(chunks)),
        ]
        with redis_errors("closing a run"):
            for start in range(0, len(keys), 500):
                batch = keys[start : start + 500]
                await run_commands(self._redis, [("EXPIRE", key, KEPT_SECONDS) for key in batch])
            await CLOSE_RUN.run(
                self._redis, (self._keys.open_runs, self._keys.open_run_by_task), (head.id, head.task.id)
            )
            gone_ms = head.created_at_ms - KEPT_SECONDS * 1000
            for key in (self._keys.runs, self._keys.runs_of(head.task.id)):
                await run_command(self._redis, "ZREMRANGEBYSCORE", key, "-inf", gone_ms)

    async def _keep_head(self, head: RunHead) -> None:
        with redis_errors("writing a run"):
            await run_command(self._redis, "HSETNX", self._keys.run(head.id), "head", orjson.dumps(head))


def _is_recount_due(
    state: bytes | None,
    started: bytes | None,
    recounted: bytes | None,
    recounted_in: bytes | None,
    *,
    now_ms: int,
    every_ms: int,
) -> bool:
    if started is None:
        return False
    has_ended = RunState(as_text(state or b"waiting")).is_final
    return now_ms - int(recounted or started) >= every_ms or (has_ended and recounted_in != state)


def _count_of(fields: Mapping[bytes, bytes], name: str) -> int:
    """A counter; 0 for what is none, until it is recounted."""
    stored = fields.get(name.encode(), b"0")
    return int(stored) if stored.removeprefix(b"-").isdigit() else 0


def _run_of(run_id: str, head: bytes, fields: Mapping[bytes, bytes]) -> Run | None:
    """None, and logged, where it can't be read."""
    try:
        return Run(
            head=_HEAD.validate_json(head),
            state=RunState(as_text(fields.get(b"state", b"waiting"))),
            is_planned=b"planned" in fields,
            reason=as_text(fields.get(b"reason", b"")),
            started_at_ms=int(fields[b"started"]) if b"started" in fields else None,
            finished_at_ms=int(fields[b"finished"]) if b"finished" in fields else None,
            total=_count_of(fields, "total"),
            retried=_count_of(fields, "retried"),
            away=_count_of(fields, "waited_for"),
            counters={outcome: count for outcome in Outcome if (count := _count_of(fields, f"n:{outcome.value}"))},
        )
    except ValueError as exc:  # pydantic's are
        _log.error("run_unreadable", run=run_id, problem=str(exc))
        return None


def _pack(device: RunDevice) -> bytes:
    packed: bytes = _packer.pack(
        (
            device.outcome.value,
            device.firmware_id,
            device.from_version,
            device.command_id,
            device.at_ms,
            device.code,
        )
    )
    return packed


def _device_of(identifier: bytes, packed: bytes) -> RunDevice | None:
    """None where it can't be read, as for the scripts."""
    try:
        record: list[Any] = msgpack.unpackb(packed, unicode_errors="surrogatepass")
        outcome, firmware_id, from_version, command_id, at_ms, code = record[:6]
        failed_at_ms = int(record[_FAILED][0]) if len(record) > _FAILED else 0
        device = RunDevice(
            *(as_text(identifier), Outcome(outcome), firmware_id, from_version),
            *(int(command_id), int(at_ms), code, failed_at_ms),
        )
    except Exception:  # noqa: BLE001 - msgpack has many, and any shape may come out of it
        return None
    is_whole = all(isinstance(text, str) for text in (firmware_id, from_version, code))
    return device if is_whole else None


def _devices_of(flat: Sequence[Any]) -> list[RunDevice]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return [device for identifier, packed in pairs if (device := _device_of(identifier, packed))]
