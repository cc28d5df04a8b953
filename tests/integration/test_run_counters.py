"""A run's counters say what its devices' records say, whatever moves them, and mend where something damaged them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Final

import pytest
from redis.asyncio import Redis

from ota_hook.model import Outcome
from ota_hook.ports.runs import Recount
from ota_hook.progress import UNDELIVERED
from ota_hook.state.keys import Keys
from ota_hook.state.runs import RedisRuns
from ota_hook.task import Pacing, RunDevice, RunHead, RunState, Task

TASK = Task(id="01JTASK", name="all", device_type="tracker", retries=2, backoff_s=20)
HEAD = RunHead(id="01JRUN", task=TASK, created_at_ms=1_000)
EVERY_MS: Final = 60_000
STEPS: Final = [outcome for outcome in Outcome if outcome not in {Outcome.PLANNED, Outcome.SENDING}]


@pytest.fixture
def runs(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> RedisRuns:
    """With one chunk to a step of a recount, so that there is much between its beginning and its end."""
    monkeypatch.setattr("ota_hook.state.runs._RECOUNTED_AT_ONCE", 1)
    return RedisRuns(redis, keys)


def is_waited_for(device: RunDevice) -> bool:
    return device.code == UNDELIVERED and device.outcome in {Outcome.OFFERED, Outcome.SENDING}


async def stored_counters(redis: Redis, keys: Keys) -> dict[str, int]:
    fields = await redis.hgetall(keys.run(HEAD.id))
    names = ["total", "final", "waited_for", *(f"n:{outcome.value}" for outcome in Outcome)]
    return {name: int(fields.get(name.encode(), 0)) for name in names}


async def counted(runs: RedisRuns) -> dict[str, int]:
    """The counters as its records have them."""
    devices = [
        device for chunk in range(await runs.count_chunks(HEAD.id)) for device in await runs.read_chunk(HEAD.id, chunk)
    ]
    by_outcome = Counter(device.outcome for device in devices)
    return {
        "total": len(devices),
        "final": sum(device.outcome.is_final for device in devices),
        "waited_for": sum(map(is_waited_for, devices)),
        **{f"n:{outcome.value}": by_outcome[outcome] for outcome in Outcome},
    }


async def recount(runs: RedisRuns, *, now_ms: int, most_chunks: int = 100) -> Recount:
    return await runs.recount(HEAD.id, now_ms=now_ms, every_ms=EVERY_MS, most_chunks=most_chunks)


async def damage(redis: Redis, keys: Keys, **counters: int | str) -> None:
    """Names with `_` for what stands behind `n:`."""
    for name, value in counters.items():
        await redis.hset(keys.run(HEAD.id), name.replace("n_", "n:", 1), value)


class Moves:
    """Moves of one run at random: all that workers do, in any order, by two of them."""

    def __init__(self, runs: RedisRuns, seed: int) -> None:
        self._runs = runs
        self._random = random.Random(seed)
        self._next_id = 1
        self._names = 0
        self.now_ms = 1_000

    async def plan(self, chunks: int) -> None:
        for _ in range(chunks):
            position = await self._runs.begin_plan(HEAD, now_ms=self.now_ms)
            names = [f"d{self._names + number}" for number in range(self._random.randint(1, 6))]
            self._names += len(names)
            devices = [RunDevice(name, Outcome.PLANNED, "F", "1.0") for name in names]
            await self._runs.add_chunk(HEAD.id, devices, before=position, cursor=position.cursor + 1)

    async def end_plan(self) -> None:
        position = await self._runs.begin_plan(HEAD, now_ms=self.now_ms)
        await self._runs.end_plan(HEAD.id, position, now_ms=self.now_ms)

    async def move(self) -> None:
        self.now_ms += self._random.choice([0, 1, 500, 15_000])
        chunk = self._random.randrange(await self._runs.count_chunks(HEAD.id))
        await self._random.choice([self._take, self._send, self._tell, self._miss, self._send_again, self._wake])(chunk)

    async def _take(self, chunk: int) -> None:
        self._next_id += 10
        await self._runs.take(
            *(HEAD.id, chunk),
            worker=self._random.choice(["one", "two"]),
            now_ms=self.now_ms,
            lease_ms=500,
            first_id=self._next_id,
            most=self._random.randint(1, 4),
            pacing=self._random.choice([Pacing(), Pacing(jitter_s=30), Pacing(max_concurrent=9)]),
            stop_after=self._random.choice([0, 1_000]),
            stop_percent=100,
            is_first=self._random.random() < 0.5,
        )

    async def _send(self, chunk: int) -> None:
        outcomes = [Outcome.OFFERED, Outcome.OFFERED, Outcome.PLANNED, Outcome.SKIPPED, Outcome.FAILED]
        devices = [device._replace(outcome=self._random.choice(outcomes)) for device in await self._some(chunk)]
        await self._runs.mark_sent(HEAD.id, chunk, devices, now_ms=self.now_ms, timeout_ms=9)

    async def _tell(self, chunk: int) -> None:
        codes = ["", "expired", UNDELIVERED]  # a device may say any word
        devices = [
            device._replace(outcome=self._random.choice(STEPS), code=self._random.choice(codes), at_ms=self.now_ms)
            for device in await self._some(chunk)
        ]
        await self._runs.move(HEAD.id, chunk, devices, now_ms=self.now_ms)

    async def _miss(self, chunk: int) -> None:
        names = [device.identifier for device in await self._some(chunk)]
        await self._runs.note_undelivered(HEAD.id, chunk, [*names, "stranger"])

    async def _send_again(self, chunk: int) -> None:
        names = [device.identifier for device in await self._some(chunk)]
        await self._runs.send_again(HEAD.id, chunk, names, now_ms=self.now_ms)

    async def _wake(self, chunk: int) -> None:
        await self._runs.wake(HEAD.id, now_ms=self.now_ms)
        await self._runs.queue_chunks(HEAD.id, now_ms=self.now_ms, stale_ms=1, most=9)

    async def _some(self, chunk: int) -> list[RunDevice]:
        devices = sorted(await self._runs.read_chunk(HEAD.id, chunk))
        return self._random.sample(devices, self._random.randint(0, len(devices)))


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_moves_a_run_its_counters_are_those_of_its_records(
    redis: Redis, keys: Keys, runs: RedisRuns, seed: int
) -> None:
    moves = Moves(runs, seed)
    await moves.plan(4)
    await moves.end_plan()
    for _ in range(200):
        await moves.move()
        assert await stored_counters(redis, keys) == await counted(runs)
        assert (await recount(runs, now_ms=moves.now_ms, most_chunks=1)).mended == {}
    assert len({name for name, count in (await counted(runs)).items() if count}) > 5


@pytest.mark.parametrize("seed", range(6))
async def test_a_recount_is_right_though_devices_move_and_planning_goes_on_meanwhile(
    redis: Redis, keys: Keys, runs: RedisRuns, seed: int
) -> None:
    moves = Moves(runs, seed)
    await moves.plan(3)
    await damage(redis, keys, n_planned=40, n_failed=-3, final=2, total=1, waited_for=7)
    moves.now_ms += EVERY_MS
    for _ in range(4):
        assert not (await recount(runs, now_ms=moves.now_ms, most_chunks=1)).is_done
        await moves.plan(1)
    await moves.end_plan()
    done = False
    while not done:
        for _ in range(20):
            await moves.move()
        recounted = await recount(runs, now_ms=moves.now_ms, most_chunks=1)
        done = recounted.is_done
    assert await stored_counters(redis, keys) == await counted(runs)
    for _ in range(30):
        await moves.move()
    assert await stored_counters(redis, keys) == await counted(runs)


async def test_damaged_counters_are_mended_and_said(redis: Redis, keys: Keys, runs: RedisRuns) -> None:
    moves = Moves(runs, 1)
    await moves.plan(3)
    await moves.end_plan()
    right = await stored_counters(redis, keys)
    await damage(redis, keys, n_failed=5, total=99, n_planned="many")
    assert await recount(runs, now_ms=1_000 + EVERY_MS - 1) == Recount(is_done=True)  # not yet
    recounted = await recount(runs, now_ms=1_000 + EVERY_MS)
    assert recounted.is_done
    assert recounted.mended == {
        "n:failed": ("5", 0),
        "n:planned": ("many", right["n:planned"]),
        "total": ("99", right["total"]),
    }
    assert await stored_counters(redis, keys) == right
    assert not await redis.hexists(keys.run(HEAD.id), "recount")
    assert not await redis.hexists(keys.run(HEAD.id), "r:n:planned")


async def test_a_run_whose_counters_can_not_be_read_is_shown_all_the_same(
    redis: Redis, keys: Keys, runs: RedisRuns
) -> None:
    await Moves(runs, 1).plan(1)
    await damage(redis, keys, n_failed="many", total="", n_planned="-")
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.total, run.counters) == (0, {})


async def settle_all(runs: RedisRuns, *, but: int = 0) -> None:
    devices = sorted(await runs.read_chunk(HEAD.id, 0))
    done = [device._replace(outcome=Outcome.SUCCEEDED, at_ms=3) for device in devices[but:]]
    await runs.move(HEAD.id, 0, done, now_ms=3_000)


async def begin(runs: RedisRuns, devices: int) -> None:
    position = await runs.begin_plan(HEAD, now_ms=1_000)
    chunk = [RunDevice(f"d{number}", Outcome.PLANNED, "F", "1.0") for number in range(devices)]
    after = await runs.add_chunk(HEAD.id, chunk, before=position, cursor=1)
    assert after is not None
    await runs.end_plan(HEAD.id, after, now_ms=1_000)


async def test_a_run_that_a_wrong_counter_keeps_open_is_completed(redis: Redis, keys: Keys, runs: RedisRuns) -> None:
    await begin(runs, 3)
    await damage(redis, keys, final=-1)
    await settle_all(runs)
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert run.state is RunState.RUNNING
    assert (await recount(runs, now_ms=2_000 + EVERY_MS)).mended == {"final": ("2", 3)}
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.state, run.finished_at_ms) == (RunState.COMPLETED, 2_000 + EVERY_MS)


async def test_a_run_that_a_wrong_counter_completed_too_early_goes_on(
    redis: Redis, keys: Keys, runs: RedisRuns
) -> None:
    await begin(runs, 3)
    await damage(redis, keys, final=1)
    await settle_all(runs, but=1)
    assert await runs.is_news(HEAD.id, RunState.COMPLETED, now_ms=1)
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert run.state is RunState.COMPLETED
    assert (await recount(runs, now_ms=3_001)).mended == {"final": ("3", 2)}  # at once: it has ended
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.state, run.finished_at_ms) == (RunState.RUNNING, None)
    await settle_all(runs)
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.state, run.counters) == (RunState.COMPLETED, {Outcome.SUCCEEDED: 3})
    assert await runs.is_news(HEAD.id, RunState.COMPLETED, now_ms=1)


async def test_a_run_that_has_ended_is_counted_once_more_and_not_again(
    runs: RedisRuns, redis: Redis, keys: Keys
) -> None:
    await begin(runs, 2)
    await recount(runs, now_ms=1_000 + EVERY_MS)
    await settle_all(runs)
    assert (await recount(runs, now_ms=1_001 + EVERY_MS)).is_done
    await damage(redis, keys, n_failed=1)
    assert (await recount(runs, now_ms=1_002 + EVERY_MS)).mended == {}


async def test_of_those_that_recount_at_once_each_device_is_counted_by_one(
    redis: Redis, keys: Keys, runs: RedisRuns
) -> None:
    moves = Moves(runs, 3)
    await moves.plan(12)
    right = await stored_counters(redis, keys)
    await damage(redis, keys, total=0)
    now_ms = 1_000 + EVERY_MS
    recounted = await asyncio.gather(*(recount(runs, now_ms=now_ms) for _ in range(4)))
    assert [one.mended for one in recounted if one.mended] == [{"total": ("0", right["total"])}]
    assert await stored_counters(redis, keys) == right
