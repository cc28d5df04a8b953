"""Offers that no open run looks after time out: those that checks made, and those of runs that are gone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from ota_hook.model import OpenOffer, Outcome, SettledOffer
from ota_hook.ports.device_messages import Report
from ota_hook.rollout.check_timer import REST_MS
from ota_hook.state.keys import Keys
from ota_hook.state.overdue import RedisOverdueOffers
from ota_hook.state.turns import RedisTurn
from tests.integration.rollout_deployment import CHECK_TIMEOUT_MS, FIRMWARE, LEASE_MS, Deployment
from tests.integration.waiting import eventually


def offer_of(deployed: Deployment, *, age_ms: int = 0, run_id: str = "", command_id: int = 5) -> OpenOffer:
    return OpenOffer(
        module="main",
        firmware_id=FIRMWARE.id,
        version_attribute="version",
        version="2.0",
        from_version="1.0",
        command_ids=(command_id,),
        offered_at_ms=deployed.clock_ms() - age_ms,
        run_id=run_id,
    )


async def history_of(deployed: Deployment, name: str) -> list[SettledOffer]:
    return await deployed.offers.load_history(name)


async def open_offers_of(deployed: Deployment, name: str) -> tuple[OpenOffer, ...]:
    device = await deployed.devices.load_device(name)
    assert device is not None
    return device.open_offers


async def counters_of(deployed: Deployment) -> dict[str, int]:
    return (await deployed.offers.load_counters([FIRMWARE.id]))[FIRMWARE.id]


async def overdue(deployed: Deployment) -> list[tuple[str, OpenOffer]]:
    found = RedisOverdueOffers(deployed.redis, deployed.keys).scan(
        offered_before_ms=deployed.clock_ms() - CHECK_TIMEOUT_MS
    )
    return [one async for piece in found for one in piece]


async def test_a_check_whose_device_did_not_report_for_a_day_has_timed_out(deployed: Deployment) -> None:
    late, fresh = await deployed.add_devices(2)
    offer = offer_of(deployed, age_ms=CHECK_TIMEOUT_MS)
    await deployed.hook.record(late, offer)
    await deployed.hook.record(fresh, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS - 60_000))
    await deployed.check_timer("one").look()
    ((settled),) = await history_of(deployed, late)
    assert (settled.offer, settled.outcome, settled.code) == (offer, Outcome.TIMED_OUT, "")
    assert deployed.clock_ms() - 10_000 < settled.settled_at_ms <= deployed.clock_ms()
    assert await open_offers_of(deployed, late) == ()
    assert len(await open_offers_of(deployed, fresh)) == 1
    assert await counters_of(deployed) == {"offered": 2, "timed_out": 1}
    assert await deployed.stops.load_failing() == [FIRMWARE.id]


async def test_a_device_that_asks_again_has_its_time_anew(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.hook.record(name, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS))
    await deployed.hook.record(name, offer_of(deployed, age_ms=1_000, command_id=6))
    await deployed.check_timer("one").look()
    (offer,) = await open_offers_of(deployed, name)
    assert offer.command_ids == (5, 6)
    assert await history_of(deployed, name) == []


@pytest.mark.parametrize("run_id", ["", "01JRUN"])
async def test_an_offer_that_is_repeated_or_taken_by_a_run_while_it_is_looked_at_stays(
    deployed: Deployment, run_id: str
) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.hook.record(name, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS))
    found = await overdue(deployed)
    assert [identifier for identifier, _ in found] == [name]
    # A run's worker may have a clock that is behind: then the time of the offer stays as it is.
    again = offer_of(deployed, age_ms=2 * CHECK_TIMEOUT_MS if run_id else 0, run_id=run_id, command_id=6)
    await deployed.hook.record(name, again)
    store = RedisOverdueOffers(deployed.redis, deployed.keys)
    assert await store.time_out(found, settled_at_ms=deployed.clock_ms()) == 0
    (offer,) = await open_offers_of(deployed, name)
    assert (offer.run_id, offer.command_ids) == (run_id, (5, 6))
    assert await counters_of(deployed) == {"offered": 1}


async def test_an_offer_of_an_open_run_is_left_to_it_and_one_of_a_run_that_is_gone_times_out(
    deployed: Deployment,
) -> None:
    of_run, orphan = await deployed.add_devices(2)
    run_id = await deployed.run_now()
    await deployed.hook.record(of_run, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS, run_id=run_id))
    await deployed.hook.record(orphan, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS, run_id="01JGONE"))
    await deployed.check_timer("one").look()
    assert len(await open_offers_of(deployed, of_run)) == 1
    assert [one.outcome for one in await history_of(deployed, orphan)] == [Outcome.TIMED_OUT]


@pytest.mark.parametrize(("version", "outcome"), [("2.0", Outcome.SUCCEEDED), ("1.5", Outcome.FAILED)])
async def test_what_a_device_reported_counts_though_the_note_of_it_was_lost(
    deployed: Deployment, version: str, outcome: Outcome
) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.hook.record(name, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS))
    report = Report(device=name, versions={"version": version}, reported_at_ms=deployed.clock_ms())
    assert await deployed.hook.stored(report, deployed.catalogue.current.kept_by_type) is not None
    await deployed.check_timer("one").look()
    assert [one.outcome for one in await history_of(deployed, name)] == [outcome]
    assert await counters_of(deployed) == {"offered": 1, outcome.value: 1}


async def test_a_device_that_can_not_be_read_keeps_no_other_from_its_turn(deployed: Deployment) -> None:
    names = await deployed.add_devices(5)
    for name in names:
        await deployed.hook.record(name, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS))
    await deployed.redis.hset(deployed.keys.devices(deployed.keys.bucket_of(names[2])), names[2], b"\xc1")
    await deployed.check_timer("one").look()
    assert await overdue(deployed) == []
    assert (await counters_of(deployed))["timed_out"] == 5


async def test_one_worker_looks_at_a_time_and_then_nobody_for_a_while(deployed: Deployment) -> None:
    first, second = await deployed.add_devices(2)
    await deployed.hook.record(first, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS))
    lost = RedisTurn(deployed.redis, deployed.keys.check_timer, holder="lost", lease_ms=LEASE_MS)
    assert await lost.take()
    await deployed.check_timer("one").look()
    assert len(await open_offers_of(deployed, first)) == 1

    async def is_settled() -> bool:
        await deployed.check_timer("one").look()
        return await open_offers_of(deployed, first) == ()

    await eventually(is_settled)
    await deployed.hook.record(second, offer_of(deployed, age_ms=CHECK_TIMEOUT_MS))
    for name in ("one", "two"):
        await deployed.check_timer(name).look()
    assert len(await open_offers_of(deployed, second)) == 1
    assert REST_MS - 60_000 < await deployed.redis.pttl(deployed.keys.check_timer) <= REST_MS


async def test_a_worker_times_checks_out(deployed: Deployment) -> None:
    (name,) = await deployed.add_devices(1)
    await deployed.hook.record(name, offer_of(deployed))
    deployed.shift_ms = CHECK_TIMEOUT_MS
    await deployed.start_worker()

    async def is_settled() -> bool:
        return await open_offers_of(deployed, name) == ()

    await eventually(is_settled)


@pytest.mark.alone
async def test_a_turn_is_one_workers_until_its_lease_is_over(redis: Redis, keys: Keys) -> None:
    one, two = (RedisTurn(redis, keys.check_timer, holder=name, lease_ms=400) for name in ("one", "two"))
    assert sorted(await asyncio.gather(one.take(), two.take())) == [False, True]
    holder, other = (one, two) if await one.take() else (two, one)
    for _ in range(3):
        await asyncio.sleep(0.2)
        assert await holder.take()
        assert not await other.take()
    await other.end(rest_ms=60_000)
    assert await holder.take()
    await asyncio.sleep(0.5)
    assert await other.take()
    await holder.end(rest_ms=60_000)
    assert await other.take()
    await other.end(rest_ms=200)
    assert not await holder.take()
    await asyncio.sleep(0.3)
    assert await holder.take()


async def test_more_offers_than_one_round_trip_takes_time_out(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ota_hook.state.overdue._BUCKETS_AT_ONCE", 2)
    monkeypatch.setattr("ota_hook.state.overdue._SETTLED_AT_ONCE", 3)
    names = await deployed.add_devices(40)
    offer = offer_of(deployed, age_ms=CHECK_TIMEOUT_MS)
    for name in names:
        deployed.hook.offers.record_offer(name, replace(offer, offered_at_ms=offer.offered_at_ms - len(name)))
    await deployed.hook.noted()
    await deployed.check_timer("one").look()
    assert await counters_of(deployed) == {"offered": 40, "timed_out": 40}
