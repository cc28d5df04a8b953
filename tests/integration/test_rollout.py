"""Workers on a real Redis: runs are planned, sent, taken over after a kill, and end with the outcomes that are true."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import orjson
import pytest

from admin_api.documents.tasks import TaskFields
from ota_hook.endings import end_tasks
from ota_hook.errors import ConflictError, DependencyError
from ota_hook.model import (
    CatalogueChange,
    DocumentKind,
    Interval,
    Once,
    OpenOffer,
    Outcome,
    Window,
)
from ota_hook.progress import UNDELIVERED
from ota_hook.publish.webhook import Webhook
from ota_hook.rollout.keeper import RECOUNT_EVERY_MS
from ota_hook.rollout.teller import Teller
from ota_hook.rollout.watch import StopRule
from ota_hook.snapshot import Snapshot
from ota_hook.state.clock import RedisClock
from ota_hook.state.hot import HotPresence
from ota_hook.state.presence import pack_connection
from ota_hook.state.work import RedisWorkQueue
from ota_hook.task import Missed, Pacing, RunDevice, RunState, Task
from tests.integration.rollout_deployment import (
    FIRMWARE,
    LEASE_MS,
    RULE,
    TASK,
    TRACKER,
    Deployment,
    said,
    some_rounds,
)
from tests.integration.waiting import eventually


async def test_a_run_sends_each_device_with_something_newer_one_command(deployed: Deployment) -> None:
    old = await deployed.add_devices(600)
    await deployed.add_devices(50, version="2.0", prefix="new")
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 600})
    assert sorted(device for device, _ in deployed.broker.commands) == old
    (first, *_), by_id = deployed.broker.commands, Counter(command["id"] for _, command in deployed.broker.commands)
    assert max(by_id.values()) == 1
    assert first[1] == {
        "method": "otaUpgrade",
        "params": {
            "module": "main",
            "upgrade": True,
            "version": "2.0",
            "url": "http://ota/firmware/01JFIRMWARE/t.bin",
            "size": 3,
            "md5": "m",
        },
        "command_name": "OTA升级",
        "id": first[1]["id"],
    }
    assert (await deployed.offers.load_counters([FIRMWARE.id]))[FIRMWARE.id] == {"offered": 600}


async def test_a_run_is_completed_when_every_device_reported(deployed: Deployment) -> None:
    names = await deployed.add_devices(8)
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 8})
    for name in names[:6]:
        await deployed.report(name, "2.0")
    for name in names[6:]:
        await deployed.report(name, "1.5")
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.SUCCEEDED: 6, Outcome.FAILED: 2}
    records = await deployed.records(run_id)
    assert records[names[7]].code == "other_version"
    await eventually(lambda: no_open_run(deployed))


async def no_open_run(deployed: Deployment) -> bool:
    return not await deployed.runs.load_open()


async def test_nothing_is_sent_to_a_device_that_is_up_to_date_when_its_turn_comes(deployed: Deployment) -> None:
    names = await deployed.add_devices(3)
    run_id = await deployed.run_now(replace(TASK, pacing=Pacing(rate_per_minute=60)))
    await deployed.start_worker()
    await deployed.until(run_id, lambda run: Outcome.OFFERED in run.counters)
    sent = {device for device, _ in deployed.broker.commands}
    rest = [name for name in names if name not in sent]
    for name in rest:
        await deployed.report(name, "2.0")
    run = await deployed.until(run_id, lambda run: run.counters.get(Outcome.SKIPPED, 0) == len(rest))
    assert {device for device, _ in deployed.broker.commands} == sent
    assert run.counters[Outcome.OFFERED] == len(sent)


async def test_an_edit_of_the_firmware_counts_from_the_next_command_on(deployed: Deployment) -> None:
    await deployed.add_devices(3)
    run_id = await deployed.run_now(replace(TASK, pacing=Pacing(rate_per_minute=60)))
    await deployed.start_worker()
    await deployed.until(run_id, lambda run: Outcome.OFFERED in run.counters)
    await deployed.edit(replace(FIRMWARE, enabled=False, revision=2))
    await deployed.until(run_id, lambda run: Outcome.PLANNED not in run.counters)
    assert len(deployed.broker.commands) < 3
    assert all(
        record.code == "none_newer"
        for record in (await deployed.records(run_id)).values()
        if record.outcome == Outcome.SKIPPED
    )


async def test_a_worker_that_is_lost_in_the_middle_is_taken_over_with_the_same_ids(deployed: Deployment) -> None:
    names = await deployed.add_devices(700)
    deployed.broker.hold = asyncio.Event()
    killed = await deployed.start_worker("killed")
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters.get(Outcome.SENDING, 0) > 0 and run.is_planned)
    await eventually(lambda: bool(deployed.broker.commands))
    await end_tasks([killed])
    in_flight = {device for device, _ in deployed.broker.commands}
    deployed.broker.hold = None
    await deployed.start_worker("two")
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 700})
    copies = Counter(device for device, _ in deployed.broker.commands)
    assert set(copies) == set(names)
    assert all(len(ids) == 1 for ids in deployed.broker.ids.values())
    assert {device for device, count in copies.items() if count > 1} <= in_flight


async def test_a_chunk_that_a_lost_worker_still_holds_is_waited_for_and_taken_over(deployed: Deployment) -> None:
    await deployed.add_devices(3)
    run_id = await deployed.run_now()
    await deployed.plan(run_id)
    taken = await deployed.runs.take(
        *(run_id, 0),
        worker="lost",
        now_ms=deployed.clock_ms(),
        lease_ms=1_500,
        first_id=7,
        most=2,
        pacing=Pacing(),
        stop_after=0,
        stop_percent=0,
        is_first=True,
    )
    assert len(taken.devices) == 2
    await RedisWorkQueue(deployed.redis, deployed.keys, consumer="lost", lease_ms=LEASE_MS).add(run_id, 0)
    await deployed.start_worker("two")
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 3}, within_s=10)
    assert {device.identifier for device in taken.devices} == {
        device for device, ids in deployed.broker.ids.items() if ids <= {7, 8}
    }


async def test_a_retry_that_a_lost_worker_did_not_send_is_sent_by_another(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    killed = await deployed.start_worker("killed")

    async def fail(device: str, command: dict[str, object]) -> None:
        deployed.broker.hold, deployed.broker.on_command = asyncio.Event(), None
        deployed.hook.offers.track_offer(device, said(Outcome.FAILED, "flash_failed"), at_ms=deployed.clock_ms())

    deployed.broker.on_command = fail
    run_id = await deployed.run_now(replace(TASK, retries=1, backoff_s=0))
    await eventually(lambda: len(deployed.broker.commands) == 2)
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    await deployed.redis.delete(deployed.keys.offers(deployed.keys.bucket_of(name)))  # as if it was killed before
    deployed.broker.hold = None
    await deployed.start_worker("two")
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    assert len(deployed.broker.commands) == 3
    assert len(deployed.broker.ids[name]) == 1


async def test_a_device_that_got_another_type_meanwhile_is_sent_nothing(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.catalogue.change(
        lambda _: [
            CatalogueChange(DocumentKind.DEVICE_TYPE, "other", replace(TRACKER, key="other")),
            CatalogueChange(DocumentKind.RULE, "01JRULE2", replace(RULE, id="01JRULE2", device_type="other")),
            CatalogueChange(DocumentKind.FIRMWARE, "01JF2", replace(FIRMWARE, id="01JF2", device_type="other")),
        ]
    )
    run_id = await deployed.run_now()
    await deployed.plan(run_id)
    await deployed.devices.put_device(name, "other", {"version": "1.0"}, ())
    await deployed.start_worker()
    assert (await deployed.reached(run_id, RunState.COMPLETED)).counters == {Outcome.SKIPPED: 1}
    assert (await deployed.records(run_id))[name].code == "type_differs"
    assert deployed.broker.commands == []


def wrong_clock_ms(ahead_ms: int) -> int:
    return time.time_ns() // 1_000_000 + ahead_ms


async def test_two_workers_whose_clocks_are_minutes_apart_send_each_command_once_and_keep_the_rate(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployed.add_devices(600)

    async def take_time(device: str, command: dict[str, object]) -> None:
        await asyncio.sleep(0.3)

    deployed.broker.on_command = take_time
    for name, ahead_ms in (("ahead", 600_000), ("behind", -600_000)):
        clock = RedisClock(deployed.redis, deployed.keys, local_ms=partial(wrong_clock_ms, ahead_ms))
        await clock.start()
        monkeypatch.setattr(deployed, "clock_ms", clock.now_ms)
        await deployed.start_worker(name)
    began_s = time.monotonic()
    run_id = await deployed.run_now(replace(TASK, pacing=Pacing(rate_per_minute=6_000)))
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 600})
    assert time.monotonic() - began_s > 4
    assert len(deployed.broker.commands) == 600


async def test_commands_wait_for_a_broker_that_is_away(deployed: Deployment) -> None:
    await deployed.add_devices(5)
    deployed.broker.away = True
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.is_planned)
    await some_rounds()
    deployed.broker.away = False
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 5})
    assert all(len(ids) == 1 for ids in deployed.broker.ids.values())


async def test_a_paused_run_sends_nothing_and_goes_on_when_resumed(deployed: Deployment) -> None:
    await deployed.add_devices(100)
    await deployed.start_worker()
    run_id = await deployed.run_now(replace(TASK, pacing=Pacing(rate_per_minute=1_200)))
    run = await deployed.until(run_id, lambda run: run.counters.get(Outcome.OFFERED, 0) >= 5)
    await deployed.runs.set_state(run.head, RunState.PAUSED, of=[RunState.RUNNING], reason="", now_ms=1)
    await asyncio.sleep(0.3)
    sent = len(deployed.broker.commands)
    await asyncio.sleep(1.0)
    assert len(deployed.broker.commands) == sent < 100
    await deployed.runs.set_state(run.head, None, of=[RunState.PAUSED], reason="", now_ms=1)
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 100})


async def test_a_run_that_is_paused_again_is_told_again(deployed: Deployment) -> None:
    await deployed.add_devices(1)
    await deployed.notices.open()
    await deployed.start_worker()
    run_id = await deployed.run_now()
    run = await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    for count in (1, 2):
        await deployed.runs.set_state(run.head, RunState.PAUSED, of=[RunState.RUNNING], reason="", now_ms=1)

        async def is_told(count: int = count) -> bool:
            return await deployed.redis.xlen(deployed.keys.notices) == count

        await eventually(is_told)
        await some_rounds()
        assert await is_told()
        await deployed.runs.set_state(run.head, None, of=[RunState.PAUSED], reason="", now_ms=1)


async def test_what_a_lost_worker_did_not_tell_another_tells(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployed.add_devices(1)
    await deployed.notices.open()
    run = await deployed.plan(await deployed.run_now())
    await deployed.runs.set_state(run.head, RunState.PAUSED, of=[RunState.RUNNING], reason="", now_ms=1)
    keeper = deployed.keeper(RedisWorkQueue(deployed.redis, deployed.keys, consumer="one"))

    async def refuse(kind: str, facts: Mapping[str, object]) -> None:
        raise DependencyError("Redis is away.")

    with monkeypatch.context() as patched:
        patched.setattr(deployed.notices, "add", refuse)
        await keeper.look_after_all()
    await keeper.look_after_all()
    assert await deployed.redis.xlen(deployed.keys.notices) == 0  # whoever is at it may still do it
    for shift_ms in (10_000, 60_000, 120_000):
        deployed.shift_ms = shift_ms
        await keeper.look_after_all()
        assert await deployed.redis.xlen(deployed.keys.notices) == 1


async def test_the_end_of_a_run_is_told_though_the_first_try_fails(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployed.notices.open()
    run = await deployed.plan(await deployed.run_now())
    assert (await deployed.run(run.head.id)).state is RunState.COMPLETED
    keeper = deployed.keeper(RedisWorkQueue(deployed.redis, deployed.keys, consumer="one"))
    await deployed.runs.is_news(run.head.id, RunState.COMPLETED, now_ms=deployed.clock_ms())  # and was lost
    await keeper.look_after_all()
    assert not await no_open_run(deployed)
    deployed.shift_ms = 10_001
    await keeper.look_after_all()
    assert await no_open_run(deployed)
    assert await deployed.redis.xlen(deployed.keys.notices) == 1


async def test_a_paused_run_that_expired_is_read_no_more_when_each_device_has_its_outcome(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployed.add_devices(1)
    run_id = await deployed.run_now()
    run = await deployed.plan(run_id)
    await deployed.runs.set_state(run.head, RunState.PAUSED, of=[RunState.RUNNING], reason="", now_ms=1)
    deployed.shift_ms = (TASK.expires_s + 1) * 1_000
    keeper = deployed.keeper(RedisWorkQueue(deployed.redis, deployed.keys, consumer="one"))
    await keeper.look_after_all()
    assert (await deployed.run(run_id)).counters == {Outcome.TIMED_OUT: 1}
    read: list[int] = []
    read_chunk = deployed.runs.read_chunk

    async def note_reading(run_id: str, chunk: int) -> list[RunDevice]:
        read.append(chunk)
        return await read_chunk(run_id, chunk)

    monkeypatch.setattr(deployed.runs, "read_chunk", note_reading)
    await keeper.look_after_all()
    assert read == []
    await deployed.runs.set_state(run.head, None, of=[RunState.PAUSED], reason="", now_ms=1)
    assert (await deployed.run(run_id)).state is RunState.COMPLETED


async def test_devices_that_wait_by_chance_are_sent_nothing_when_their_run_is_paused(deployed: Deployment) -> None:
    await deployed.add_devices(100)
    await deployed.start_worker()
    run_id = await deployed.run_now(replace(TASK, pacing=Pacing(jitter_s=8)))
    run = await deployed.until(run_id, lambda run: run.counters.get(Outcome.OFFERED, 0) >= 5)
    await deployed.runs.set_state(run.head, RunState.PAUSED, of=[RunState.RUNNING], reason="", now_ms=1)
    await asyncio.sleep(0.3)
    sent = len(deployed.broker.commands)
    await asyncio.sleep(2.0)
    assert len(deployed.broker.commands) == sent < 100
    await deployed.runs.set_state(run.head, None, of=[RunState.PAUSED], reason="", now_ms=1)
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 100})
    assert max(map(len, deployed.broker.ids.values())) == 1


async def test_a_cancelled_run_closes_its_offers(deployed: Deployment) -> None:
    names = await deployed.add_devices(200)
    await deployed.start_worker()
    run_id = await deployed.run_now(replace(TASK, pacing=Pacing(rate_per_minute=1_200)))
    run = await deployed.until(run_id, lambda run: run.counters.get(Outcome.OFFERED, 0) >= 5)
    await deployed.runs.set_state(run.head, RunState.CANCELLED, of=[RunState.RUNNING], reason="", now_ms=1)
    run = await deployed.until(run_id, lambda run: run.counters == {Outcome.CANCELLED: 200})
    assert run.state is RunState.CANCELLED
    states = await deployed.devices.load_devices(names)
    assert not any(state.open_offers for state in states if state is not None)


async def test_a_device_that_never_answers_times_out(deployed: Deployment) -> None:
    await deployed.add_devices(3)
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 3})
    deployed.shift_ms = 61_000
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.TIMED_OUT: 3}
    assert (await deployed.offers.load_counters([FIRMWARE.id]))[FIRMWARE.id] == {"offered": 3, "timed_out": 3}


async def test_a_run_that_holds_a_damaged_record_goes_on_and_is_cancelled(deployed: Deployment) -> None:
    damaged, *_ = await deployed.add_devices(5)
    run_id = await deployed.run_now()
    run = await deployed.plan(run_id)
    await deployed.redis.hset(deployed.keys.run_chunk(run_id, 0), damaged, b"garbage")
    await deployed.start_worker()
    await eventually(lambda: len(deployed.broker.commands) == 4)
    await deployed.runs.set_state(run.head, RunState.CANCELLED, of=[RunState.RUNNING], reason="", now_ms=1)
    await eventually(lambda: no_open_run(deployed))
    assert (await deployed.run(run_id)).counters == {Outcome.CANCELLED: 4}


async def test_an_outcome_whose_news_was_lost_is_found_when_the_device_would_time_out(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    worker = await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    await end_tasks([worker])
    await deployed.report(name, "2.0")
    await deployed.redis.delete(deployed.keys.run_events)
    deployed.shift_ms = 61_000
    await deployed.start_worker("two")
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.SUCCEEDED: 1}


async def test_a_device_in_two_runs_is_superseded_and_not_doubled(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.start_worker()
    first = await deployed.run_now()
    await deployed.until(first, lambda run: run.counters == {Outcome.OFFERED: 1})
    second = await deployed.run_now(replace(TASK, id="01JOTHER"))
    run = await deployed.reached(first, RunState.COMPLETED)
    assert run.counters == {Outcome.SUPERSEDED: 1}
    await deployed.report(name, "2.0")
    run = await deployed.reached(second, RunState.COMPLETED)
    assert run.counters == {Outcome.SUCCEEDED: 1}


async def test_a_run_for_chosen_devices_concerns_those_alone(deployed: Deployment) -> None:
    names = await deployed.add_devices(5)
    await deployed.start_worker()
    run_id = await deployed.run_now(devices=(names[1], "unknown", names[3]))
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 2})
    assert {device for device, _ in deployed.broker.commands} == {names[1], names[3]}


@pytest.mark.parametrize(
    "slow",
    [{"pacing": Pacing(rate_per_minute=60)}, {"pacing": Pacing(max_concurrent=5)}, {"stop_percent": 50}],
    ids=["rate", "concurrent", "results first"],
)
async def test_a_run_that_goes_slowly_keeps_no_other_from_its_turn(
    deployed: Deployment, slow: dict[str, Pacing | int]
) -> None:
    await deployed.add_devices(3_000)
    await deployed.start_worker()
    slow_id = await deployed.run_now(replace(TASK, **slow))  # type: ignore[arg-type]
    await deployed.until(slow_id, lambda run: bool(run.counters.get(Outcome.OFFERED)))
    await some_rounds()
    quick_id = await deployed.run_now(replace(TASK, id="01JQUICK", device_type=None, devices=("d00001", "d02999")))
    await deployed.until(quick_id, lambda run: run.counters == {Outcome.OFFERED: 2}, within_s=10)
    assert (await deployed.run(slow_id)).counters[Outcome.PLANNED] > 2_900


async def test_a_task_that_can_not_be_read_keeps_no_other_from_its_time(deployed: Deployment) -> None:
    await deployed.add_devices(1)
    await deployed.redis.hset(deployed.keys.tasks, "01JBAD", b"{}")
    await deployed.redis.zadd(deployed.keys.due, {"01JBAD": 5})
    await deployed.tasks.put_task(replace(TASK, schedule=Interval(3_600, 0)), expected=b"", due_at_ms=7)
    await deployed.start_worker()
    await eventually(lambda: len(deployed.broker.commands) == 1)


async def test_a_due_task_runs_once_with_three_workers(deployed: Deployment) -> None:
    await deployed.add_devices(4)
    task = replace(TASK, schedule=Interval(3_600, 0))
    await deployed.tasks.put_task(task, expected=b"", due_at_ms=deployed.clock_ms() + 200)
    for name in ("one", "two", "three"):
        await deployed.start_worker(name)
    await eventually(lambda: len(deployed.broker.commands) == 4, within_s=10)
    runs, _ = await deployed.runs.page_runs(task_id=task.id, before=None, limit=10)
    assert len(runs) == 1
    (due,) = await deployed.tasks.load_due_times([task.id])
    assert due is not None
    assert due % 3_600_000 == 0


@pytest.mark.parametrize(("missed", "runs"), [(Missed.RUN, 1), (Missed.SKIP, 0)])
async def test_a_schedule_that_was_missed_runs_once_or_is_skipped_as_the_task_says(
    deployed: Deployment, missed: Missed, runs: int
) -> None:
    await deployed.add_devices(1)
    due_ms = deployed.clock_ms() - 86_400_000
    task = replace(TASK, schedule=Once(due_ms), missed=missed)
    await deployed.tasks.put_task(task, expected=b"", due_at_ms=due_ms)
    await deployed.start_worker()

    async def is_claimed() -> bool:
        return await deployed.tasks.load_due_times([task.id]) == [None]

    await eventually(is_claimed)
    found, _ = await deployed.runs.page_runs(task_id=task.id, before=None, limit=10)
    assert len(found) == runs
    assert [skip.reason for skip in await deployed.tasks.load_skips(task.id)] == ["missed"] * (1 - runs)


# ---- tracking


async def test_what_a_device_says_moves_it_and_never_back(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    (command_id,) = deployed.broker.ids[name]
    assert isinstance(command_id, int)
    for step in (Outcome.DELIVERED, Outcome.DOWNLOADED, Outcome.DOWNLOADING):
        deployed.hook.offers.track_offer(name, said(step, command_id=command_id), at_ms=deployed.clock_ms())
    await deployed.until(run_id, lambda run: run.counters == {Outcome.DOWNLOADED: 1})
    (state,) = await deployed.devices.load_devices([name])
    assert state is not None
    assert [offer.outcome for offer in state.open_offers] == [Outcome.DOWNLOADED]
    deployed.hook.offers.track_offer(name, said(Outcome.FAILED, "flash_failed"), at_ms=deployed.clock_ms())
    deployed.hook.offers.track_offer(name, said(Outcome.REJECTED, "busy"), at_ms=deployed.clock_ms())
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.FAILED: 1}
    assert (await deployed.records(run_id))[name].code == "flash_failed"
    counters = (await deployed.offers.load_counters([FIRMWARE.id]))[FIRMWARE.id]
    assert counters == {"offered": 1, "delivered": 1, "downloaded": 1, "failed": 1}


async def test_a_reply_to_another_command_moves_nothing(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    deployed.hook.offers.track_offer(name, said(Outcome.FAILED, command_id=7), at_ms=deployed.clock_ms())
    await deployed.hook.noted()
    await asyncio.sleep(0.2)
    assert (await deployed.run(run_id)).counters == {Outcome.OFFERED: 1}


async def test_a_device_that_was_away_gets_the_same_command_when_it_comes_back(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    deployed.knows_presence = True
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    deployed.hook.offers.track_offer(name, said(Outcome.OFFERED, UNDELIVERED), at_ms=deployed.clock_ms())
    await eventually(lambda: is_waited_for(deployed, run_id, name))
    deployed.shift_ms = 120_000  # beyond the device's time
    await some_rounds()
    assert (await deployed.run(run_id)).counters == {Outcome.OFFERED: 1}
    presence = HotPresence(deployed.hook.pipes, deployed.keys)
    presence.come(name, "c1", at_ms=deployed.clock_ms())
    await eventually(lambda: len(deployed.broker.commands) == 2)
    assert len(deployed.broker.ids[name]) == 1
    presence.come(name, "c2", at_ms=deployed.clock_ms())
    await some_rounds()
    assert len(deployed.broker.commands) == 2
    await deployed.report(name, "2.0")
    assert (await deployed.reached(run_id, RunState.COMPLETED)).counters == {Outcome.SUCCEEDED: 1}


async def test_a_device_that_came_back_while_its_command_was_being_sent_gets_it_again(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    presence = HotPresence(deployed.hook.pipes, deployed.keys)

    async def miss_it_and_come(device: str, command: dict[str, object]) -> None:
        deployed.broker.on_command = None
        deployed.hook.offers.track_offer(device, said(Outcome.OFFERED, UNDELIVERED), at_ms=deployed.clock_ms())
        await eventually(lambda: is_waited_for(deployed, run_id, device))
        presence.come(device, "c1", at_ms=deployed.clock_ms())
        await some_rounds()

    deployed.broker.on_command = miss_it_and_come
    run_id = await deployed.run_now()
    await deployed.start_worker()
    await eventually(lambda: len(deployed.broker.commands) == 2)
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 1})
    assert not await is_waited_for(deployed, run_id, name)
    assert len(deployed.broker.ids[name]) == 1


async def test_a_device_that_is_back_gets_its_command_though_nobody_told_that_it_came(deployed: Deployment) -> None:
    back, away = await deployed.add_devices(2)
    deployed.knows_presence = True
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 2})
    for name in (back, away):
        deployed.hook.offers.track_offer(name, said(Outcome.OFFERED, UNDELIVERED), at_ms=deployed.clock_ms())
        await eventually(lambda name=name: is_waited_for(deployed, run_id, name))  # type: ignore[misc]
    connection = pack_connection("c1\0n1\x007", at_ms=deployed.clock_ms())
    await deployed.redis.hset(deployed.keys.presence(deployed.keys.bucket_of(back)), back, connection)
    deployed.shift_ms = 61_000
    await eventually(lambda: len(deployed.broker.commands) == 3)
    assert deployed.broker.commands[2][0] == back
    assert await is_waited_for(deployed, run_id, away)


async def is_waited_for(deployed: Deployment, run_id: str, name: str) -> bool:
    return (await deployed.records(run_id))[name].code == UNDELIVERED


async def test_a_device_that_had_its_command_times_out_and_one_that_is_away_is_waited_for(
    deployed: Deployment,
) -> None:
    here, away, asleep = await deployed.add_devices(3)
    deployed.knows_presence = True
    HotPresence(deployed.hook.pipes, deployed.keys).come(here, "c1\0n1\x007", at_ms=deployed.clock_ms())
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 3})
    deployed.hook.offers.track_offer(asleep, said(Outcome.DELIVERED), at_ms=deployed.clock_ms())
    await deployed.until(run_id, lambda run: run.counters.get(Outcome.DELIVERED) == 1)
    deployed.shift_ms = 61_000
    await deployed.until(run_id, lambda run: run.counters == {Outcome.TIMED_OUT: 2, Outcome.OFFERED: 1})
    assert await is_waited_for(deployed, run_id, away)
    deployed.shift_ms = (TASK.expires_s + 60) * 1_000
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.TIMED_OUT: 3}


async def test_a_device_whose_node_of_the_broker_died_is_waited_for(deployed: Deployment) -> None:
    here, lost = await deployed.add_devices(2)
    deployed.knows_presence = True
    presence = HotPresence(deployed.hook.pipes, deployed.keys)
    presence.come(here, "c1\0n1\x007", at_ms=deployed.clock_ms())
    presence.come(lost, "c2\0n2\x007", at_ms=deployed.clock_ms())
    await deployed.start_worker()
    run_id = await deployed.run_now()
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 2})
    deployed.shift_ms = 61_000
    presence.attach("n2", at_ms=deployed.clock_ms())
    await deployed.until(run_id, lambda run: run.counters == {Outcome.TIMED_OUT: 1, Outcome.OFFERED: 1})
    assert await is_waited_for(deployed, run_id, lost)


# ---- counters


async def test_counters_that_were_damaged_mend_themselves_while_a_run_is_open_and_at_its_end(
    deployed: Deployment,
) -> None:
    names = await deployed.add_devices(4)
    await deployed.start_worker()
    run_id = await deployed.run_now(replace(TASK, timeout_s=86_400))
    await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 4})
    key = deployed.keys.run(run_id)

    async def counters() -> tuple[int, dict[Outcome, int]]:
        run = await deployed.runs.load_run(run_id)
        assert run is not None
        return run.total, dict(run.counters)

    async def are_right() -> bool:
        return await counters() == (4, {Outcome.OFFERED: 4})

    await deployed.redis.hset(key, mapping={"n:offered": 9, "n:failed": 1, "total": 10})
    assert not await are_right()
    deployed.shift_ms = RECOUNT_EVERY_MS
    await eventually(are_right)
    (keeper,) = deployed.keepers
    assert keeper.mended == 3
    await deployed.redis.hset(key, "n:timed_out", 7)
    for name in names:
        await deployed.report(name, "2.0")
    await eventually(lambda: no_open_run(deployed))
    assert await counters() == (4, {Outcome.SUCCEEDED: 4})
    assert keeper.mended == 4


# ---- stops


async def test_a_firmware_that_fails_everywhere_stops_its_run_before_many_have_it(deployed: Deployment) -> None:
    await deployed.add_devices(500)

    async def fail(device: str, command: dict[str, object]) -> None:
        deployed.hook.offers.track_offer(device, said(Outcome.FAILED, "flash_failed"), at_ms=deployed.clock_ms())

    deployed.broker.on_command = fail
    await deployed.start_worker("one")
    await deployed.start_worker("two")
    run_id = await deployed.run_now(replace(TASK, stop_percent=20, stop_after=20))
    run = await deployed.reached(run_id, RunState.STOPPED)
    assert "stops at 20 %" in run.reason
    await some_rounds()
    assert len(deployed.broker.ids) <= 3 * 20
    await deployed.until(run_id, lambda run: Outcome.SENDING not in run.counters)


async def test_a_run_that_stopped_itself_and_is_resumed_has_another_chance(deployed: Deployment) -> None:
    await deployed.add_devices(200)
    deployed.stop_rule = StopRule(100, 1_000_000)
    fails = True

    async def answer(device: str, command: dict[str, object]) -> None:
        if fails:
            deployed.hook.offers.track_offer(device, said(Outcome.FAILED, "flash_failed"), at_ms=deployed.clock_ms())
        else:
            await deployed.report(device, "2.0")

    deployed.broker.on_command = answer
    await deployed.start_worker()
    run_id = await deployed.run_now(task_of_api())
    run = await deployed.reached(run_id, RunState.STOPPED)
    await deployed.until(run_id, lambda run: not {Outcome.SENDING, Outcome.OFFERED} & run.counters.keys())
    failed = len(deployed.broker.ids)
    await deployed.runs.set_state(run.head, None, of=[RunState.STOPPED], reason="", now_ms=1)
    await deployed.reached(run_id, RunState.STOPPED)
    await deployed.until(run_id, lambda run: not {Outcome.SENDING, Outcome.OFFERED} & run.counters.keys())
    assert failed + 20 <= len(deployed.broker.ids) < failed + 60
    failed, fails = len(deployed.broker.ids), False
    await deployed.runs.set_state(run.head, None, of=[RunState.STOPPED], reason="", now_ms=1)
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.FAILED: failed, Outcome.SUCCEEDED: 200 - failed}


def task_of_api(**fields: object) -> Task:
    """What the API makes of a task of which nothing else is said."""
    document = {"name": "all", "target": {"device_type": "tracker"}} | fields
    return TaskFields.model_validate(document).to_task("01JTASK", now_ms=0)


@pytest.mark.parametrize("fleet", [100, 800])
async def test_where_nothing_is_said_a_firmware_that_fails_everywhere_reaches_sixty_devices_at_most(
    deployed: Deployment, fleet: int
) -> None:
    await deployed.add_devices(fleet)
    deployed.stop_rule = StopRule(100, 1_000_000)  # the run stops itself, not the firmware

    async def fail(device: str, command: dict[str, object]) -> None:
        deployed.hook.offers.track_offer(device, said(Outcome.FAILED, "flash_failed"), at_ms=deployed.clock_ms())

    deployed.broker.on_command = fail
    await deployed.start_worker("one")
    await deployed.start_worker("two")
    run_id = await deployed.run_now(task_of_api())
    run = await deployed.reached(run_id, RunState.STOPPED)
    assert "stops at 50 %" in run.reason
    await deployed.until(run_id, lambda run: not {Outcome.SENDING, Outcome.OFFERED} & run.counters.keys())
    assert 20 <= len(deployed.broker.ids) < 60


async def test_where_the_stop_is_switched_off_nothing_stops_a_run(deployed: Deployment) -> None:
    await deployed.add_devices(100)
    deployed.stop_rule = StopRule(100, 1_000_000)

    async def fail(device: str, command: dict[str, object]) -> None:
        deployed.hook.offers.track_offer(device, said(Outcome.FAILED, "flash_failed"), at_ms=deployed.clock_ms())

    deployed.broker.on_command = fail
    await deployed.start_worker()
    run_id = await deployed.run_now(task_of_api(stop_percent=None))
    assert (await deployed.reached(run_id, RunState.COMPLETED)).counters == {Outcome.FAILED: 100}


async def test_devices_that_are_away_do_not_keep_a_careful_run_from_the_others(deployed: Deployment) -> None:
    names = await deployed.add_devices(90)
    here = set(names[::5])

    async def answer(device: str, command: dict[str, object]) -> None:
        if device in here:
            await deployed.report(device, "2.0")
        else:
            deployed.hook.offers.track_offer(device, said(Outcome.OFFERED, UNDELIVERED), at_ms=deployed.clock_ms())

    deployed.broker.on_command = answer
    await deployed.start_worker()
    run_id = await deployed.run_now(task_of_api(max_concurrent=10))
    run = await deployed.until(run_id, lambda run: run.counters == {Outcome.SUCCEEDED: 18, Outcome.OFFERED: 72})
    assert run.state is RunState.RUNNING


async def test_a_few_failures_among_many_successes_stop_nothing(deployed: Deployment) -> None:
    await deployed.add_devices(100)

    async def answer(device: str, command: dict[str, object]) -> None:
        if device.endswith("7"):
            deployed.hook.offers.track_offer(device, said(Outcome.FAILED, "busy"), at_ms=deployed.clock_ms())
        else:
            await deployed.report(device, "2.0")

    deployed.broker.on_command = answer
    await deployed.start_worker()
    run_id = await deployed.run_now(replace(TASK, stop_percent=30, stop_after=10))
    run = await deployed.reached(run_id, RunState.COMPLETED)
    assert run.counters == {Outcome.SUCCEEDED: 90, Outcome.FAILED: 10}


async def test_a_firmware_that_fails_is_taken_out_of_force_for_checks_too(deployed: Deployment) -> None:
    names = await deployed.add_devices(30)
    await deployed.notices.open()
    await deployed.start_worker()
    for name in names[:19]:
        await offer_by_check_and_fail(deployed, name)
    await some_rounds()
    assert deployed.catalogue.current.firmware[FIRMWARE.id].enabled
    await offer_by_check_and_fail(deployed, names[19])
    await eventually(lambda: not deployed.catalogue.current.firmware[FIRMWARE.id].enabled)
    await eventually(lambda: has_stop(deployed))
    (stop,) = await deployed.stops.load_stops([FIRMWARE.id])
    assert stop is not None
    assert stop.reason == "20 of 20 devices that finished failed or timed out; a firmware stops at 50 %."
    told = [notice.body for notice in await deployed.notices.read(most=10, block_ms=100)]
    assert [(notice["kind"], notice["firmware"], notice["reason"]) for notice in told] == [
        ("firmware_stopped", FIRMWARE.id, stop.reason)
    ]


async def test_failures_of_commands_that_were_under_way_leave_the_reason_of_a_stop_and_count_for_it(
    deployed: Deployment,
) -> None:
    names = await deployed.add_devices(60)
    await deployed.start_worker()
    for name in names[:20]:
        await offer_by_check_and_fail(deployed, name)
    await eventually(lambda: has_stop(deployed))
    (before,) = await deployed.stops.load_stops([FIRMWARE.id])
    for name in names[20:45]:
        await offer_by_check_and_fail(deployed, name)
    await some_rounds()
    (after,) = await deployed.stops.load_stops([FIRMWARE.id])
    assert before is not None
    assert after is not None
    assert (after.reason, after.at_ms) == (before.reason, before.at_ms)
    assert after.failed >= before.failed + 20


async def test_a_firmware_that_an_operator_disabled_did_not_stop_itself(deployed: Deployment) -> None:
    names = await deployed.add_devices(30)
    await deployed.edit(replace(FIRMWARE, enabled=False, revision=9))
    await deployed.start_worker()
    for name in names[:25]:
        await offer_by_check_and_fail(deployed, name)
    await some_rounds()
    assert not await has_stop(deployed)


async def test_a_firmware_that_could_not_be_stopped_at_once_is_stopped_though_nothing_more_fails(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await deployed.add_devices(20)
    for name in names:
        await offer_by_check_and_fail(deployed, name)
    change, refusals = deployed.catalogue.change, iter([DependencyError("Redis is away."), ConflictError("Busy.")])

    async def change_later(decide: Callable[[Snapshot], Sequence[CatalogueChange]]) -> None:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        await change(decide)

    monkeypatch.setattr(deployed.catalogue, "change", change_later)
    await deployed.start_worker()
    await eventually(lambda: not deployed.catalogue.current.firmware[FIRMWARE.id].enabled)


async def has_stop(deployed: Deployment) -> bool:
    return await deployed.stops.load_stops([FIRMWARE.id]) != [None]


async def test_a_firmware_that_is_enabled_again_has_another_chance(deployed: Deployment) -> None:
    names = await deployed.add_devices(45)
    await deployed.start_worker()
    for name in names[:20]:
        await offer_by_check_and_fail(deployed, name)
    await eventually(lambda: has_stop(deployed))
    await deployed.edit(replace(FIRMWARE, revision=9))
    for name in names[20:39]:
        await offer_by_check_and_fail(deployed, name)
    await some_rounds()
    assert deployed.catalogue.current.firmware[FIRMWARE.id].enabled
    await offer_by_check_and_fail(deployed, names[39])
    await eventually(lambda: not deployed.catalogue.current.firmware[FIRMWARE.id].enabled)


async def offer_by_check_and_fail(deployed: Deployment, name: str) -> None:
    """As the hook notes it: an offer without a run, then the device's reply."""
    offer = OpenOffer(
        module="main",
        firmware_id=FIRMWARE.id,
        version_attribute="version",
        version="2.0",
        from_version="1.0",
        command_ids=(5,),
        offered_at_ms=deployed.clock_ms(),
    )
    await deployed.hook.record(name, offer)
    deployed.hook.offers.track_offer(name, said(Outcome.FAILED, "flash_failed"), at_ms=deployed.clock_ms())
    await deployed.hook.noted()


