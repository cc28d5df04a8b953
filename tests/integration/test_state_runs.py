"""Tasks, runs and the workers' queue on a real Redis, single and Cluster."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Final

import msgpack
import pytest
from redis.asyncio import Redis

from ota_hook.errors import ConflictError
from ota_hook.model import Interval, Outcome, Repeat
from ota_hook.ports.runs import PlanPosition
from ota_hook.ports.tasks import StoredTask
from ota_hook.state.keys import Keys
from ota_hook.state.runs import RedisRuns
from ota_hook.state.tasks import RedisTasks
from ota_hook.state.work import RedisWorkQueue
from ota_hook.task import Pacing, RunDevice, RunHead, RunState, Task

TASK = Task(id="01JTASK", name="夜间升级", device_type="tracker", schedule=Repeat("Asia/Shanghai", (0, 3), (150,)))
HEAD = RunHead(id="01JRUN", task=TASK, created_at_ms=1_000)
ALL_STATES = tuple(RunState)


@pytest.fixture
def tasks(redis: Redis, keys: Keys) -> RedisTasks:
    return RedisTasks(redis, keys)


@pytest.fixture
def runs(redis: Redis, keys: Keys) -> RedisRuns:
    return RedisRuns(redis, keys)


def worker(redis: Redis, keys: Keys, name: str, *, lease_ms: int = 10_000) -> RedisWorkQueue:
    return RedisWorkQueue(redis, keys, consumer=name, lease_ms=lease_ms)


def planned(*identifiers: str) -> list[RunDevice]:
    return [RunDevice(identifier, Outcome.PLANNED, "F", "1.0") for identifier in identifiers]


async def store(tasks: RedisTasks, task: Task = TASK, *, due_at_ms: int | None = None) -> StoredTask:
    await tasks.put_task(task, expected=b"", due_at_ms=due_at_ms)
    stored = await tasks.load_task(task.id)
    assert stored is not None
    return stored


async def start(runs: RedisRuns, *identifiers: str, head: RunHead = HEAD) -> None:
    """A running run with these devices in its first chunk."""
    position: PlanPosition | None = await runs.begin_plan(head, now_ms=1_000)
    assert position is not None
    if identifiers:
        position = await runs.add_chunk(head.id, planned(*identifiers), before=position, cursor=16)
    assert position is not None
    assert await runs.end_plan(head.id, position, now_ms=1_000)


async def take(
    runs: RedisRuns,
    *,
    chunk: int = 0,
    by: str = "one",
    now_ms: int = 1_000,
    first_id: int = 100,
    most: int = 10,
    pacing: Pacing | None = None,
    stop_after: int = 0,
    is_first: bool = True,
) -> tuple[str, list[RunDevice], list[RunDevice]]:
    taken = await runs.take(
        HEAD.id,
        chunk,
        worker=by,
        now_ms=now_ms,
        lease_ms=10_000,
        first_id=first_id,
        most=most,
        pacing=pacing or Pacing(),
        stop_after=stop_after,
        stop_percent=100,
        is_first=is_first,
    )
    return taken.word, sorted(taken.again), sorted(taken.devices)


def became(device: RunDevice, outcome: Outcome, code: str = "", *, at_ms: int = 2_000) -> RunDevice:
    return device._replace(outcome=outcome, code=code, at_ms=at_ms)


async def counters(runs: RedisRuns) -> dict[Outcome, int]:
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert sum(run.counters.values()) == run.total
    return dict(run.counters)


async def state_of(runs: RedisRuns) -> RunState:
    run = await runs.load_run(HEAD.id)
    assert run is not None
    return run.state


# ---- tasks


async def test_a_task_comes_back_as_it_was_written(tasks: RedisTasks) -> None:
    every = replace(TASK, id="01JOTHER", schedule=Interval(3_600, 5), devices=("d", "设备"), device_type=None)
    await store(tasks)
    await store(tasks, every)
    assert await tasks.load_tasks() == [every, TASK]


async def test_a_task_that_somebody_changed_meanwhile_is_not_overwritten(tasks: RedisTasks) -> None:
    read = await store(tasks)
    await tasks.put_task(replace(TASK, name="theirs", revision=2), expected=read.stored, due_at_ms=None)
    with pytest.raises(ConflictError):
        await tasks.put_task(replace(TASK, name="ours", revision=2), expected=read.stored, due_at_ms=None)
    with pytest.raises(ConflictError):
        await tasks.delete_task(TASK.id, expected=read.stored)
    with pytest.raises(ConflictError):
        await tasks.put_task(TASK, expected=b"", due_at_ms=None)
    newest = await tasks.load_task(TASK.id)
    assert newest is not None
    assert newest.task.name == "theirs"
    await tasks.delete_task(TASK.id, expected=newest.stored)
    assert await tasks.load_task(TASK.id) is None


async def test_due_tasks_are_found_the_earliest_first(tasks: RedisTasks) -> None:
    now_ms = 1_795_617_647_901
    await store(tasks, replace(TASK, id="LATER"), due_at_ms=now_ms)
    await store(tasks, replace(TASK, id="SOONER"), due_at_ms=now_ms - 1)
    await store(tasks, replace(TASK, id="FUTURE"), due_at_ms=now_ms + 1)
    await store(tasks, replace(TASK, id="NEVER"))
    assert await tasks.load_due(before_ms=now_ms, limit=9) == [("SOONER", now_ms - 1), ("LATER", now_ms)]
    assert await tasks.load_due_times(["FUTURE", "NEVER"]) == [now_ms + 1, None]


async def test_a_due_time_is_claimed_once_however_many_look(tasks: RedisTasks, runs: RedisRuns) -> None:
    stored = await store(tasks, due_at_ms=500)
    made = await asyncio.gather(
        *(
            tasks.create_run(
                replace(HEAD, id=f"RUN{number}", due_at_ms=500), expected=stored.stored, now_ms=600, next_due_ms=900
            )
            for number in range(8)
        )
    )
    assert sorted(one.word for one in made) == ["created", *["overtaken"] * 7]
    assert len(await runs.load_open()) == 1
    assert await tasks.load_due_times([TASK.id]) == [900]


async def test_a_due_time_during_an_open_run_is_skipped_and_recorded(tasks: RedisTasks) -> None:
    stored = await store(tasks, due_at_ms=500)
    await tasks.create_run(HEAD, expected=stored.stored, now_ms=600)
    made = await tasks.create_run(
        replace(HEAD, id="RUN2", due_at_ms=500), expected=stored.stored, now_ms=600, next_due_ms=900
    )
    assert made.word == "skipped"
    assert [(skip.due_at_ms, skip.reason) for skip in await tasks.load_skips(TASK.id)] == [(500, f"open {HEAD.id}")]
    assert await tasks.load_due_times([TASK.id]) == [900]


async def test_a_task_has_one_open_run_and_another_when_that_is_closed(tasks: RedisTasks, runs: RedisRuns) -> None:
    stored = await store(tasks)
    first = await tasks.create_run(HEAD, expected=stored.stored, now_ms=600)
    again = await tasks.create_run(HEAD, expected=stored.stored, now_ms=600)
    second = await tasks.create_run(replace(HEAD, id="RUN2"), expected=stored.stored, now_ms=601)
    assert (first.word, again.word, second) == ("created", "created", ("open", HEAD.id))
    await start(runs)
    await runs.close(HEAD)
    third = await tasks.create_run(replace(HEAD, id="RUN2"), expected=stored.stored, now_ms=602)
    assert third.word == "created"
    found, _ = await runs.page_runs(task_id=TASK.id, before=None, limit=10)
    assert [run.head.id for run in found] == ["RUN2", HEAD.id]
    assert [head.id for head in await runs.load_open()] == ["RUN2"]


async def test_runs_are_paged_newest_first(tasks: RedisTasks, runs: RedisRuns) -> None:
    for number in range(5):
        task = replace(TASK, id=f"TASK{number}")
        stored = await store(tasks, task)
        await tasks.create_run(replace(HEAD, id=f"RUN{number}", task=task), expected=stored.stored, now_ms=number)
    first, cursor = await runs.page_runs(task_id=None, before=None, limit=3)
    rest, end = await runs.page_runs(task_id=None, before=cursor, limit=3)
    assert [run.head.id for run in (*first, *rest)] == ["RUN4", "RUN3", "RUN2", "RUN1", "RUN0"]
    assert end is None


@pytest.mark.parametrize("field", ["state", "started", "finished", "head"])
async def test_a_run_that_can_not_be_read_is_left_out_of_the_list(
    redis: Redis, keys: Keys, tasks: RedisTasks, runs: RedisRuns, field: str
) -> None:
    stored = await store(tasks)
    for number in range(3):
        head = replace(HEAD, id=f"01JRUN{number}", created_at_ms=number)
        await tasks.create_run(head, expected=stored.stored, now_ms=number)
        await runs.begin_plan(head, now_ms=number)
        await runs.close(head)
    await redis.hset(keys.run("01JRUN1"), field, "lost")
    found, _ = await runs.page_runs(task_id=None, before=None, limit=9)
    assert [run.head.id for run in found] == ["01JRUN2", "01JRUN0"]
    assert await runs.load_run("01JRUN1") is None


async def test_a_page_of_runs_in_a_state_looks_through_a_bounded_number_of_others(
    tasks: RedisTasks, runs: RedisRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ota_hook.state.runs._LOOKED_AT", 4)
    heads = []
    for number in range(10):
        task = replace(TASK, id=f"TASK{number}")
        heads.append(replace(HEAD, id=f"RUN{number}", task=task))
        await tasks.create_run(heads[-1], expected=(await store(tasks, task)).stored, now_ms=number)
    for number in (0, 4, 5):
        await runs.set_state(heads[number], RunState.PAUSED, of=ALL_STATES, reason="", now_ms=1)
    pages, before = [], None
    while True:
        page, before = await runs.page_runs(task_id=None, before=before, limit=1, state=RunState.PAUSED)
        pages.append([run.head.id for run in page])
        if before is None:
            break
    assert pages == [[], ["RUN5"], ["RUN4"], ["RUN0"]]


# ---- planning


async def test_two_planners_of_one_run_plan_each_device_once(runs: RedisRuns) -> None:
    one = await runs.begin_plan(HEAD, now_ms=1_000)
    other = await runs.begin_plan(HEAD, now_ms=1_001)
    assert one == other == (RunState.PLANNING, 0, 0)
    then = await runs.add_chunk(HEAD.id, planned("a", "b"), before=one, cursor=8)
    assert await runs.add_chunk(HEAD.id, planned("a", "b"), before=other, cursor=8) is None
    assert await runs.begin_plan(HEAD, now_ms=1_002) == then == (RunState.PLANNING, 8, 1)
    assert await counters(runs) == {Outcome.PLANNED: 2}


async def test_a_run_without_devices_is_completed_at_once(runs: RedisRuns) -> None:
    await start(runs)
    assert await state_of(runs) == RunState.COMPLETED


async def test_a_run_that_is_paused_while_it_is_planned_goes_on_planning_when_resumed(runs: RedisRuns) -> None:
    position = await runs.begin_plan(HEAD, now_ms=1_000)
    assert await runs.set_state(HEAD, RunState.PAUSED, of=ALL_STATES, reason="", now_ms=1) == (True, RunState.PLANNING)
    assert await runs.add_chunk(HEAD.id, planned("a"), before=position, cursor=8) is None
    assert (await runs.begin_plan(HEAD, now_ms=1_000)).state == RunState.PAUSED
    assert await runs.set_state(HEAD, None, of=[RunState.PAUSED], reason="", now_ms=2) == (True, RunState.PAUSED)
    assert await runs.add_chunk(HEAD.id, planned("a"), before=position, cursor=8) is not None


async def test_a_run_can_be_cancelled_before_anybody_planned_it(runs: RedisRuns) -> None:
    cancelled = await runs.set_state(HEAD, RunState.CANCELLED, of=[RunState.WAITING], reason="by hand", now_ms=7)
    assert cancelled == (True, RunState.WAITING)
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.state, run.reason, run.finished_at_ms) == (RunState.CANCELLED, "by hand", 7)
    assert (await runs.begin_plan(HEAD, now_ms=8)).state == RunState.CANCELLED


# ---- sending


async def test_devices_have_their_command_ids_before_anybody_sends(runs: RedisRuns) -> None:
    await start(runs, "a", "b", "c")
    word, again, taken = await take(runs, most=2)
    assert (word, again) == ("taken", [])
    assert {device.command_id for device in taken} == {100, 101}
    assert await counters(runs) == {Outcome.SENDING: 2, Outcome.PLANNED: 1}


async def test_who_takes_over_a_chunk_is_told_what_may_have_been_sent_with_the_same_ids(runs: RedisRuns) -> None:
    await start(runs, "a", "b")
    _, _, taken = await take(runs, by="killed", now_ms=1_000)
    assert (await take(runs, by="two", now_ms=5_000))[0] == "held"
    word, again, new = await take(runs, by="two", now_ms=11_001, first_id=900)
    assert (word, again, new) == ("taken", taken, [])
    assert (await take(runs, by="two", now_ms=11_002, is_first=False))[1:] == ([], [])


async def test_a_command_that_could_not_be_sent_waits_with_its_id(runs: RedisRuns) -> None:
    await start(runs, "a")
    _, _, (device,) = await take(runs)
    await runs.mark_sent(HEAD.id, 0, [became(device, Outcome.PLANNED)], now_ms=2_000, timeout_ms=60_000)
    _, _, (again,) = await take(runs, first_id=900, is_first=False)
    assert again.command_id == device.command_id


async def test_a_chunk_is_done_when_every_command_left(runs: RedisRuns) -> None:
    await start(runs, "a", "b")
    _, _, taken = await take(runs)
    sent = [became(device, Outcome.OFFERED) for device in taken]
    await runs.mark_sent(HEAD.id, 0, sent, now_ms=2_000, timeout_ms=60_000)
    assert (await take(runs, is_first=False))[0] == "done"
    assert await runs.queue_chunks(HEAD.id, now_ms=99_000, stale_ms=1, most=9) == []
    assert await runs.load_due_chunks(HEAD.id, now_ms=61_999, limit=9) == []
    assert await runs.load_due_chunks(HEAD.id, now_ms=62_000, limit=9) == [0]


async def test_nothing_is_taken_from_a_run_that_does_not_run(runs: RedisRuns) -> None:
    await start(runs, "a")
    await runs.set_state(HEAD, RunState.PAUSED, of=[RunState.RUNNING], reason="", now_ms=1)
    assert (await take(runs))[0] == "stopped"
    await runs.set_state(HEAD, None, of=[RunState.PAUSED], reason="", now_ms=1)
    assert (await take(runs, by="two"))[0] == "taken"


async def test_chunks_are_queued_a_few_at_a_time_and_again_where_nobody_has_them(runs: RedisRuns) -> None:
    position: PlanPosition | None = await runs.begin_plan(HEAD, now_ms=0)
    for number in range(4):
        assert position is not None
        position = await runs.add_chunk(HEAD.id, planned(f"d{number}"), before=position, cursor=number + 1)
    assert position is not None
    assert await runs.queue_chunks(HEAD.id, now_ms=10_000, stale_ms=5_000, most=2) == []  # it is still planned
    await runs.end_plan(HEAD.id, position, now_ms=0)
    first = await runs.queue_chunks(HEAD.id, now_ms=10_000, stale_ms=5_000, most=2)
    assert len(first) == 2
    assert await runs.queue_chunks(HEAD.id, now_ms=14_000, stale_ms=5_000, most=2) == []
    assert await runs.queue_chunks(HEAD.id, now_ms=14_000, stale_ms=5_000, most=3) != []
    assert set(await runs.queue_chunks(HEAD.id, now_ms=15_001, stale_ms=5_000, most=9)) > set(first)


# ---- pace


async def test_the_rate_bounds_what_is_taken(runs: RedisRuns) -> None:
    await start(runs, *(f"d{number}" for number in range(50)))
    pace = Pacing(rate_per_minute=60)
    sizes = [
        len((await take(runs, now_ms=now_ms, pacing=pace, is_first=False))[2]) for now_ms in range(1_000, 11_000, 500)
    ]
    assert sum(sizes) == 10  # one at once, then one a second
    assert max(sizes) == 1


async def test_a_ramp_doubles_every_minute_up_to_the_rate(runs: RedisRuns) -> None:
    await start(runs, *(f"d{number}" for number in range(400)))
    pace = Pacing(rate_per_minute=100, ramp_from_per_minute=10)
    a_minute = []
    for minute in range(5):
        taken = 0
        for second in range(60):
            now_ms = 1_000 + (minute * 60 + second) * 1_000
            taken += len((await take(runs, now_ms=now_ms, pacing=pace, is_first=False))[2])
        a_minute.append(taken)
    assert a_minute == pytest.approx([10, 20, 40, 80, 100], abs=2)


async def test_jitter_spreads_devices_over_its_time_and_holds_no_chunk_meanwhile(runs: RedisRuns) -> None:
    await start(runs, *(f"d{number:03}" for number in range(200)))
    pace = Pacing(jitter_s=600)
    sent_s: list[int] = []
    looks = 0
    for second in range(601):
        now_ms = 1_000 + second * 1_000
        await runs.wake(HEAD.id, now_ms=now_ms)
        while await runs.queue_chunks(HEAD.id, now_ms=now_ms, stale_ms=1, most=9):
            looks += 1
            while True:
                word, _, taken = await take(runs, now_ms=now_ms, most=100, pacing=pace, is_first=False)
                if word == "done":
                    break
                sent = [became(device, Outcome.OFFERED) for device in taken]
                await runs.mark_sent(HEAD.id, 0, sent, now_ms=now_ms, timeout_ms=60_000)
                sent_s += [second] * len(taken)
    assert len(sent_s) == 200
    by_minute = Counter(second // 60 for second in sent_s)
    assert len(by_minute) >= 10
    assert max(by_minute.values()) < 50
    assert looks <= 21


async def test_a_chunk_that_the_pace_holds_up_is_held_by_nobody_and_one_is_queued_when_it_goes_on(
    runs: RedisRuns,
) -> None:
    position: PlanPosition | None = await runs.begin_plan(HEAD, now_ms=0)
    for number in range(9):
        assert position is not None
        position = await runs.add_chunk(
            HEAD.id, planned(*(f"{c}{number}" for c in "abc")), before=position, cursor=number
        )
    assert position is not None
    await runs.end_plan(HEAD.id, position, now_ms=0)
    pace = Pacing(rate_per_minute=60)
    assert len(await runs.queue_chunks(HEAD.id, now_ms=1_000, stale_ms=500, most=9)) == 9
    assert len((await take(runs, pacing=pace))[2]) == 1
    assert (await take(runs, pacing=pace, is_first=False))[0] == "paced"
    assert (await take(runs, chunk=1, pacing=pace))[0] == "paced"
    assert await runs.queue_chunks(HEAD.id, now_ms=1_999, stale_ms=500, most=9) == []
    (chunk,) = await runs.queue_chunks(HEAD.id, now_ms=2_000, stale_ms=500, most=9)
    assert len((await take(runs, chunk=chunk, by="two", now_ms=2_000, pacing=pace))[2]) == 1
    assert len((await take(runs, chunk=chunk, by="two", now_ms=2_000, pacing=Pacing(), is_first=False))[2]) == 1
    assert len(await runs.queue_chunks(HEAD.id, now_ms=2_500, stale_ms=500, most=9)) == 8


async def test_no_more_devices_than_allowed_are_offered_and_not_finished(runs: RedisRuns) -> None:
    await start(runs, *(f"d{number}" for number in range(10)))
    pace = Pacing(max_concurrent=3)
    _, _, taken = await take(runs, pacing=pace)
    await runs.mark_sent(
        HEAD.id, 0, [became(device, Outcome.OFFERED) for device in taken], now_ms=2_000, timeout_ms=60_000
    )
    assert len(taken) == 3
    assert (await take(runs, pacing=pace, is_first=False))[2] == []
    await runs.move(HEAD.id, 0, [became(taken[0], Outcome.SUCCEEDED)], now_ms=3_000)
    assert len((await take(runs, pacing=pace, is_first=False))[2]) == 1


# ---- outcomes


async def test_outcomes_never_go_back_and_the_counters_add_up(runs: RedisRuns) -> None:
    await start(runs, "a", "b", "c")
    _, _, (a, b, c) = await take(runs)
    await runs.mark_sent(HEAD.id, 0, [became(d, Outcome.OFFERED) for d in (a, b, c)], now_ms=2_000, timeout_ms=60_000)
    moves = [
        became(a, Outcome.DOWNLOADED),
        became(a, Outcome.DELIVERED),
        became(b, Outcome.SUCCEEDED),
        became(b, Outcome.FAILED, "-2"),
        became(c, Outcome.FAILED, "other_version"),
        became(RunDevice("stranger", Outcome.PLANNED, "F", "1"), Outcome.SUCCEEDED),
    ]
    assert await runs.move(HEAD.id, 0, moves, now_ms=3_000) == 3
    assert await counters(runs) == {Outcome.DOWNLOADED: 1, Outcome.SUCCEEDED: 1, Outcome.FAILED: 1}
    assert await state_of(runs) == RunState.RUNNING
    await runs.move(HEAD.id, 0, [became(a, Outcome.SUCCEEDED)], now_ms=4_000)
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.state, run.finished_at_ms) == (RunState.COMPLETED, 4_000)
    codes = {device.identifier: device.code for device in await runs.read_chunk(HEAD.id, 0)}
    assert codes == {"a": "", "b": "", "c": "other_version"}


async def test_what_a_device_said_before_its_sending_was_noted_stays(runs: RedisRuns) -> None:
    await start(runs, "a")
    _, _, (a,) = await take(runs)
    await runs.move(HEAD.id, 0, [became(a, Outcome.SUCCEEDED)], now_ms=2_000)
    await runs.mark_sent(HEAD.id, 0, [became(a, Outcome.OFFERED)], now_ms=2_001, timeout_ms=60_000)
    assert await counters(runs) == {Outcome.SUCCEEDED: 1}
    assert await state_of(runs) == RunState.COMPLETED


async def test_the_next_deadline_is_that_of_the_device_that_waits_longest(runs: RedisRuns) -> None:
    await start(runs, "a", "b")
    _, _, (a, b) = await take(runs)
    await runs.mark_sent(HEAD.id, 0, [became(a, Outcome.OFFERED)], now_ms=2_000, timeout_ms=60_000)
    await runs.mark_sent(HEAD.id, 0, [became(b, Outcome.OFFERED)], now_ms=5_000, timeout_ms=60_000)
    await runs.move(HEAD.id, 0, [became(a, Outcome.TIMED_OUT, at_ms=62_000)], now_ms=62_000)
    await runs.set_next_deadline(HEAD.id, 0, now_ms=62_000, timeout_ms=60_000)
    assert await runs.load_due_chunks(HEAD.id, now_ms=64_999, limit=9) == []
    assert await runs.load_due_chunks(HEAD.id, now_ms=65_000, limit=9) == [0]
    await runs.move(HEAD.id, 0, [became(b, Outcome.SUCCEEDED)], now_ms=65_000)
    await runs.set_next_deadline(HEAD.id, 0, now_ms=65_000, timeout_ms=60_000)
    assert await runs.load_due_chunks(HEAD.id, now_ms=10**15, limit=9) == []


DAMAGED: Final = {
    "no msgpack": b"\xc1garbage",
    "nothing": b"",
    "a number": msgpack.packb(7),
    "a map": msgpack.packb({"a": 1}),
    "too short": msgpack.packb(["planned"]),
    "two records": 2 * msgpack.packb(["planned", "F", "1.0", 0, 0, ""]),
    "no such outcome": msgpack.packb(["lost", "F", "1.0", 0, 0, ""]),
    "texts for numbers": msgpack.packb(["planned", "F", "1.0", "x", "y", ""]),
    "numbers for texts": msgpack.packb(["planned", 1, 2, 0, 0, 3]),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
async def test_a_record_that_can_not_be_read_keeps_no_other_from_its_outcome(
    redis: Redis, keys: Keys, runs: RedisRuns, damage: bytes
) -> None:
    await start(runs, "a", "b")
    await redis.hset(keys.run_chunk(HEAD.id, 0), "b", damage)
    _, _, (a,) = await take(runs)
    b = a._replace(identifier="b")
    await runs.mark_sent(HEAD.id, 0, [became(a, Outcome.OFFERED), became(b, Outcome.OFFERED)], now_ms=1, timeout_ms=9)
    await runs.note_undelivered(HEAD.id, 0, ["a", "b"])
    assert await runs.send_again(HEAD.id, 0, ["a", "b"], now_ms=2) == 1
    await runs.set_next_deadline(HEAD.id, 0, now_ms=2, timeout_ms=9)
    await runs.move(HEAD.id, 0, [became(a, Outcome.SUCCEEDED), became(b, Outcome.SUCCEEDED)], now_ms=3)
    assert [device.identifier for device in await runs.read_chunk(HEAD.id, 0)] == ["a"]
    assert (await take(runs, is_first=False))[0] == "done"
    await runs.recount(HEAD.id, now_ms=601_000, every_ms=600_000, most_chunks=9)
    assert await counters(runs) == {Outcome.SUCCEEDED: 1}
    assert await state_of(runs) == RunState.COMPLETED


# ---- the queue


async def test_work_goes_to_one_worker_and_is_gone_when_it_is_finished(redis: Redis, keys: Keys) -> None:
    one, two = worker(redis, keys, "one"), worker(redis, keys, "two")
    await one.open()
    await two.open()
    await one.add("RUN", None)
    await one.add("RUN", 3)
    taken = [*await one.claim(most=1, block_ms=50), *await two.claim(most=5, block_ms=50)]
    assert [(work.run_id, work.chunk, work.attempt) for work in taken] == [("RUN", None, 1), ("RUN", 3, 1)]
    assert await one.claim(most=5, block_ms=10) == []
    for work in taken:
        await one.finish(work)
    assert await redis.xlen(keys.work) == 0


@pytest.mark.alone
async def test_work_that_nobody_renews_is_taken_over_and_counted(redis: Redis, keys: Keys) -> None:
    one, two = worker(redis, keys, "one", lease_ms=200), worker(redis, keys, "two", lease_ms=200)
    await one.open()
    await one.add("RUN", 3)
    (work,) = await one.claim(most=5, block_ms=50)
    for _ in range(4):
        await asyncio.sleep(0.1)
        await one.renew([work])
        assert await two.claim(most=5, block_ms=10) == []
    await asyncio.sleep(0.25)
    (again,) = await two.claim(most=5, block_ms=10)
    assert (again.entry, again.attempt) == (work.entry, 2)


async def test_work_that_is_put_aside_is_shown_with_its_reason(redis: Redis, keys: Keys) -> None:
    one = worker(redis, keys, "one")
    await one.open()
    await one.add("RUN", 3)
    (work,) = await one.claim(most=5, block_ms=50)
    await one.bury(work, "It fails: 坏")
    await one.bury(work, "twice")
    (dead,) = await one.load_dead(limit=10)
    assert (dead.run_id, dead.chunk, dead.reason) == ("RUN", 3, "It fails: 坏")
    assert await redis.xlen(keys.work) == 0


async def test_a_queue_that_was_lost_is_opened_again(redis: Redis, keys: Keys) -> None:
    one = worker(redis, keys, "one")
    await one.open()
    await redis.delete(keys.work)
    await one.claim(most=5, block_ms=10)
    await one.add("RUN", None)
    assert len(await one.claim(most=5, block_ms=50)) == 1


# ---- retries and stops


async def test_a_device_that_failed_is_planned_again_and_waits_twice_as_long_each_time(runs: RedisRuns) -> None:
    head = replace(HEAD, task=replace(TASK, retries=2, backoff_s=10))
    await start(runs, "a", head=head)
    now_ms, ids = 1_000, set()
    for wait_ms in (10_000, 20_000):
        _, _, (device,) = await take(runs, now_ms=now_ms)
        ids.add(device.command_id)
        await runs.mark_sent(HEAD.id, 0, [became(device, Outcome.OFFERED)], now_ms=now_ms, timeout_ms=60_000)
        await runs.move(HEAD.id, 0, [became(device, Outcome.FAILED, "flash_failed", at_ms=now_ms)], now_ms=now_ms)
        assert await counters(runs) == {Outcome.PLANNED: 1}
        assert (await take(runs, now_ms=now_ms + wait_ms - 1))[0] == "done"
        await runs.wake(HEAD.id, now_ms=now_ms + wait_ms - 1)
        assert await runs.queue_chunks(HEAD.id, now_ms=now_ms + 10**6, stale_ms=1, most=9) == []
        now_ms += wait_ms
        await runs.wake(HEAD.id, now_ms=now_ms)
        assert await runs.queue_chunks(HEAD.id, now_ms=now_ms, stale_ms=1, most=9) == [0]
    _, _, (device,) = await take(runs, now_ms=now_ms)
    await runs.mark_sent(HEAD.id, 0, [became(device, Outcome.OFFERED)], now_ms=now_ms, timeout_ms=60_000)
    await runs.move(HEAD.id, 0, [became(device, Outcome.FAILED, "flash_failed", at_ms=now_ms)], now_ms=now_ms)
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.state, run.retried, run.counters) == (RunState.COMPLETED, 2, {Outcome.FAILED: 1})
    assert ids == {device.command_id}


async def test_news_of_a_failure_that_comes_twice_uses_up_no_retry(runs: RedisRuns) -> None:
    await start(runs, "a", head=replace(HEAD, task=replace(TASK, retries=2, backoff_s=10)))
    _, _, (a,) = await take(runs)
    await runs.mark_sent(HEAD.id, 0, [became(a, Outcome.OFFERED)], now_ms=1_000, timeout_ms=60_000)
    failed = became(a, Outcome.FAILED, "flash_failed", at_ms=2_000)
    late = became(a, Outcome.DOWNLOADING, at_ms=1_999)
    assert await runs.move(HEAD.id, 0, [failed, failed, late], now_ms=2_010) == 1
    assert await runs.move(HEAD.id, 0, [late, failed], now_ms=7_000) == 0  # by a worker that took over
    run = await runs.load_run(HEAD.id)
    assert run is not None
    assert (run.retried, run.counters) == (1, {Outcome.PLANNED: 1})
    _, _, (again,) = await take(runs, now_ms=12_010)
    assert again.failed_at_ms == 2_000
    assert await runs.move(HEAD.id, 0, [failed], now_ms=12_011) == 0
    assert await runs.move(HEAD.id, 0, [became(a, Outcome.DELIVERED, at_ms=12_012)], now_ms=12_012) == 1


async def test_a_device_that_failed_and_has_nothing_newer_at_its_retry_has_failed(runs: RedisRuns) -> None:
    await start(runs, "a", "b", head=replace(HEAD, task=replace(TASK, retries=1, backoff_s=1)))
    _, _, (a, b) = await take(runs)
    await runs.mark_sent(HEAD.id, 0, [became(a, Outcome.OFFERED)], now_ms=1_000, timeout_ms=60_000)
    await runs.mark_sent(HEAD.id, 0, [became(b, Outcome.SKIPPED, "none_newer")], now_ms=1_000, timeout_ms=60_000)
    await runs.move(HEAD.id, 0, [became(a, Outcome.FAILED, "flash_failed")], now_ms=2_000)
    _, _, (a,) = await take(runs, now_ms=3_000)
    await runs.mark_sent(HEAD.id, 0, [became(a, Outcome.SKIPPED, "none_newer")], now_ms=3_000, timeout_ms=60_000)
    found = {device.identifier: (device.outcome, device.code) for device in await runs.read_chunk(HEAD.id, 0)}
    assert found == {"a": (Outcome.FAILED, "flash_failed"), "b": (Outcome.SKIPPED, "none_newer")}


async def test_each_device_that_failed_has_its_retry_though_others_of_its_chunk_had_theirs_earlier(
    runs: RedisRuns,
) -> None:
    await start(runs, "a", "b", head=replace(HEAD, task=replace(TASK, retries=1, backoff_s=10)))
    _, _, (a, b) = await take(runs)
    await runs.mark_sent(HEAD.id, 0, [became(d, Outcome.OFFERED) for d in (a, b)], now_ms=1_000, timeout_ms=60_000)
    assert (await take(runs, is_first=False))[0] == "done"
    await runs.move(HEAD.id, 0, [became(a, Outcome.FAILED)], now_ms=1_000)
    await runs.move(HEAD.id, 0, [became(b, Outcome.FAILED)], now_ms=5_000)
    for now_ms, device in ((11_000, a), (15_000, b)):
        await runs.wake(HEAD.id, now_ms=now_ms)
        assert await runs.queue_chunks(HEAD.id, now_ms=now_ms, stale_ms=1, most=9) == [0]
        _, _, taken = await take(runs, now_ms=now_ms)
        assert [one.identifier for one in taken] == [device.identifier]
        await runs.mark_sent(HEAD.id, 0, [became(taken[0], Outcome.OFFERED)], now_ms=now_ms, timeout_ms=60_000)
        assert (await take(runs, now_ms=now_ms, is_first=False))[0] == "done"


async def test_a_run_that_may_stop_goes_no_further_ahead_than_twice_what_succeeded(runs: RedisRuns) -> None:
    await start(runs, *(f"d{number:02}" for number in range(60)))
    _, _, first = await take(runs, most=50, stop_after=5)
    assert len(first) == 10
    sent = [became(device, Outcome.OFFERED) for device in first]
    await runs.mark_sent(HEAD.id, 0, sent, now_ms=2_000, timeout_ms=60_000)
    assert (await take(runs, most=50, stop_after=5, is_first=False))[2] == []
    await runs.move(HEAD.id, 0, [became(device, Outcome.SUCCEEDED) for device in first], now_ms=3_000)
    assert len((await take(runs, most=50, stop_after=5, is_first=False))[2]) == 20


async def test_a_device_that_is_away_is_not_under_way_until_it_is_sent_its_command_again(runs: RedisRuns) -> None:
    await start(runs, *(f"d{number:02}" for number in range(60)))
    _, _, first = await take(runs, most=50, stop_after=5)
    sent = [became(device, Outcome.OFFERED) for device in first]
    away = [device.identifier for device in first[:4]]
    await runs.note_undelivered(HEAD.id, 0, away[:1])  # the broker is faster than the worker
    await runs.mark_sent(HEAD.id, 0, sent, now_ms=2_000, timeout_ms=60_000)
    await runs.note_undelivered(HEAD.id, 0, away)
    await runs.note_undelivered(HEAD.id, 0, away)
    assert len((await take(runs, most=50, stop_after=5, is_first=False))[2]) == 4
    assert await runs.send_again(HEAD.id, 0, away, now_ms=3_000) == 4
    assert (await take(runs, most=50, stop_after=5, is_first=False))[2] == []
    await runs.move(HEAD.id, 0, [became(device, Outcome.SUCCEEDED) for device in first[4:]], now_ms=4_000)
    assert len((await take(runs, most=4, stop_after=5, is_first=False))[2]) == 4
