"""Offers, histories and counters on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from ota_hook.model import OpenOffer, Outcome, SettledOffer
from ota_hook.state.devices import RedisDevices
from ota_hook.state.keys import Keys
from ota_hook.state.offers import RedisOffers

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


async def open_offers(devices: RedisDevices) -> tuple[OpenOffer, ...]:
    state = await devices.load_device("d")
    assert state is not None
    return state.open_offers


async def test_an_offer_comes_back_exactly_with_the_device_and_with_its_report(
    devices: RedisDevices, offers: RedisOffers
) -> None:
    offer = replace(OFFER, version="版本 2", from_version="\ud8001", command_ids=(2**53 - 1,))
    await offers.record_offer("d", offer)
    assert await open_offers(devices) == (offer,)
    state = await devices.store_report(
        "d", {"version": "1.1"}, reported_at_ms=1, kept_by_type={"tracker": frozenset({"version"})}
    )
    assert state is not None
    assert state.open_offers == (offer,)


async def test_the_same_firmware_again_adds_its_command_id_and_keeps_the_last_four(
    devices: RedisDevices, offers: RedisOffers
) -> None:
    for number in (1, 2, 3, 4, 5, 5):
        again = replace(OFFER, command_ids=(number,), offered_at_ms=number, from_version=f"1.{number}")
        await offers.record_offer("d", again)
    assert await open_offers(devices) == (
        replace(OFFER, command_ids=(2, 3, 4, 5), offered_at_ms=5, from_version="1.5"),
    )
    assert await offers.load_counters([OFFER.firmware_id]) == {OFFER.firmware_id: {"offered": 1}}


async def test_another_firmware_supersedes_the_open_offer_of_its_module(
    devices: RedisDevices, offers: RedisOffers
) -> None:
    newer = replace(OFFER, firmware_id="01JNEWER", offered_at_ms=OFFER.offered_at_ms + 1)
    other_module = replace(OFFER, module="mcu", firmware_id="01JMCU")
    for offer in (OFFER, other_module, newer):
        await offers.record_offer("d", offer)
    assert set(await open_offers(devices)) == {newer, other_module}
    assert await offers.load_history("d") == [
        SettledOffer(offer=OFFER, outcome=Outcome.SUPERSEDED, settled_at_ms=newer.offered_at_ms)
    ]
    assert await offers.load_counters(["01JNEWER", OFFER.firmware_id, "01JNEVER"]) == {
        "01JNEWER": {"offered": 1},
        OFFER.firmware_id: {"offered": 1, "superseded": 1},
        "01JNEVER": {},
    }


async def test_an_offer_is_settled_once(devices: RedisDevices, offers: RedisOffers) -> None:
    await offers.record_offer("d", OFFER)
    settled = await asyncio.gather(
        *(offers.settle_offer("d", OFFER, Outcome.FAILED, code="other_version", settled_at_ms=9) for _ in range(8))
    )
    assert sorted(settled) == [False] * 7 + [True]
    assert await open_offers(devices) == ()
    assert await offers.load_history("d") == [
        SettledOffer(offer=OFFER, outcome=Outcome.FAILED, settled_at_ms=9, code="other_version")
    ]
    assert await offers.load_counters([OFFER.firmware_id]) == {OFFER.firmware_id: {"offered": 1, "failed": 1}}


async def test_settling_another_firmware_or_module_changes_nothing(devices: RedisDevices, offers: RedisOffers) -> None:
    await offers.record_offer("d", OFFER)
    for wrong in (replace(OFFER, firmware_id="01JOTHER"), replace(OFFER, module="mcu")):
        assert not await offers.settle_offer("d", wrong, Outcome.SUCCEEDED, code="", settled_at_ms=9)
    assert await open_offers(devices) == (OFFER,)


async def test_the_history_keeps_the_last_twenty_newest_first(devices: RedisDevices, offers: RedisOffers) -> None:
    assert await open_offers(devices) == ()
    for number in range(25):
        offer = replace(OFFER, firmware_id=f"F{number}")
        await offers.record_offer("d", offer)
        await offers.settle_offer("d", offer, Outcome.SUCCEEDED, code="", settled_at_ms=number)
    history = await offers.load_history("d")
    assert [settled.offer.firmware_id for settled in history] == [f"F{number}" for number in range(24, 4, -1)]


async def test_an_offer_to_a_device_that_is_gone_is_not_kept(
    devices: RedisDevices, offers: RedisOffers, content: Callable[[], Awaitable[dict[bytes, object]]]
) -> None:
    await devices.delete_device("d")
    before = await content()
    await offers.record_offer("d", OFFER)
    assert await content() == before


async def test_a_device_with_a_long_state_keeps_its_offers(devices: RedisDevices, offers: RedisOffers) -> None:
    await devices.put_device("d", "tracker", {"version": "1" * 100})
    await offers.record_offer("d", OFFER)
    assert await open_offers(devices) == (OFFER,)


async def test_deleting_a_firmware_cancels_its_open_offers_and_no_others(
    devices: RedisDevices, offers: RedisOffers
) -> None:
    names = [f"d{number}" for number in range(30)]
    await devices.import_devices([(name, "tracker", {"version": "1.0"}) for name in names])
    for name in names:
        await offers.record_offer(name, OFFER)
        await offers.record_offer(name, replace(OFFER, module="mcu", firmware_id="01JMCU", version=OFFER.firmware_id))
    assert await offers.cancel_offers(OFFER.firmware_id, settled_at_ms=7) == 30
    assert await offers.cancel_offers(OFFER.firmware_id, settled_at_ms=8) == 0
    state = await devices.load_device("d7")
    assert state is not None
    assert [offer.module for offer in state.open_offers] == ["mcu"]
    assert await offers.load_history("d7") == [SettledOffer(offer=OFFER, outcome=Outcome.CANCELLED, settled_at_ms=7)]
    assert await offers.load_counters([OFFER.firmware_id]) == {OFFER.firmware_id: {"offered": 30, "cancelled": 30}}