# ---- windows


async def test_outside_of_its_window_a_run_waits_and_goes_on_when_it_opens(deployed: Deployment) -> None:
    await deployed.add_devices(3)
    now = datetime.now(UTC)
    opens = now.hour * 60 + now.minute + 30
    window = Window("UTC", tuple(range(7)), opens % 1_440, (opens + 60) % 1_440)
    await deployed.start_worker()
    run_id = await deployed.run_now(replace(TASK, window=window))
    run = await deployed.until(run_id, lambda run: run.state is RunState.WAITING and run.is_planned)
    await some_rounds()
    assert deployed.broker.commands == []
    assert re.fullmatch(r"Its window opens at \d{4}-\d\d-\d\d \d\d:\d\d UTC\.", run.reason)
    deployed.shift_ms = 31 * 60_000
    run = await deployed.until(run_id, lambda run: run.counters == {Outcome.OFFERED: 3})
    assert (run.state, run.reason) == (RunState.RUNNING, "")


async def test_outside_of_its_window_nothing_is_sent_though_its_run_was_left_running(deployed: Deployment) -> None:
    await deployed.add_devices(3)
    now = datetime.now(UTC)
    opens = now.hour * 60 + now.minute + 30
    window = Window("UTC", tuple(range(7)), opens % 1_440, (opens + 60) % 1_440)
    run = await deployed.plan(await deployed.run_now(replace(TASK, window=window)))
    sender = deployed.sender("one")
    await sender.send_chunk(run.head, 0)
    assert deployed.broker.commands == []
    deployed.shift_ms = 31 * 60_000
    await sender.send_chunk(run.head, 0)
    assert len(deployed.broker.commands) == 3


