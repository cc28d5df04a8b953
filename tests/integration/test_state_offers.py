"""Offers, histories and counters on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from ota_hook.model import OpenOffer, Outcome, SettledOffer
from ota_hook.ports.device_messages import Report
from ota_hook.progress import Said
from ota_hook.state.devices import RedisDevices
from ota_hook.state.keys import Keys
from ota_hook.state.offers import RedisOffers
from tests.integration.hot_state import HotState, answered, hot_state, imported
from tests.integration.waiting import eventually

OFFER = OpenOffer(
    module="main",
    firmware_id="01JFIRMWARE",
    version_attribute="version",
    version="2.0",
    from_version="1.0",
    command_ids=(98_310,),
    offered_at_ms=1_750_234_507_181,
)


@pytest.fixture
async def devices(redis: Redis, keys: Keys) -> RedisDevices:
    store = RedisDevices(redis, keys)
    await store.put_device("d", "tracker", {"version": "1.0"})
    return store


@pytest.fixture
def offers(redis: Redis, keys: Keys) -> RedisOffers:
    return RedisOffers(redis, keys)


@pytest.fixture
async def hot(redis_url: str, keys: Keys) -> AsyncIterator[HotState]:
    async with hot_state(redis_url, keys) as opened:
        yield opened


async def open_offers(devices: RedisDevices) -> tuple[OpenOffer, ...]:
    state = await devices.load_device("d")
    assert state is not None
    return state.open_offers


async def test_an_offer_comes_back_exactly_with_the_device_and_with_its_report(
    devices: RedisDevices, hot: HotState
) -> None:
    offer = replace(OFFER, version="版本 2", from_version="1é", command_ids=(2**53 - 1,))
    await hot.record("d", offer)
    assert await open_offers(devices) == (offer,)
    report = Report(device="d", versions={"version": "1.1"}, reported_at_ms=1)
    state = await hot.stored(report, {"tracker": frozenset({"version"})})
    assert state is not None
    assert state.open_offers == (offer,)


async def test_the_same_firmware_again_adds_its_command_id_and_keeps_the_last_four(
    devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    for number in (1, 2, 3, 4, 5, 5):
        again = replace(OFFER, command_ids=(number,), offered_at_ms=number, from_version=f"1.{number}")
        await hot.record("d", again)
    assert await open_offers(devices) == (
        replace(OFFER, command_ids=(2, 3, 4, 5), offered_at_ms=5, from_version="1.5"),
    )
    assert await offers.load_counters([OFFER.firmware_id]) == {OFFER.firmware_id: {"offered": 1}}


async def test_another_firmware_supersedes_the_open_offer_of_its_module(
    devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    newer = replace(OFFER, firmware_id="01JNEWER", offered_at_ms=OFFER.offered_at_ms + 1)
    other_module = replace(OFFER, module="mcu", firmware_id="01JMCU")
    for offer in (OFFER, other_module, newer):
        await hot.record("d", offer)
    assert set(await open_offers(devices)) == {newer, other_module}
    assert await offers.load_history("d") == [
        SettledOffer(offer=OFFER, outcome=Outcome.SUPERSEDED, settled_at_ms=newer.offered_at_ms)
    ]
    assert await offers.load_counters(["01JNEWER", OFFER.firmware_id, "01JNEVER"]) == {
        "01JNEWER": {"offered": 1},
        OFFER.firmware_id: {"offered": 1, "superseded": 1},
        "01JNEVER": {},
    }


async def test_an_offer_is_settled_once(
    redis_url: str, keys: Keys, devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    await hot.record("d", OFFER)
    async with AsyncExitStack() as stack:
        hooks = [await stack.enter_async_context(hot_state(redis_url, keys)) for _ in range(4)]
        for hook in hooks * 2:
            hook.offers.settle_offer("d", OFFER, Outcome.FAILED, code="other_version", settled_at_ms=9)
        await asyncio.gather(*(hook.noted() for hook in hooks))
        assert [hook.offers.lost for hook in hooks] == [0, 0, 0, 0]
    assert await open_offers(devices) == ()
    assert await offers.load_history("d") == [
        SettledOffer(offer=OFFER, outcome=Outcome.FAILED, settled_at_ms=9, code="other_version")
    ]
    assert await offers.load_counters([OFFER.firmware_id]) == {OFFER.firmware_id: {"offered": 1, "failed": 1}}


async def test_settling_another_firmware_or_module_changes_nothing(
    devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    await hot.record("d", OFFER)
    for wrong in (replace(OFFER, firmware_id="01JOTHER"), replace(OFFER, module="mcu")):
        await hot.settle("d", wrong, Outcome.SUCCEEDED, settled_at_ms=9)
    assert await open_offers(devices) == (OFFER,)
    assert await offers.load_history("d") == []
    assert await offers.load_counters([OFFER.firmware_id, "01JOTHER"]) == {
        OFFER.firmware_id: {"offered": 1},
        "01JOTHER": {},
    }


async def test_the_history_keeps_the_last_twenty_newest_first(
    devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    assert await open_offers(devices) == ()
    for number in range(25):
        offer = replace(OFFER, firmware_id=f"F{number}")
        await hot.record("d", offer)
        await hot.settle("d", offer, Outcome.SUCCEEDED, settled_at_ms=number)
    history = await offers.load_history("d")
    assert [settled.offer.firmware_id for settled in history] == [f"F{number}" for number in range(24, 4, -1)]


async def test_an_offer_to_a_device_that_is_gone_is_not_kept(
    devices: RedisDevices, content: Callable[[], Awaitable[dict[bytes, object]]], hot: HotState
) -> None:
    await devices.delete_device("d")
    before = await content()
    await hot.record("d", OFFER)
    assert await content() == before


async def test_a_device_with_a_long_state_keeps_its_offers(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "tracker", {"version": "1" * 100})
    await hot.record("d", OFFER)
    assert await open_offers(devices) == (OFFER,)


async def test_deleting_a_firmware_cancels_its_open_offers_and_no_others(
    devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    names = [f"d{number}" for number in range(30)]
    await imported(devices, [(name, "tracker", {"version": "1.0"}) for name in names])
    for name in names:
        await hot.record(name, OFFER)
        await hot.record(name, replace(OFFER, module="mcu", firmware_id="01JMCU", version=OFFER.firmware_id))
    assert await offers.cancel_offers(OFFER.firmware_id, settled_at_ms=7) == 30
    assert await offers.cancel_offers(OFFER.firmware_id, settled_at_ms=8) == 0
    state = await devices.load_device("d7")
    assert state is not None
    assert [offer.module for offer in state.open_offers] == ["mcu"]
    assert await offers.load_history("d7") == [SettledOffer(offer=OFFER, outcome=Outcome.CANCELLED, settled_at_ms=7)]
    assert await offers.load_counters([OFFER.firmware_id]) == {OFFER.firmware_id: {"offered": 30, "cancelled": 30}}


async def test_notes_that_redis_did_not_take_are_counted_and_nothing_else_happens(
    devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    await hot.record("d", OFFER)
    for pipe in hot.all_pipes():
        await pipe.close()
    hot.offers.record_offer("d", replace(OFFER, firmware_id="01JNEWER"))
    hot.offers.settle_offer("d", OFFER, Outcome.FAILED, code="", settled_at_ms=9)
    assert hot.offers.lost == 1
    hot.offers.close()  # an outcome is kept until Redis is back, or the process ends
    assert hot.offers.lost == 2
    assert await open_offers(devices) == (OFFER,)
    assert await offers.load_history("d") == []


async def test_what_became_of_an_offer_while_redis_was_away_is_noted_when_it_is_back(
    offers: RedisOffers, devices: RedisDevices, hot: HotState
) -> None:
    await hot.record("d", OFFER)
    for pipe in hot.all_pipes():
        await pipe.close()
    hot.offers.track_offer("d", Said(None, None, Outcome.FAILED, "flash_failed"), at_ms=9)
    for pipe in hot.all_pipes():
        await pipe.start()

    async def is_noted() -> bool:
        return [settled.code for settled in await offers.load_history("d")] == ["flash_failed"]

    await eventually(is_noted)
    assert await open_offers(devices) == ()
    assert hot.offers.lost == 0


async def test_an_offer_that_is_repeated_stays_where_it_is_and_no_step_counts_twice(
    offers: RedisOffers, devices: RedisDevices, hot: HotState
) -> None:
    for command_id in (1, 2):
        await hot.record("d", replace(OFFER, command_ids=(command_id,)))
        hot.offers.track_offer("d", Said(None, "main", Outcome.DOWNLOADING, ""), at_ms=9)
        await hot.noted()
    assert [offer.outcome for offer in await open_offers(devices)] == [Outcome.DOWNLOADING]
    counters = (await offers.load_counters([OFFER.firmware_id]))[OFFER.firmware_id]
    assert counters == {"offered": 1, "downloading": 1}


async def test_a_note_is_kept_though_redis_forgot_its_script(
    redis: Redis, devices: RedisDevices, offers: RedisOffers, hot: HotState
) -> None:
    for pipe in hot.all_pipes():
        assert await answered(pipe, "SCRIPT", "FLUSH") == b"OK"
    await hot.record("d", OFFER)
    for pipe in hot.all_pipes():
        await answered(pipe, "SCRIPT", "FLUSH")
    await hot.settle("d", OFFER, Outcome.SUCCEEDED, settled_at_ms=9)
    assert [settled.outcome for settled in await offers.load_history("d")] == [Outcome.SUCCEEDED]
    assert await offers.load_counters([OFFER.firmware_id]) == {OFFER.firmware_id: {"offered": 1, "succeeded": 1}}
    assert hot.offers.lost == 0
