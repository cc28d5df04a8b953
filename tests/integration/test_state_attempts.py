"""Attempts and their cap on a real Redis: what counts, what is exhausted, and what a reset forgets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final

import pytest
from redis.asyncio import Redis

from ota_hook.decide import CountAttempt, SettleOffer, decide_report
from ota_hook.errors import InputError
from ota_hook.model import Attempts, DeviceState, OpenOffer, Outcome
from ota_hook.ports.device_messages import Report
from ota_hook.progress import Said
from ota_hook.state.attempts import RedisAttempts
from ota_hook.state.devices import RedisDevices
from ota_hook.state.hot import HotOffers, HotPresence
from ota_hook.state.keys import Keys
from ota_hook.state.offers import RedisOffers
from tests.doubles import make_firmware, make_snapshot
from tests.integration.hot_state import HotState, hot_state

HOUR_MS: Final = 3_600_000
MOST: Final = 3
OFFER: Final = OpenOffer(
    module="main",
    firmware_id="01JFIRMWARE",
    version_attribute="version",
    version="2.0",
    from_version="1.0",
    command_ids=(98_310,),
    offered_at_ms=0,
)


class Fleet:
    """One device `d` as the hook sees it, and what operators see of it. `now_ms` is the clock of both."""

    def __init__(self, hot: HotState, redis: Redis, keys: Keys) -> None:
        self.hot = hot
        self.presence = HotPresence(hot.pipes, keys)
        self.devices = RedisDevices(redis, keys)
        self.offers = RedisOffers(redis, keys, attempts_max=MOST)
        self.attempts = RedisAttempts(redis, keys)
        self.now_ms = 1_750_000_000_000

    async def device(self) -> DeviceState:
        state = await self.devices.load_device("d")
        assert state is not None
        return state

    async def offer(self, offer: OpenOffer = OFFER) -> None:
        await self.hot.record("d", replace(offer, offered_at_ms=self.now_ms))

    async def come(self, connection: str = "one") -> None:
        self.presence.come("d", connection, at_ms=self.now_ms)
        await self.hot.noted()

    async def go(self, connection: str = "one") -> None:
        self.presence.go("d", connection)
        await self.hot.noted()

    async def say(self, outcome: Outcome, code: str = "") -> None:
        self.hot.offers.track_offer("d", Said(None, None, outcome, code), at_ms=self.now_ms)
        await self.hot.noted()

    async def report(self, version: str) -> list[type]:
        """The device says what it runs. What the hook notes of it is the answer."""
        report = Report(device="d", versions={"version": version}, reported_at_ms=self.now_ms)
        state = await self.hot.stored(report, {"tracker": frozenset({"version"})})
        assert state is not None
        decided = decide_report(state, ["version"], make_snapshot(make_firmware("F", "2.0")))
        for decision in decided:
            if isinstance(decision, CountAttempt):
                self.hot.offers.count_attempt("d", decision.offer, at_ms=self.now_ms)
            else:
                self.hot.offers.settle_offer(
                    "d", decision.offer, decision.outcome, code=decision.code, settled_at_ms=self.now_ms
                )
        await self.hot.noted()
        return [type(decision) for decision in decided]

    async def count(self, firmware_id: str = OFFER.firmware_id) -> int:
        return next((a.count for a in await self.attempts.load_attempts("d") if a.firmware_id == firmware_id), 0)

    def pass_time(self, ms: int = HOUR_MS) -> None:
        self.now_ms += ms


@asynccontextmanager
async def open_fleet(redis_url: str, redis: Redis, keys: Keys) -> AsyncIterator[Fleet]:
    async with hot_state(redis_url, keys) as opened:
        hot = replace(opened, offers=HotOffers(opened.pipes, keys, attempts_max=MOST))
        fleet = Fleet(hot, redis, keys)
        await fleet.devices.put_device("d", "tracker", {"version": "1.0"}, ("trial", "上海"))
        yield fleet


@pytest.fixture
async def fleet(redis_url: str, redis: Redis, keys: Keys) -> AsyncIterator[Fleet]:
    async with open_fleet(redis_url, redis, keys) as opened:
        yield opened


async def test_a_device_that_comes_back_with_its_old_version_has_tried(fleet: Fleet) -> None:
    await fleet.come("one")
    await fleet.offer()
    assert await fleet.report("1.0") == []
    fleet.pass_time()
    await fleet.come("two")
    assert await fleet.report("v1") == [CountAttempt]
    assert await fleet.attempts.load_attempts("d") == [Attempts(OFFER.firmware_id, 1, fleet.now_ms, False)]
    assert await fleet.report("1.0") == []


async def test_polling_without_trying_is_not_an_attempt(fleet: Fleet) -> None:
    await fleet.come()
    for _ in range(20):
        await fleet.offer()
        assert await fleet.report("1.0") == []
        fleet.pass_time()
    assert await fleet.attempts.load_attempts("d") == []


async def test_one_attempt_an_hour_counts_at_most(fleet: Fleet) -> None:
    await fleet.offer()
    for _ in range(12):
        await fleet.come()
        await fleet.report("1.0")
        fleet.pass_time(HOUR_MS // 4)
    assert await fleet.count() == MOST


async def test_a_device_that_checks_before_it_reports_has_tried_all_the_same(fleet: Fleet) -> None:
    await fleet.offer()
    fleet.pass_time()
    await fleet.come()
    await fleet.offer()
    assert await fleet.report("1.0") == [CountAttempt]


async def test_the_offer_of_a_run_to_a_device_that_is_away_is_not_tried_when_it_comes(fleet: Fleet) -> None:
    await fleet.come()
    await fleet.go()
    pushed = replace(OFFER, run_id="R", offered_at_ms=fleet.now_ms)
    assert await fleet.offers.record_offers([("d", pushed)]) == [True]
    await fleet.come()
    assert await fleet.report("1.0") == []
    fleet.pass_time()
    await fleet.come()
    assert await fleet.report("1.0") == [CountAttempt]


@pytest.mark.parametrize("is_dropped", [True, False], ids=["dropped", "kept by the broker"])
async def test_a_connection_of_which_the_broker_tells_twice_is_one_coming(fleet: Fleet, is_dropped: bool) -> None:
    await fleet.come()
    await fleet.go()
    await fleet.offers.record_offers([("d", replace(OFFER, run_id="R", offered_at_ms=fleet.now_ms))])
    if is_dropped:
        await fleet.say(Outcome.OFFERED, "undelivered")
    fleet.pass_time()
    await fleet.come("c\0n1\x007")  # a persistent session: it connected ...
    fleet.pass_time(3)
    await fleet.come("c\0n1\x007")  # ... and was resumed
    assert await fleet.report("1.0") == []
    fleet.pass_time()
    await fleet.come("c\0n1\x008")
    assert await fleet.report("1.0") == [CountAttempt]


async def test_a_command_that_was_not_delivered_is_not_tried(fleet: Fleet) -> None:
    await fleet.come()
    await fleet.offers.record_offers([("d", replace(OFFER, run_id="R", offered_at_ms=fleet.now_ms))])
    await fleet.say(Outcome.OFFERED, "undelivered")
    await fleet.come("two")
    assert await fleet.report("1.0") == []


async def test_a_device_whose_first_answer_was_lost_has_tried_the_one_that_it_got_then(fleet: Fleet) -> None:
    await fleet.come()
    await fleet.offer()
    await fleet.say(Outcome.OFFERED, "undelivered")  # it asked before it subscribed
    await fleet.offer()
    fleet.pass_time()
    await fleet.come("two")
    assert await fleet.report("1.0") == [CountAttempt]


@pytest.mark.parametrize("step", [Outcome.DOWNLOADING, Outcome.DOWNLOADED, Outcome.INSTALLING])
async def test_a_device_that_said_it_is_at_it_has_tried(fleet: Fleet, step: Outcome) -> None:
    await fleet.offer()
    await fleet.say(Outcome.DELIVERED)
    assert await fleet.report("1.0") == []
    await fleet.say(step)
    assert await fleet.report("1.0") == [CountAttempt]
    assert await fleet.report("1.0") == []
    fleet.pass_time()
    await fleet.offer()
    assert await fleet.report("1.0") == []
    await fleet.say(step)
    assert await fleet.report("1.0") == [CountAttempt]
    assert await fleet.count() == 2


@pytest.mark.parametrize("how", ["reply", "other version"])
async def test_a_failure_is_an_attempt(fleet: Fleet, how: str) -> None:
    for number in range(1, MOST + 1):
        await fleet.offer()
        if how == "reply":
            await fleet.say(Outcome.FAILED, "verify_failed")
        else:
            assert await fleet.report(f"1.{number}") == [SettleOffer]
        assert (await fleet.device()).open_offers == ()
        assert await fleet.count() == number
        assert (await fleet.device()).exhausted == ((OFFER.firmware_id,) if number == MOST else ())
        fleet.pass_time()


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.TIMED_OUT, Outcome.SUCCEEDED, Outcome.CANCELLED])
async def test_what_was_not_tried_or_did_not_fail_is_no_attempt(fleet: Fleet, outcome: Outcome) -> None:
    await fleet.offer()
    await fleet.offers.settle_offers([("d", OFFER)], outcome, settled_at_ms=fleet.now_ms)
    assert await fleet.attempts.load_attempts("d") == []


async def test_behind_the_last_attempt_the_offer_has_failed_and_the_firmware_is_exhausted(fleet: Fleet) -> None:
    for number in range(1, MOST + 1):
        await fleet.offer()
        await fleet.come(f"{number}")
        assert await fleet.report("1.0") == [CountAttempt]
        fleet.pass_time()
    state = await fleet.device()
    assert (state.exhausted, state.tags, state.open_offers) == ((OFFER.firmware_id,), ("trial", "上海"), ())
    (settled,) = await fleet.offers.load_history("d")
    assert (settled.outcome, settled.code) == (Outcome.FAILED, "attempts_exhausted")
    counters = await fleet.offers.load_counters([OFFER.firmware_id])
    assert counters == {OFFER.firmware_id: {"offered": 1, "failed": 1}}
    loaded = await fleet.hot.loaded("d")
    assert loaded is not None
    assert loaded.exhausted == (OFFER.firmware_id,)


async def exhaust(fleet: Fleet, firmware_id: str = OFFER.firmware_id) -> None:
    for _ in range(MOST):
        await fleet.offer(replace(OFFER, firmware_id=firmware_id))
        await fleet.say(Outcome.FAILED, "1")
        fleet.pass_time()


async def test_what_is_exhausted_outlives_reports_and_operators_writes_but_no_deletion(fleet: Fleet) -> None:
    await exhaust(fleet)
    devices, exhausted = fleet.devices, (OFFER.firmware_id,)
    await fleet.report("1.1")
    assert (await fleet.device())[4:6] == (("trial", "上海"), exhausted)
    await devices.put_device("d", "tracker", {"version": "1.2"})
    assert (await fleet.device())[4:6] == (("trial", "上海"), exhausted)
    await devices.put_device("d", "tracker", {"version": "1.2"}, ("other",))
    assert (await fleet.device())[4:6] == (("other",), exhausted)
    await devices.put_device("d", "tracker", None, ())
    assert (await fleet.device())[4:6] == ((), exhausted)
    await devices.patch_device("d", None, {}, ("a", "b"))
    assert (await fleet.device())[4:6] == (("a", "b"), exhausted)
    await devices.patch_device("d", None, {"version": None}, ())
    assert (await fleet.device())[4:6] == ((), exhausted)
    await devices.patch_device("d", None, {"version": "1.0"})
    assert (await fleet.device())[4:6] == ((), exhausted)
    await devices.delete_device("d")
    await devices.put_device("d", "tracker", {"version": "1.0"})
    assert (await fleet.device()).exhausted == ()
    assert await fleet.attempts.load_attempts("d") == []


async def test_a_reset_lets_a_device_have_the_firmware_again(fleet: Fleet) -> None:
    await exhaust(fleet, "A")
    await exhaust(fleet, "B")
    assert (await fleet.device()).exhausted == ("A", "B")
    assert await fleet.attempts.reset_attempts("d", "A")
    assert not await fleet.attempts.reset_attempts("d", "A")
    assert (await fleet.device())[4:6] == (("trial", "上海"), ("B",))
    assert [one.firmware_id for one in await fleet.attempts.load_attempts("d")] == ["B"]
    assert await fleet.attempts.reset_attempts("d")
    assert (await fleet.device())[4:6] == (("trial", "上海"), ())
    assert await fleet.attempts.load_attempts("d") == []
    assert not await fleet.attempts.reset_attempts("nobody")


async def test_so_many_firmware_are_remembered_and_what_is_exhausted_longest(fleet: Fleet) -> None:
    for number in range(4):
        await exhaust(fleet, f"EXHAUSTED{number}")
    for number in range(30):
        await fleet.offer(replace(OFFER, firmware_id=f"F{number}"))
        await fleet.say(Outcome.FAILED, "1")
        fleet.pass_time()
    attempts = await fleet.attempts.load_attempts("d")
    assert [one.firmware_id for one in attempts] == [
        *(f"F{number}" for number in range(29, 17, -1)),
        *(f"EXHAUSTED{number}" for number in range(3, -1, -1)),
    ]
    assert [one.is_exhausted for one in attempts] == [False] * 12 + [True] * 4
    for number in range(20):
        await exhaust(fleet, f"ANEW{number}")
    assert (await fleet.device()).exhausted == tuple(f"ANEW{number}" for number in range(4, 20))


async def test_a_clock_that_was_ahead_does_not_stop_the_count(fleet: Fleet) -> None:
    fleet.pass_time(1000 * HOUR_MS)
    await fleet.offer()
    await fleet.say(Outcome.FAILED, "1")
    fleet.pass_time(-1000 * HOUR_MS)
    await fleet.offer()
    await fleet.say(Outcome.FAILED, "1")
    assert await fleet.count() == 2


async def test_attempts_that_cant_be_read_are_none(fleet: Fleet, redis: Redis, keys: Keys) -> None:
    key = keys.attempts(keys.bucket_of("d"))
    for damaged in (b"", b"\xc1", b"\x93\x01\x02\x03", b"\x92\xa1F\x01", b"text"):
        await redis.hset(key, "d", damaged)
        assert await fleet.attempts.load_attempts("d") == []
        await fleet.offer()
        await fleet.say(Outcome.FAILED, "1")
        assert await fleet.count() == 1


async def test_the_devices_that_tried_a_firmware_come_in_pages_and_are_reset_at_once(
    redis_url: str, redis: Redis, keys: Keys
) -> None:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(redis_url, redis, keys))
        names = [f"设备{number}" for number in range(25)]
        for name in names:
            await fleet.devices.put_device(name, "tracker", {"version": "1.0"})
        for number, name in enumerate(names):
            for round_number in range(MOST if number < 5 else 1):
                offer = replace(OFFER, offered_at_ms=1, firmware_id="F" if number % 5 else "G")
                await fleet.hot.record(name, offer)
                said = Said(None, None, Outcome.FAILED, "1")
                fleet.hot.offers.track_offer(name, said, at_ms=round_number * HOUR_MS)
                await fleet.hot.noted()
        found: list[str] = []
        cursor = None
        while True:
            page, cursor = await fleet.attempts.page_attempts("F", cursor=cursor, limit=7)
            assert len(page) <= 7
            found += [name for name, _ in page]
            if cursor is None:
                break
        assert sorted(found) == sorted(name for number, name in enumerate(names) if number % 5)
        exhausted, _ = await fleet.attempts.page_attempts("F", cursor=None, limit=100, only_exhausted=True)
        assert sorted(name for name, _ in exhausted) == sorted(names[1:5])
        assert all(one == Attempts("F", MOST, (MOST - 1) * HOUR_MS, is_exhausted=True) for _, one in exhausted)
        with pytest.raises(InputError):
            await fleet.attempts.page_attempts("F", cursor="nonsense", limit=7)
        assert await fleet.attempts.reset_firmware("F") == 20
        assert await fleet.attempts.reset_firmware("F") == 0
        assert (await fleet.attempts.page_attempts("F", cursor=None, limit=7))[0] == []
        assert len((await fleet.attempts.page_attempts("G", cursor=None, limit=7))[0]) == 5