# ---- notices


async def test_a_listener_that_never_ends_its_answer_holds_no_notice_up(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ota_hook.publish.webhook._TIMEOUT_S", 1.0)
    heard: list[bytes] = []

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" if len(heard) > 1 else b"HTTP/1.1 200 O")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)
        writer.close()
        ended.release()

    ended = asyncio.Semaphore(0)
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    webhook = Webhook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "secret")
    with pytest.raises(DependencyError, match="Timeout"):
        await asyncio.wait_for(webhook.tell("1-0", {}), 10)
    await asyncio.wait_for(webhook.tell("1-0", {}), 10)
    await webhook.aclose()
    for _ in heard:
        await asyncio.wait_for(ended.acquire(), 10)
    server.close()
    await server.wait_closed()


async def test_a_notice_that_can_not_be_read_keeps_no_other_from_being_told(deployed: Deployment) -> None:
    await deployed.notices.open()
    for body in (b"{", b"7", b"[]"):
        await deployed.redis.xadd(deployed.keys.notices, {"body": body})
    await deployed.redis.xadd(deployed.keys.notices, {"other": "field"})
    await deployed.notices.add("run_stopped", {"run": "01J"})
    (notice,) = await deployed.notices.read(most=10, block_ms=100)
    assert notice.body == {"kind": "run_stopped", "run": "01J"}
    await deployed.notices.finish([notice])
    assert await deployed.redis.xlen(deployed.keys.notices) == 0


