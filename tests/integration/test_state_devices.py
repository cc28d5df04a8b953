"""Devices on a real Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import msgpack
import pytest
from redis.asyncio import Redis

from ota_hook.errors import ConflictError, DependencyError, InputError
from ota_hook.model import DeviceState, OpenOffer, ReportedVersion
from ota_hook.ports.device_messages import Report
from ota_hook.ports.devices import DeviceEntry, ExpectedDevice
from ota_hook.state.connection import connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.format import open_layout
from ota_hook.state.hot import HotDevices
from ota_hook.state.keys import Keys, as_text
from ota_hook.state.offers import RedisOffers
from ota_hook.state.pipe import RedisPipe
from ota_hook.state.primaries import Address
from ota_hook.state.records import unpack_bucket, unpack_device
from tests.integration.hot_state import HotState, hot_state, imported, loaded, stored

KEPT = {"tracker": frozenset({"version", "mcu_version"}), "gateway": frozenset({"version"})}
LONG = "1.0.0-" + "x" * 100
Content = Callable[[], Awaitable[dict[bytes, object]]]


@pytest.fixture
def devices(redis: Redis, keys: Keys) -> RedisDevices:
    return RedisDevices(redis, keys)


@pytest.fixture
async def hot(redis_url: str, keys: Keys) -> AsyncIterator[HotState]:
    async with hot_state(redis_url, keys) as opened:
        yield opened


async def report(
    hot: HotState, identifier: str, *, at: int, type_: str | None = None, register: bool = False, **versions: str
) -> DeviceState | None:
    said = Report(device=identifier, versions=versions, reported_at_ms=at, topic_type=type_, register=register)
    return await hot.stored(said, KEPT)


def text_of(state: DeviceState | None, attribute: str = "version") -> str:
    assert state is not None
    return state.versions[attribute].text


@pytest.mark.parametrize("identifier", ["nobody", "n" * 65])
async def test_an_unknown_device_is_none(devices: RedisDevices, hot: HotState, identifier: str) -> None:
    assert await devices.load_device(identifier) is None
    assert await hot.loaded(identifier) is None


async def test_a_report_of_an_unknown_device_writes_nothing(
    devices: RedisDevices, content: Content, hot: HotState
) -> None:
    before = await content()
    assert await report(hot, "stranger", at=1, version="1.0") is None
    assert await report(hot, "stranger", at=1, type_="tracker", version="1.0") is None
    assert await content() == before


async def test_a_report_is_answered_with_the_state_after_it(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "tracker", None)
    state = await report(hot, "d", at=1_750_234_507_181, version="1.0")
    assert state == DeviceState(
        identifier="d", device_type="tracker", versions={"version": ReportedVersion("1.0", 1_750_234_507_181)}
    )
    assert await devices.load_device("d") == state
    assert await hot.loaded("d") == state


async def test_the_hook_loads_a_device_without_its_open_offers_and_a_report_is_answered_with_them(
    devices: RedisDevices, hot: HotState
) -> None:
    await devices.put_device("d", "tracker", {"version": "1.0"})
    offer = offer_of("one")
    await hot.record("d", offer)
    state = await devices.load_device("d")
    assert state is not None
    assert state.open_offers == (offer,)
    assert await hot.loaded("d") == state._replace(open_offers=())
    told = await report(hot, "d", at=1, version="1.0")
    assert told is not None
    assert told.open_offers == (offer,)


async def test_an_older_report_does_not_overwrite_a_newer_one(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "tracker", None)
    await report(hot, "d", at=2_000, version="2.0")
    assert text_of(await report(hot, "d", at=1_999, version="1.0")) == "2.0"
    assert text_of(await devices.load_device("d")) == "2.0"


async def test_of_two_reports_of_the_same_time_the_later_call_wins(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "tracker", None)
    await report(hot, "d", at=2_000, version="2.0")
    assert text_of(await report(hot, "d", at=2_000, version="1.0")) == "1.0"


async def test_each_attribute_has_its_own_time(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "tracker", None)
    await report(hot, "d", at=3_000, version="2.0")
    state = await report(hot, "d", at=2_000, version="1.0", mcu_version="7")
    assert (text_of(state), text_of(state, "mcu_version")) == ("2.0", "7")


async def test_a_report_that_changes_nothing_writes_nothing(
    devices: RedisDevices, content: Content, hot: HotState
) -> None:
    await devices.put_device("d", "tracker", None)
    await report(hot, "d", at=1_000, version="1.0")
    before = await content()
    assert text_of(await report(hot, "d", at=61_000, version="1.0")) == "1.0"
    assert await content() == before


async def test_an_unchanged_report_refreshes_a_time_that_is_far_behind(
    redis_url: str, keys: Keys, devices: RedisDevices
) -> None:
    await devices.put_device("d", "tracker", None)
    async with hot_state(redis_url, keys, refresh_ms=60_000) as hot:
        await report(hot, "d", at=1_000, version="1.0")
        await report(hot, "d", at=100_000, version="1.0")
        assert text_of(await report(hot, "d", at=50_000, version="0.9")) == "1.0"


async def test_only_what_the_type_keeps_is_stored(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "gateway", None)
    state = await report(hot, "d", at=1, version="1.0", mcu_version="2.0", temperature="28.5")
    assert state is not None
    assert set(state.versions) == {"version"}
    named = await report(hot, "d", at=2, type_="gateway", mcu_version="2.0")
    assert named is not None
    assert set(named.versions) == {"version"}


async def test_a_device_of_another_type_than_the_topic_names_is_left_alone(
    devices: RedisDevices, content: Content, hot: HotState
) -> None:
    await devices.put_device("d", "tracker", {"version": "1.0"})
    before = await content()
    assert await report(hot, "d", at=9, type_="gateway", version="2.0") is None
    assert await content() == before


async def test_a_first_report_registers_where_told_so(devices: RedisDevices, hot: HotState) -> None:
    state = await report(hot, "new", at=5, type_="tracker", register=True, version="1.0")
    assert state == DeviceState(
        identifier="new", device_type="tracker", versions={"version": ReportedVersion("1.0", 5)}
    )
    assert await devices.load_device("new") == state
    assert await hot.loaded("new") == state


async def test_a_type_that_does_not_exist_registers_nobody(
    devices: RedisDevices, content: Content, hot: HotState
) -> None:
    before = await content()
    assert await report(hot, "new", at=5, type_="unheard_of", register=True, version="1.0") is None
    assert await report(hot, "new", at=5, register=True, version="1.0") is None
    assert await content() == before


TEXTS = (
    "1",
    "1.0.0",
    LONG,
    "版本1",
    "\U0001f680 1",
    "a\x00b1",
    "'1\"",
    "1" * 63,
    "1" * 64,
    "1" * 65,
    " 1 ",
    "+",
    "",
)


@pytest.mark.parametrize("identifier", ["d", "设备-1", "i" * 64, "i" * 65, "é" * 64])
async def test_texts_of_any_kind_and_length_come_back_exactly(
    devices: RedisDevices, hot: HotState, identifier: str
) -> None:
    for text in TEXTS:
        await devices.put_device(identifier, "tracker", {})
        assert text_of(await report(hot, identifier, at=1, version=text)) == text
        assert text_of(await devices.load_device(identifier)) == text
        assert text_of(await hot.loaded(identifier)) == text
        assert [text_of(state) for state in [state async for state in devices.scan_devices()]] == [text]


async def test_a_state_that_grows_and_shrinks_moves_between_the_hashes(
    redis: Redis, keys: Keys, devices: RedisDevices, hot: HotState
) -> None:
    bucket = keys.bucket_of("d")
    await devices.put_device("d", "tracker", {"version": "1.0"})
    assert await redis.hlen(keys.long_devices(bucket)) == 0
    await report(hot, "d", at=1, version=LONG)
    assert await redis.hget(keys.devices(bucket), "d") == b""
    assert text_of(await hot.loaded("d")) == LONG
    await report(hot, "d", at=2, version="1.1")
    assert await redis.hlen(keys.long_devices(bucket)) == 0
    assert text_of(await devices.load_device("d")) == "1.1"
    assert text_of(await hot.loaded("d")) == "1.1"


async def test_long_states_and_identifiers_leave_the_bucket_compact(
    redis: Redis, keys: Keys, devices: RedisDevices
) -> None:
    names = [f"device-{number}" for number in range(100)] + [f"{number:0>100}" for number in range(20)]
    await imported(devices, [(name, "tracker", {"version": LONG if "7" in name else "1.0"}) for name in names])
    for bucket in range(keys.buckets):
        if await redis.exists(keys.devices(bucket)):
            assert await redis.object("encoding", keys.devices(bucket)) in {b"ziplist", b"listpack"}
    assert {state.identifier async for state in devices.scan_devices()} == set(names)


async def test_putting_a_device_says_whether_it_is_new(devices: RedisDevices) -> None:
    assert await devices.put_device("d", "tracker", {"version": "1.0"}) is True
    assert await devices.put_device("d", "tracker", {"version": "2.0"}) is False
    assert text_of(await devices.load_device("d")) == "2.0"


async def test_putting_without_versions_keeps_them(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "tracker", None)
    await report(hot, "d", at=7, version="1.0")
    await devices.put_device("d", "gateway", None)
    state = await devices.load_device("d")
    assert state == DeviceState(identifier="d", device_type="gateway", versions={"version": ReportedVersion("1.0", 7)})


async def test_any_report_is_newer_than_what_an_operator_set(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "tracker", {"version": "1.0"})
    assert text_of(await report(hot, "d", at=1, version="0.9")) == "0.9"


async def test_creating_a_device_that_exists_changes_nothing(devices: RedisDevices, content: Content) -> None:
    assert await devices.create_device("d", "tracker", {"version": "1.0"}) is True
    before = await content()
    assert await devices.create_device("d", "gateway", {"version": "2.0"}) is False
    assert await content() == before


async def test_a_patch_touches_only_what_it_names(devices: RedisDevices) -> None:
    await devices.put_device("d", "tracker", {"version": "1.0", "mcu_version": "2", "gps": "3"})
    state = await devices.patch_device("d", None, {"mcu_version": None, "gps": "4", "wifi": "5", "absent": None})
    assert state is not None
    assert {name: version.text for name, version in state.state.versions.items()} == {
        "version": "1.0",
        "gps": "4",
        "wifi": "5",
    }
    assert await devices.load_stored("d") == state
    retyped = await devices.patch_device("d", "gateway", {})
    assert retyped is not None
    assert (retyped.state.device_type, retyped.state.versions) == ("gateway", state.state.versions)


@pytest.mark.parametrize("text", ["1.0", LONG])
async def test_a_write_that_expects_another_state_changes_nothing(
    devices: RedisDevices, content: Content, text: str
) -> None:
    await devices.put_device("d", "tracker", {"version": text})
    stored = await devices.load_stored("d")
    assert stored is not None
    await devices.put_device("d", "tracker", {"version": text + "1"})
    before = await content()
    for expected in (ExpectedDevice(digests=(stored.digest,)), ExpectedDevice(other_than=("*",))):
        with pytest.raises(ConflictError) as put:
            await devices.put_device("d", "tracker", {}, expected=expected)
        with pytest.raises(ConflictError) as patched:
            await devices.patch_device("d", "tracker", {"version": None}, expected=expected)
        with pytest.raises(ConflictError) as deleted:
            await devices.delete_device("d", expected=expected)
        assert put.value.stale and patched.value.stale and deleted.value.stale  # noqa: PT018 - one fact of three
    assert await content() == before
    assert await devices.delete_device("d", expected=ExpectedDevice(other_than=(stored.digest,))) is True


async def test_patching_an_unknown_device_is_none_and_writes_nothing(devices: RedisDevices, content: Content) -> None:
    before = await content()
    assert await devices.patch_device("nobody", "tracker", {"version": "1"}) is None
    assert await content() == before


TAGS = ("*", "trial", "上海")


async def test_a_report_keeps_the_tags(devices: RedisDevices, hot: HotState) -> None:
    await devices.create_device("d", "tracker", {"version": "1.0"}, TAGS)
    state = await report(hot, "d", at=5, version="1.1", mcu_version="2")
    assert state == DeviceState(
        identifier="d",
        device_type="tracker",
        versions={"version": ReportedVersion("1.1", 5), "mcu_version": ReportedVersion("2", 5)},
        tags=TAGS,
    )
    assert await devices.load_device("d") == state
    assert await hot.loaded("d") == state


async def test_a_device_whose_tags_are_all_that_is_known_has_no_version(devices: RedisDevices, hot: HotState) -> None:
    await devices.create_device("d", "tracker", {}, ("a",))
    assert await hot.loaded("d") == DeviceState(identifier="d", device_type="tracker", tags=("a",))


@pytest.mark.parametrize("versions", [None, {}, {"version": "2.0", "gps": LONG}])
@pytest.mark.parametrize("tags", [None, (), ("b",)])
@pytest.mark.parametrize("stored_tags", [(), TAGS])
async def test_a_put_and_an_import_keep_what_they_do_not_name(
    devices: RedisDevices, versions: dict[str, str] | None, tags: tuple[str, ...] | None, stored_tags: tuple[str, ...]
) -> None:
    before = {"version": "1.0", "mcu_version": "7"}
    expected = DeviceState(
        "put",
        "gateway",
        {name: ReportedVersion(text, 0) for name, text in (before if versions is None else versions).items()},
        tags=stored_tags if tags is None else tags,
    )
    for identifier in ("put", "imported"):
        await devices.create_device(identifier, "tracker", before, stored_tags)
    assert await devices.put_device("put", "gateway", versions, tags) is False
    assert await imported(devices, [("imported", "gateway", versions, tags)]) == (0, 1)
    assert await devices.load_device("put") == expected
    assert await devices.load_device("imported") == expected._replace(identifier="imported")
    created = DeviceState("new", "gateway", expected.versions if versions else {}, tags=tags or ())
    assert await imported(devices, [("new", "gateway", versions, tags)]) == (1, 0)
    assert await devices.load_device("new") == created


async def test_the_scripts_keep_what_python_wrote(devices: RedisDevices, hot: HotState) -> None:
    chance = random.Random(4)
    alphabet = "aZ09._-*é设🚀"

    def text(most: int) -> str:
        return "".join(chance.choices(alphabet, k=chance.randint(1, most)))

    entries = {
        identifier: (
            identifier,
            chance.choice(["tracker", text(64)]),
            {text(30): text(chance.choice([5, 31, 32, 33])) for _ in range(chance.randint(0, 16))},
            tuple(sorted({text(chance.choice([3, 16])) for _ in range(chance.randint(0, 32))})),
        )
        for identifier in (text(32) for _ in range(300))
    }
    await imported(devices, entries.values())
    for identifier, device_type, versions, tags in entries.values():
        expected = DeviceState(
            identifier, device_type, {name: ReportedVersion(said, 0) for name, said in versions.items()}, tags=tags
        )
        assert await devices.load_device(identifier) == expected
        stored = await devices.load_stored(identifier)
        patched = await devices.patch_device(identifier, None, {"patched": "1"})
        restored = await devices.patch_device(identifier, None, {"patched": None})
        assert patched is not None
        assert patched.state.versions == {**expected.versions, "patched": ReportedVersion("1", 0)}
        assert restored == stored
        told = await hot.stored(Report(device=identifier, versions={"version": "9"}, reported_at_ms=7), KEPT)
        assert told == expected._replace(versions={**expected.versions, "version": ReportedVersion("9", 7)})


async def test_an_import_cancels_the_offers_of_a_device_that_gets_another_type(
    redis: Redis, keys: Keys, devices: RedisDevices, hot: HotState
) -> None:
    names = [f"d{number}" for number in range(70)]
    await imported(devices, [(name, "tracker", {"version": "1.0"}) for name in names])
    for name in names:
        await hot.record(name, offer_of("one"))
    await imported(devices, [(name, "gateway" if number % 2 else "tracker") for number, name in enumerate(names)])
    left = [state.identifier for name in names if (state := await devices.load_device(name)) and state.open_offers]
    assert left == names[::2]
    counters = await RedisOffers(redis, keys).load_counters(["one"])
    assert counters == {"one": {"offered": 70, "cancelled": 35}}


async def test_an_import_that_changes_nothing_writes_nothing(
    devices: RedisDevices, content: Content, hot: HotState
) -> None:
    await imported(devices, [("d", "tracker", {"version": "1.0"}, ("a",)), ("e", "tracker", {"version": LONG})])
    before = await content()
    same = [("d", "tracker", {"version": "1.0"}, ("a",)), ("e", "tracker", {"version": LONG}), ("d", "tracker")]
    assert await imported(devices, same) == (0, 3)
    assert await content() == before


async def test_of_a_device_that_is_imported_twice_at_once_the_last_entry_counts(devices: RedisDevices) -> None:
    entries = [("d", "tracker", {"version": f"1.{number}"}) for number in range(200)]
    assert await imported(devices, entries) == (1, 199)
    assert text_of(await devices.load_device("d")) == "1.199"


async def test_an_import_during_which_redis_was_replaced_is_not_confirmed(
    devices: RedisDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await devices.begin_import()
    await run.write([DeviceEntry("d", "tracker")])

    async def of_others(redis: object) -> frozenset[str]:
        return frozenset({"another"})

    monkeypatch.setattr("ota_hook.state.device_import.list_server_runs", of_others)
    with pytest.raises(DependencyError, match="restarted") as refused:
        await run.confirm()
    assert refused.value.maybe_written


async def test_buckets_are_scanned_whole_and_empty_ones_left_out(
    redis: Redis, keys: Keys, devices: RedisDevices
) -> None:
    names = {f"d{number}" for number in range(5)} | {"i" * 70}
    await imported(devices, [(name, "tracker", {"version": LONG if "3" in name else "1.0"}) for name in names])
    blobs = [blob async for _, blob in devices.scan_buckets()]
    assert len(blobs) == len({keys.bucket_of(name) for name in names})
    found = dict(pair for blob in blobs for pair in unpack_bucket(blob))
    assert {as_text(name) for name in found} == names
    assert unpack_device("d3", found[b"d3"]).versions["version"].text == LONG


async def test_a_scan_by_tag_finds_that_tag_alone(devices: RedisDevices) -> None:
    await imported(devices, [(f"d{n}", "tracker", {"version": "trial1"}, ("trial",)) for n in range(9)])
    await imported(devices, [(f"e{n}", "tracker", {"version": "trial1"}, ("trials", "x")) for n in range(9)])
    await imported(devices, [(f"f{n}", "gateway", None, ("a", "trial")) for n in range(3)])
    assert {d.identifier[0] async for d in devices.scan_devices(tag="trial")} == {"d", "f"}
    assert {d.identifier[0] async for d in devices.scan_devices(tag="trial", device_type="gateway")} == {"f"}
    page, cursor = await devices.page_devices(cursor=None, limit=7, tag="trial")
    rest, end = await devices.page_devices(cursor=cursor, limit=7, tag="trial")
    assert len({device.identifier for device in page + rest}) == 12
    assert end is None


async def test_unknown_identifiers_are_counted(devices: RedisDevices) -> None:
    names = [f"d{number}" for number in range(1_200)]
    await imported(devices, [(name, "tracker", {"version": LONG}) for name in names[:700]])
    assert await devices.count_unknown(names) == 500
    assert await devices.count_unknown([]) == 0


async def test_an_import_counts_and_may_be_repeated(devices: RedisDevices) -> None:
    batch = [(f"d{number}", "tracker", {"version": "1.0"}) for number in range(1_201)]
    assert await imported(devices, batch[:1_000]) == (1_000, 0)
    assert await imported(devices, batch) == (201, 1_000)
    assert await imported(devices, []) == (0, 0)
    assert len([state async for state in devices.scan_devices()]) == 1_201


async def test_a_deleted_device_leaves_nothing(
    redis: Redis, keys: Keys, devices: RedisDevices, content: Content, hot: HotState
) -> None:
    before = await content()
    offers = RedisOffers(redis, keys)
    await devices.put_device("d", "tracker", {"version": LONG})
    for firmware in ("one", "two"):
        await hot.record("d", offer_of(firmware))
    assert await devices.delete_device("d") is True
    assert await devices.delete_device("d") is False
    assert await devices.load_device("d") is None
    assert await hot.loaded("d") is None
    left = set(await content()) - set(before)
    assert left == {keys.counters("one").encode(), keys.counters("two").encode()}
    assert await offers.load_counters(["two"]) == {"two": {"offered": 1, "cancelled": 1}}


async def test_a_device_that_gets_another_type_loses_its_open_offers(
    redis: Redis, keys: Keys, devices: RedisDevices, hot: HotState
) -> None:
    offers = RedisOffers(redis, keys)
    await devices.put_device("d", "tracker", {"version": "1.0"})
    await hot.record("d", offer_of("one"))
    await devices.put_device("d", "tracker", None)
    state = await devices.load_device("d")
    assert state is not None
    assert len(state.open_offers) == 1
    await devices.put_device("d", "gateway", None)
    state = await devices.load_device("d")
    assert state is not None
    assert state.open_offers == ()
    assert [settled.outcome for settled in await offers.load_history("d")] == ["cancelled"]


async def test_pages_hold_every_device_once_whatever_their_size(devices: RedisDevices) -> None:
    names = {f"device-{number}" for number in range(137)} | {"n" * 100}
    await imported(devices, [(name, "tracker", {"version": "1.0"}) for name in names])
    for limit in (1, 10, 138, 500):
        seen, cursor, pages = list[str](), None, 0
        while True:
            page, cursor = await devices.page_devices(cursor=cursor, limit=limit)
            assert len(page) == limit or cursor is None
            seen += [state.identifier for state in page]
            pages += 1
            if cursor is None:
                break
        assert len(seen) == len(names)
        assert set(seen) == names
        assert pages == -(-len(names) // limit)


async def test_a_page_is_not_shifted_by_devices_that_come(devices: RedisDevices) -> None:
    await imported(devices, [(f"b{number}", "tracker", None) for number in range(60)])
    page, cursor = await devices.page_devices(cursor=None, limit=30)
    await imported(devices, [(f"a{number}", "tracker", None) for number in range(60)])
    rest, end = await devices.page_devices(cursor=cursor, limit=500)
    assert end is None
    seen = [state.identifier for state in (*page, *rest) if state.identifier.startswith("b")]
    assert sorted(seen) == sorted(f"b{number}" for number in range(60))


async def test_pages_and_scans_of_one_type_hold_no_other(devices: RedisDevices) -> None:
    await imported(devices, [(f"t{number}", "tracker", {"version": "tracker"}) for number in range(40)])
    await imported(devices, [(f"g{number}", "gateway", {"version": "gateway"}) for number in range(3)])
    await devices.put_device("many", "gateway", {f"attribute{number}": "1" for number in range(9)})
    page, cursor = await devices.page_devices(cursor=None, limit=4, device_type="gateway")
    assert {state.identifier for state in page} == {"g0", "g1", "g2", "many"}
    assert cursor is None
    assert {state.identifier async for state in devices.scan_devices(device_type="gateway")} == {
        "g0",
        "g1",
        "g2",
        "many",
    }
    assert await devices.page_devices(cursor=None, limit=4, device_type="none") == ([], None)


@pytest.mark.parametrize("cursor", ["x", "!!!", "MTIz", "LTEvYQ", "OTk5OTk5OTk5OTk5OTk5L2E", "é"])
async def test_a_cursor_that_is_none_of_ours_is_refused(devices: RedisDevices, cursor: str) -> None:
    with pytest.raises(InputError, match="cursor"):
        await devices.page_devices(cursor=cursor, limit=5)


async def test_with_many_buckets_and_few_devices_a_scan_finds_them_all(redis: Redis, keys: Keys) -> None:
    many = await open_layout(redis, prefix=f"{keys.prefix}:many", buckets=65_536)
    devices = RedisDevices(redis, many)
    names = {f"d{number}" for number in range(50)} | {"n" * 90}
    await imported(devices, [(name, "tracker", None) for name in names])
    assert {state.identifier async for state in devices.scan_devices()} == names
    first, cursor = await devices.page_devices(cursor=None, limit=30)
    rest, _ = await devices.page_devices(cursor=cursor, limit=30)
    assert {state.identifier for state in (*first, *rest)} == names


async def test_reports_at_once_keep_the_newest(redis_url: str, keys: Keys, devices: RedisDevices) -> None:
    await devices.put_device("d", "tracker", None)
    times = [(number * 37) % 200 for number in range(200)]
    async with AsyncExitStack() as stack:
        hooks = [await stack.enter_async_context(hot_state(redis_url, keys)) for _ in range(4)]
        await asyncio.gather(*(report(hooks[at % 4], "d", at=at + 1, version=f"v{at}") for at in times))
    assert text_of(await devices.load_device("d")) == "v199"


async def test_a_changed_catalogue_changes_what_is_kept(devices: RedisDevices, hot: HotState) -> None:
    await devices.put_device("d", "gateway", None)
    assert (await report(hot, "d", at=1, mcu_version="1")) == DeviceState(identifier="d", device_type="gateway")
    wider = {"tracker": frozenset({"version"}), "gateway": frozenset({"version", "mcu_version"})}
    state = await hot.stored(Report(device="d", versions={"mcu_version": "1"}, reported_at_ms=2), wider)
    assert text_of(state, "mcu_version") == "1"


async def test_a_redis_that_is_not_there_is_a_dependency_error(keys: Keys) -> None:
    client = connect_redis("unix:///nonexistent/redis.sock")
    devices = RedisDevices(client, keys)
    with pytest.raises(DependencyError):
        await devices.load_device("d")
    with pytest.raises(DependencyError):
        await devices.put_device("d", "tracker", None)
    with pytest.raises(DependencyError):
        await devices.page_devices(cursor=None, limit=1)
    await client.aclose()


async def test_to_the_hook_a_redis_that_is_not_there_is_a_dependency_error_at_once(keys: Keys) -> None:
    async def locate() -> Address:
        return Address(path="/nonexistent/redis.sock")

    pipe = RedisPipe(locate)
    await pipe.start()
    hot = HotDevices(_OnePipe(pipe), keys)
    with pytest.raises(DependencyError):
        await loaded(hot, "d")
    with pytest.raises(DependencyError):
        await loaded(hot, "d" * 65)
    with pytest.raises(DependencyError):
        await stored(hot, Report(device="d", versions={"version": "1"}, reported_at_ms=1), KEPT)
    await pipe.close()


@pytest.mark.parametrize(
    "packed", [b"\x00", b"\xc1", b"not msgpack", b"\x91", msgpack.packb(["tracker", "version"]), msgpack.packb([])]
)
async def test_a_state_that_can_not_be_read_is_that_devices_error_alone(
    redis: Redis, keys: Keys, devices: RedisDevices, hot: HotState, packed: bytes
) -> None:
    await devices.put_device("d", "tracker", {"version": "1.0"})
    await redis.hset(keys.devices(keys.bucket_of("broken")), "broken", packed)
    await redis.hset(keys.devices(keys.bucket_of("i" * 60)), "i" * 60, b"")
    await redis.hset(keys.long_devices(keys.bucket_of("i" * 60)), "i" * 60, packed)
    connections = [pipe.connections for pipe in hot.all_pipes()]
    answers = await asyncio.gather(
        hot.loaded("d"),
        hot.loaded("broken"),
        hot.loaded("i" * 60),
        report(hot, "broken", at=1),
        hot.loaded("d"),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [DeviceState, *[DependencyError] * 3, DeviceState]
    assert [pipe.connections for pipe in hot.all_pipes()] == connections


class _OnePipe:
    """hot_calls.Pipes of one."""

    def __init__(self, pipe: RedisPipe) -> None:
        self._pipe = pipe

    def of(self, key: str) -> RedisPipe:
        return self._pipe


@pytest.mark.single_redis
async def test_memory_per_device_is_at_most_100_bytes(redis: Redis, keys: Keys) -> None:
    # As many devices per bucket as a million have in 65,536 buckets; 5 % of them with a long version.
    layout = await open_layout(redis, prefix=f"{keys.prefix}m", buckets=1_311)
    devices = RedisDevices(redis, layout)
    batch = [
        (f"DU_{number:0>13}", "smart_meter", {"version": LONG[:70] if number % 20 == 0 else "1.12.103"})
        for number in range(20_000)
    ]
    try:
        before = (await redis.info("memory"))["used_memory"]
        await imported(devices, batch)
        used = (await redis.info("memory"))["used_memory"] - before
        assert used / len(batch) <= 100, f"{used / len(batch):.1f} bytes per device"
    finally:
        async for key in redis.scan_iter(match=f"{layout.prefix}:*", count=5_000):
            await redis.unlink(key)


def offer_of(firmware_id: str) -> OpenOffer:
    return OpenOffer(
        module="main",
        firmware_id=firmware_id,
        version_attribute="version",
        version="2.0",
        from_version="1.0",
        command_ids=(1,),
        offered_at_ms=1,
    )


@pytest.mark.single_redis
async def test_a_scan_that_redis_does_not_permit_fails_and_is_not_taken_for_buckets_that_can_not_be_read(
    redis: Redis, redis_url: str, keys: Keys, devices: RedisDevices
) -> None:
    await devices.put_device("d", "tracker", None)
    await redis.acl_setuser("blind", enabled=True, nopass=True, commands=["+@all", "-hgetall"], keys=["*"])
    client = connect_redis(redis_url.replace("unix://", "unix://blind:@"))
    with pytest.raises(DependencyError, match="script"):
        await RedisDevices(client, keys).page_devices(cursor=None, limit=1)
    await client.aclose()
    await redis.acl_deluser("blind")