async def test_a_notice_is_told_again_until_it_is_heard_with_a_signature_that_proves_its_sender(
    deployed: Deployment,
) -> None:
    heard: list[tuple[dict[str, str], bytes]] = []
    answers = iter([500, 302, 200])

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        heard.append((headers, body))
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % next(answers))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    webhook = Webhook(f"http://127.0.0.1:{port}/hook", "secret", clock_s=lambda: 1_700_000_000)
    await deployed.notices.open()
    telling = asyncio.create_task(Teller(deployed.notices, webhook).run())
    await deployed.notices.add("run_stopped", {"run": "01J", "name": "夜间"})
    await eventually(lambda: len(heard) == 3, within_s=10)
    await some_rounds()
    assert len(heard) == 3
    await end_tasks([telling])
    await webhook.aclose()
    server.close()
    await server.wait_closed()
    headers, body = heard[2]
    assert orjson.loads(body) == {"id": headers["ota-hook-id"], "kind": "run_stopped", "run": "01J", "name": "夜间"}
    assert len({headers["ota-hook-id"] for headers, _ in heard}) == 1
    expected = hmac.new(b"secret", b"1700000000." + body, hashlib.sha256).hexdigest()
    assert headers["ota-hook-signature"] == f"t=1700000000,v1={expected}"
