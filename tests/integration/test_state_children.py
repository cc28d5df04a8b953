"""Gateways and their children on a real Redis: what one message of a gateway reads and writes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgpack
import pytest
from redis.asyncio import Redis

from ota_hook.errors import DependencyError
from ota_hook.identifiers import gateway_of
from ota_hook.model import ChildForm, DeviceState, Family, OpenOffer, Outcome, ReportedVersion
from ota_hook.ports.device_messages import (
    ChildCame,
    ChildComing,
    ChildrenReported,
    LoadedChildren,
    Report,
    StoredChildren,
)
from ota_hook.progress import Said
from ota_hook.state import hot_children
from ota_hook.state.attempts import RedisAttempts
from ota_hook.state.child_scripts import store_children_call
from ota_hook.state.devices import RedisDevices
from ota_hook.state.hot import HotPresence
from ota_hook.state.hot_children import HotChildren
from ota_hook.state.keys import Keys
from ota_hook.state.offer_scripts import CHILDREN_A_SCRIPT
from ota_hook.state.offers import RedisOffers
from ota_hook.state.pipe import RedisPipe
from ota_hook.state.presence import RedisConnections
from ota_hook.state.primaries import Address
from ota_hook.state.records import unpack_bucket
from ota_hook.state.routing import RoutedRedis
from tests.integration.hot_state import (
    HotState,
    child_came,
    children_came,
    hot_state,
    imported,
    loaded,
    loaded_children,
    loaded_offered,
    stored_children,
)

KEPT: Final = {
    "gateway": frozenset({"version"}),
    "sensor": frozenset({"version", "mcu_version"}),
    "valve": frozenset({"firmware"}),
}
GW: Final = "DU_7VFGiJjjv8QoS"
SHORT: Final = f"{GW}/1"
LONG_NAME: Final = f"{GW}/{'地址' * 20}/sub%2F1"
LONG_TEXT: Final = "1.0.0-" + "x" * 100
DEFAULT: Final = ChildForm(Family.GATEWAY, as_list=False)
DEEP_DEFAULT: Final = ChildForm(Family.SUB, as_list=True)
FORMS: Final = tuple(ChildForm(family, as_list) for family in (Family.GATEWAY, Family.SUB) for as_list in (False, True))
OFFER: Final = OpenOffer(
    module="main",
    firmware_id="01JFIRMWARE",
    version_attribute="version",
    version="2.0",
    from_version="1.0",
    command_ids=(98_310,),
    offered_at_ms=1_000,
)
UNREADABLE: Final = [
    *(b"\x00", b"\xc1", b"not msgpack", b"\x91", msgpack.packb(["sensor", "version"])),
    *(msgpack.packb(["sensor", "version", 1, 5]), msgpack.packb([["sensor"], "version", 1, "1.0"]), b"\x91\xc0"),
]
Content = Callable[[], Awaitable[dict[bytes, object]]]


class Site:
    """A deployment as one hook and the operators see it. `most` is the number of children that a gateway registers."""

    def __init__(self, hot: HotState, redis: Redis, keys: Keys) -> None:
        self.hot = hot
        self.redis = redis
        self.keys = keys
        self.devices = RedisDevices(redis, keys)
        self.offers = RedisOffers(redis, keys)
        self.attempts = RedisAttempts(redis, keys)
        self.presence = HotPresence(hot.pipes, keys)

    async def register(self, *children: str, **versions: str) -> None:
        """The gateway of each child and the children, as sensors."""
        for gateway in {gateway_of(child) for child in children} or {GW}:
            await self.devices.put_device(gateway, "gateway", None)
        await imported(self.devices, [(child, "sensor", versions) for child in children])

    async def report(
        self,
        versions: Mapping[str, Mapping[str, str]],
        *,
        at: int = 1,
        form: ChildForm | None = None,
        topic_type: str | None = None,
        gateway: str = GW,
    ) -> StoredChildren:
        report = ChildrenReported(
            gateway=gateway,
            versions=versions,
            forms={child: form or ChildForm.default(child.count("/")) for child in versions},
            reported_at_ms=at,
            topic_type=topic_type,
        )
        return await stored_children(self.hot.children, report, KEPT)

    async def load(self, *children: str, gateway: str = GW) -> LoadedChildren:
        return await loaded_children(self.hot.children, gateway, children)

    async def came(
        self, child: str, product: str | None = None, *, form: ChildForm | None = None, at: int = 1_000_000
    ) -> ChildCame:
        form = form or ChildForm.default(child.count("/"))
        return await child_came(self.hot.children, child, form, product=product, at_ms=at)

    async def state(self, identifier: str) -> DeviceState:
        found = await self.devices.load_device(identifier)
        assert found is not None
        return found

    async def damage(self, identifier: str, packed: bytes) -> None:
        """Put into Redis what is no record, where the device's is."""
        name, bucket = identifier.encode(), self.keys.bucket_of(identifier)
        key = self.keys.devices(bucket) if len(name) <= 64 else self.keys.long_devices(bucket)
        await self.redis.hset(key, name, packed)

    async def sent_again(self) -> list[tuple[str, str, int]]:
        """Which devices runs were told to send to again: device, run, chunk."""
        entries: Any = await self.redis.xrange(self.keys.run_events)
        return [
            (said[b"device"].decode(), said[b"run"].decode(), int(said[b"chunk"]))
            for _, said in entries
            if said[b"outcome"] == b"planned"
        ]


@pytest.fixture
async def site(redis_url: str, redis: Redis, keys: Keys) -> AsyncIterator[Site]:
    async with hot_state(redis_url, keys) as hot:
        yield Site(hot, redis, keys)


def text_of(state: DeviceState | None, attribute: str = "version") -> str:
    assert state is not None
    return state.versions[attribute].text


async def test_a_gateway_and_its_children_share_a_bucket(site: Site) -> None:
    identifiers = [GW, SHORT, LONG_NAME, f"{GW}/a/b/c", f"{GW}/100%25"]
    assert {site.keys.bucket_of(identifier) for identifier in identifiers} == {site.keys.bucket_of(GW)}


# ---- reports


async def test_one_report_keeps_what_each_child_runs_and_leaves_unknown_ones_out(site: Site) -> None:
    await site.register(SHORT, LONG_NAME)
    stranger = f"{GW}/stranger"
    answer = await site.report({child: {"version": "1.1"} for child in (SHORT, stranger, LONG_NAME)}, at=7)
    assert answer == StoredChildren(await site.state(GW), stored=2, unknown=1)
    for child in (SHORT, LONG_NAME):
        assert await site.state(child) == DeviceState(child, "sensor", {"version": ReportedVersion("1.1", 7)})
    assert await site.devices.load_device(stranger) is None
    assert (await site.state(GW)).versions == {}


async def test_a_gateway_that_is_not_registered_speaks_for_nobody(site: Site, content: Content) -> None:
    await site.register(SHORT)
    await site.devices.delete_device(GW)
    before = await content()
    assert await site.report({SHORT: {"version": "1.1"}}) == StoredChildren(None)
    assert await site.load(SHORT) == LoadedChildren(None, (None,))
    assert await site.came(SHORT, "sensor") is ChildCame.UNKNOWN_GATEWAY
    assert await report_alone(site, SHORT) is None
    assert await content() == before


async def test_a_gateway_of_another_type_than_its_topic_names_speaks_for_nobody(site: Site, content: Content) -> None:
    await site.register(SHORT)
    before = await content()
    assert await site.report({SHORT: {"version": "1.1"}}, topic_type="sensor") == StoredChildren(None)
    assert await report_alone(site, SHORT, topic_type="sensor") is None
    coming = [ChildComing(child, DEEP_DEFAULT, "sensor") for child in (SHORT, f"{GW}/2")]
    came = await children_came(site.hot.children, *coming, at_ms=1, topic_type="sensor")
    assert came == [ChildCame.UNKNOWN_GATEWAY] * 2
    assert await content() == before
    assert (await site.report({SHORT: {"version": "1.1"}}, topic_type="gateway")).stored == 1
    assert text_of(await report_alone(site, SHORT, version="1.2", topic_type="gateway")) == "1.2"


async def test_of_each_child_only_what_its_type_keeps_is_stored(site: Site) -> None:
    await site.register(SHORT)
    await site.devices.put_device(f"{GW}/valve", "valve", None)
    versions = {"version": "1.1", "firmware": "2.2", "mcu_version": "3.3", "other": "4"}
    await site.report({SHORT: versions, f"{GW}/valve": versions})
    assert set((await site.state(SHORT)).versions) == {"version", "mcu_version"}
    assert set((await site.state(f"{GW}/valve")).versions) == {"firmware"}


async def test_each_child_says_only_what_it_says(site: Site) -> None:
    await site.register(SHORT, LONG_NAME, version="1.0")
    await site.report({SHORT: {"mcu_version": "7"}, LONG_NAME: {"version": "1.1"}}, at=5)
    assert (await site.state(SHORT)).versions == {
        "version": ReportedVersion("1.0", 0),
        "mcu_version": ReportedVersion("7", 5),
    }
    assert (await site.state(LONG_NAME)).versions == {"version": ReportedVersion("1.1", 5)}


async def report_alone(
    site: Site, child: str, version: str = "1.1", *, at: int = 1, topic_type: str | None = None
) -> DeviceState | None:
    """A child's report as it is stored late: by itself."""
    report = Report(
        device=child, versions={"version": version}, reported_at_ms=at, topic_type=topic_type, register=True
    )
    return await site.hot.stored(report, KEPT)


@pytest.mark.parametrize("count", [3, 300, 600])
async def test_a_report_of_many_children_does_what_a_report_of_each_would(
    redis_url: str, redis: Redis, keys: Keys, count: int
) -> None:
    # Few and many, in the compact encoding and beyond it: they are looked up in different ways.
    chance = random.Random(count)
    names = [f"{number}{'long' * 20 if number % 7 == 0 else ''}" for number in range(count)]
    texts = ["1.0", "1.1", LONG_TEXT]
    async with hot_state(redis_url, keys, refresh_ms=60) as hot:
        site = Site(hot, redis, keys)
        await site.register(*(f"{gateway}/{name}" for gateway in ("A", "B") for name in names))
        for _ in range(6):
            at = chance.randrange(500)
            said = {
                name: {
                    attribute: chance.choice(texts)
                    for attribute in ("version", "mcu_version", "other")[: chance.randint(1, 3)]
                }
                for name in chance.sample([*names, "unknown"], chance.randint(1, count))
            }
            answer = await site.report({f"A/{name}": versions for name, versions in said.items()}, at=at, gateway="A")
            assert (answer.stored, answer.unknown) == (len(said) - ("unknown" in said), "unknown" in said)
            reports = [Report(device=f"B/{name}", versions=said[name], reported_at_ms=at) for name in said]
            await asyncio.gather(*(hot.stored(report, KEPT) for report in reports))
            of_a, of_b = [await site.devices.load_devices([f"{gateway}/{name}" for name in names]) for gateway in "AB"]
            assert [state and state.versions for state in of_a] == [state and state.versions for state in of_b]
            loaded = await site.load(*(f"A/{name}" for name in names), gateway="A")
            assert list(loaded.children) == of_a


def test_a_child_that_says_very_many_attributes_lengthens_what_is_said_of_no_other() -> None:
    many = {f"v{number}": "1" for number in range(100)}
    versions = {f"{GW}/many": many} | {f"{GW}/{number}": {"v0": "1"} for number in range(500)}
    report = ChildrenReported(
        gateway=GW, versions=versions, forms=dict.fromkeys(versions, DEFAULT), reported_at_ms=1, topic_type=None
    )
    keepers = dict.fromkeys(many, b"*")
    _, arguments = store_children_call(Keys(), report, keepers, refresh_ms=0)
    assert len(arguments) == 4 + (2 + 3 * 100 + 2) + (2 + 2 + 3 * 500)


async def test_a_report_that_changes_nothing_writes_nothing(site: Site, content: Content) -> None:
    await site.register(SHORT, LONG_NAME)
    said = {SHORT: {"version": "1.1"}, LONG_NAME: {"version": LONG_TEXT}}
    await site.report(said, at=1_000)
    before = await content()
    assert (await site.report(said, at=61_000)).stored == 2
    assert await content() == before


@pytest.mark.parametrize("packed", UNREADABLE)
@pytest.mark.parametrize("child", [f"{GW}/broken", f"{GW}/{'broken' * 20}"])
async def test_a_child_that_can_not_be_read_spoils_no_other(site: Site, packed: bytes, child: str) -> None:
    await site.register(SHORT)
    await site.damage(child, packed)
    answer = await site.report({child: {"version": "1.1"}, SHORT: {"version": "1.1"}})
    assert (answer.stored, answer.unknown) == (1, 0)
    assert text_of(await site.state(SHORT)) == "1.1"
    loaded = await site.load(child, SHORT)
    assert loaded.children == (None, await site.state(SHORT))
    assert await site.came(child) is ChildCame.UNREADABLE
    site.hot.children.note_form(child, DEEP_DEFAULT)
    await site.hot.noted()
    await site.devices.put_device(child, "sensor", {"version": "1.0"}, ())
    assert (await site.report({child: {"version": "1.2"}})).stored == 1


async def test_of_a_gateway_that_can_not_be_read_nothing_is_kept_and_nothing_loaded(
    site: Site, content: Content
) -> None:
    await site.register(SHORT)
    await site.damage(GW, b"\xc1")
    before = await content()
    with pytest.raises(DependencyError, match="can't be read"):
        await site.report({SHORT: {"version": "1.1"}})
    with pytest.raises(DependencyError, match="can't be read"):
        await site.load(SHORT)
    assert await content() == before


async def test_a_report_is_answered_with_those_that_have_open_offers(site: Site) -> None:
    children = [f"{GW}/{number}" for number in range(3)]
    await site.register(*children, LONG_NAME, version="1.0")
    await site.hot.record(children[1], OFFER)
    await site.hot.record(LONG_NAME, OFFER)
    answer = await site.report({child: {"version": "1.1"} for child in (*children, LONG_NAME)}, at=5)
    assert answer.offered == (await site.state(children[1]), await site.state(LONG_NAME))
    assert [state.open_offers for state in answer.offered] == [(OFFER,)] * 2
    assert [text_of(state) for state in answer.offered] == ["1.1"] * 2


async def test_offers_that_can_not_be_read_are_none(site: Site) -> None:
    await site.register(SHORT)
    await site.redis.hset(site.keys.offers(site.keys.bucket_of(SHORT)), SHORT, b"\xc1")
    answer = await site.report({SHORT: {"version": "1.1"}})
    assert (answer.stored, answer.offered) == (1, ())


async def test_a_child_reports_by_itself_where_its_report_is_late(site: Site) -> None:
    await site.register(SHORT, LONG_NAME, version="1.0")
    for child in (SHORT, LONG_NAME):
        await site.hot.record(child, OFFER)
        told = await report_alone(site, child, at=9)
        assert told == await site.state(child)
        assert told.versions == {"version": ReportedVersion("1.1", 9)}
        assert told.open_offers == (OFFER,)
    assert await report_alone(site, f"{GW}/stranger", topic_type="gateway") is None
    assert await site.devices.load_device(f"{GW}/stranger") is None


async def test_what_is_said_of_a_childs_offer_counts_while_its_gateway_is_registered(site: Site) -> None:
    await site.register(SHORT, LONG_NAME, version="1.0")
    said = Said(None, None, Outcome.REJECTED, "")
    for child in (SHORT, LONG_NAME):
        await site.hot.record(child, OFFER)
    await site.devices.delete_device(GW)
    for child in (SHORT, LONG_NAME):
        site.hot.offers.track_offer(child, said, at_ms=1)
        await site.hot.noted()
        assert (await site.state(child)).open_offers == (OFFER,)
    await site.register()
    for child in (SHORT, LONG_NAME):
        site.hot.offers.track_offer(child, said, at_ms=1)
        await site.hot.noted()
        assert (await site.state(child)).open_offers == ()


# ---- loading


async def test_a_gateway_and_the_children_that_are_asked_for_come_in_their_order(site: Site) -> None:
    long_state, children = f"{GW}/2", [f"{GW}/{number}" for number in range(3, 9)]
    await site.register(SHORT, LONG_NAME, *children, version="1.0")
    await site.devices.put_device(long_state, "sensor", {"version": LONG_TEXT})
    asked = [LONG_NAME, f"{GW}/nobody", long_state, *children, SHORT, f"{GW}/{'n' * 100}", long_state]
    answer = await site.load(*asked)
    assert answer.gateway == await site.state(GW)
    assert list(answer.children) == await site.devices.load_devices(asked)
    assert [child is None for child in answer.children].count(True) == 2


@pytest.mark.parametrize("gateway", ["g" * 60, "g" * 128])
async def test_long_gateways_have_children_too(site: Site, gateway: str) -> None:
    child = f"{gateway}/1"
    await site.register(child, version="1.0")
    assert (await site.report({child: {"version": "1.1"}}, gateway=gateway)).stored == 1
    assert (await site.load(child, gateway=gateway)).children == (await site.state(child),)
    assert await site.came(child) is ChildCame.KNOWN


async def test_a_gateway_alone_may_be_asked_for(site: Site) -> None:
    await site.register()
    assert await site.load() == LoadedChildren(await site.state(GW), ())
    assert await site.load(gateway="nobody") == LoadedChildren(None, ())


@pytest.mark.parametrize("device", [GW, SHORT, LONG_NAME])
async def test_a_device_is_loaded_with_its_open_offers_where_they_are_asked_for(site: Site, device: str) -> None:
    assert await loaded_offered(site.hot.devices, device) is None
    await site.register(SHORT, LONG_NAME, version="1.0")
    await site.hot.record(device, OFFER)
    state = await loaded_offered(site.hot.devices, device)
    assert state == await site.state(device)
    assert state.open_offers == (OFFER,)


async def test_behind_a_stall_late_reports_go_first(site: Site) -> None:
    await site.register(SHORT)
    now_s = asyncio.get_running_loop().time()
    for pipe in site.hot.all_pipes():
        pipe.answers_again_at_s = now_s
    with pytest.raises(DependencyError, match="late reports go first"):
        await site.load(SHORT)
    for device in (GW, SHORT, LONG_NAME):
        with pytest.raises(DependencyError, match="late reports go first"):
            await loaded(site.hot.devices, device)
        with pytest.raises(DependencyError, match="late reports go first"):
            await loaded_offered(site.hot.devices, device)
    assert (await site.report({SHORT: {"version": "1.1"}})).stored == 1
    for pipe in site.hot.all_pipes():
        pipe.answers_again_at_s = now_s - 10
    assert (await site.load(SHORT)).children == (await site.state(SHORT),)


async def test_where_redis_is_away_each_question_gets_one_error_at_once(keys: Keys) -> None:
    async def locate() -> Address:
        return Address("unix", path="/nonexistent")

    pipe = RedisPipe(locate)
    children = HotChildren(_OnePipe(pipe), keys)
    report = ChildrenReported(gateway=GW, versions={SHORT: {"version": "1"}}, forms={SHORT: DEFAULT}, reported_at_ms=1)
    with pytest.raises(DependencyError):
        await loaded_children(children, GW, [SHORT, LONG_NAME])
    with pytest.raises(DependencyError):
        await stored_children(children, report, KEPT)
    with pytest.raises(DependencyError):
        await child_came(children, SHORT, DEFAULT, product="sensor", at_ms=1)
    children.note_form(SHORT, DEFAULT)


class _OnePipe:
    """hot_calls.Pipes of one."""

    def __init__(self, pipe: RedisPipe) -> None:
        self._pipe = pipe

    def of(self, key: str) -> RedisPipe:
        return self._pipe


# ---- children that come


async def test_a_child_that_comes_with_a_product_is_registered_under_it(site: Site) -> None:
    await site.register()
    for child in (SHORT, LONG_NAME):
        assert await site.came(child) is ChildCame.UNKNOWN_DEVICE
        assert await site.devices.load_device(child) is None
        assert await site.came(child, "sensor") is ChildCame.REGISTERED
        assert await site.state(child) == DeviceState(child, "sensor")
        assert await site.came(child, "sensor") is ChildCame.KNOWN
        assert await site.came(child) is ChildCame.KNOWN
        assert (await site.report({child: {"version": "1.0"}})).stored == 1


async def test_a_child_of_another_type_is_left_alone(site: Site, content: Content) -> None:
    await site.register(SHORT, version="1.0")
    before = await content()
    assert await site.came(SHORT, "valve", form=DEEP_DEFAULT) is ChildCame.TYPE_DIFFERS
    assert await content() == before


async def test_a_gateway_registers_so_many_children_and_those_of_operators_count(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.hot = replace(site.hot, children=HotChildren(site.hot.pipes, site.keys, children_max=4))
    other = neighbour(site)
    await site.register(SHORT, LONG_NAME, *(f"{other}/{number}" for number in range(9)), f"{GW}x/1")
    await site.devices.put_device(SHORT, "sensor", {"version": LONG_TEXT})  # is in both hashes
    assert await site.came(f"{GW}/2", "sensor") is ChildCame.REGISTERED
    assert await site.came(f"{GW}/{'3' * 90}", "sensor") is ChildCame.REGISTERED
    monkeypatch.setattr(hot_children, "FULL_S", 0.0)
    assert await site.came(f"{GW}/4", "sensor") is ChildCame.TOO_MANY
    assert await site.came(f"{GW}/4") is ChildCame.UNKNOWN_DEVICE
    assert await site.came(SHORT, "sensor") is ChildCame.KNOWN
    await site.devices.put_device(f"{GW}/4", "sensor", None)
    assert await site.came(f"{GW}/4", "sensor") is ChildCame.KNOWN
    await site.devices.delete_device(SHORT)
    await site.devices.delete_device(LONG_NAME)
    assert await site.came(SHORT, "sensor") is ChildCame.REGISTERED
    assert await site.came(LONG_NAME, "sensor") is ChildCame.TOO_MANY


async def test_a_gateway_that_is_full_is_not_counted_again_for_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.hot = replace(site.hot, children=HotChildren(site.hot.pipes, site.keys, children_max=1))
    other = neighbour(site)
    await site.register(SHORT, other)
    assert await site.came(f"{GW}/2", "sensor") is ChildCame.TOO_MANY
    await site.devices.delete_device(SHORT)
    assert await site.came(SHORT, "sensor") is ChildCame.TOO_MANY
    assert await site.came(f"{other}/1", "sensor") is ChildCame.REGISTERED
    await site.devices.put_device(SHORT, "sensor", None)
    assert await site.came(SHORT, "sensor") is ChildCame.KNOWN
    await site.devices.delete_device(SHORT)
    loop = asyncio.get_running_loop()
    later_s = loop.time() + hot_children.FULL_S
    monkeypatch.setattr(loop, "time", lambda: later_s)
    assert await site.came(SHORT, "sensor") is ChildCame.REGISTERED


async def test_of_many_that_come_at_once_so_many_are_registered_as_there_is_room_for(site: Site) -> None:
    site.hot = replace(site.hot, children=HotChildren(site.hot.pipes, site.keys, children_max=6))
    other = neighbour(site)
    await site.register(SHORT, LONG_NAME, *(f"{other}/{number}" for number in range(3)))
    await site.damage(f"{GW}/broken", b"\xc1")
    names = [
        f"{GW}/new",
        SHORT,
        f"{GW}/new",
        f"{GW}/broken",
        f"{GW}/{'long' * 20}",
        f"{GW}/one",
        f"{GW}/two",
        LONG_NAME,
    ]
    coming = [ChildComing(name, DEFAULT, "sensor") for name in names]
    coming += [ChildComing(SHORT, DEFAULT, "valve"), ChildComing(f"{GW}/three", DEFAULT, None)]
    assert [word.value for word in await children_came(site.hot.children, *coming, at_ms=1_000_000)] == [
        *("registered", "known", "known", "unreadable", "registered", "registered", "too_many", "known"),
        *("type_differs", "unknown_device"),
    ]
    for name, form in ((f"{GW}/new", None), (LONG_NAME, DEFAULT)):
        assert await site.state(name) == DeviceState(name, "sensor", {}, form=form)


async def test_a_full_gateway_that_names_very_many_children_holds_redis_for_one_count(site: Site) -> None:
    await site.register(*(f"{GW}/{number}" for number in range(1_000)))
    coming = [ChildComing(f"{GW}/new{number}", DEFAULT, "sensor") for number in range(1_000)]
    client = await client_of(site, site.keys.devices(site.keys.bucket_of(GW)))
    before = await calls_of(client, "hkeys")
    came = await children_came(site.hot.children, *coming, at_ms=1)
    assert set(came) == {ChildCame.TOO_MANY}
    assert await calls_of(client, "hkeys") == before + 2


async def calls_of(client: Redis, command: str) -> int:
    """How often the server ran it, scripts' calls included."""
    stats: Any = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def client_of(site: Site, key: str) -> Redis:
    """A client of the server that has the key."""
    redis: Redis | RoutedRedis = site.redis
    return await redis.primary_of(key) if isinstance(redis, RoutedRedis) else redis


def neighbour(site: Site) -> str:
    """Another gateway in the same bucket."""
    names = (f"gw{number}" for number in range(1_000))
    return next(name for name in names if site.keys.bucket_of(name) == site.keys.bucket_of(GW))


async def test_a_child_that_comes_back_may_have_tried_and_is_sent_what_did_not_reach_it(site: Site) -> None:
    await site.register(SHORT, LONG_NAME, version="1.0")
    for child in (SHORT, LONG_NAME):
        await site.hot.record(child, OFFER)
        assert not (await site.state(child)).open_offers[0].has_tried
        await site.came(child)
        assert (await site.state(child)).open_offers[0].has_tried
        assert await site.sent_again() == []
    pushed = replace(OFFER, run_id="RUN", chunk=3)
    await site.hot.record(SHORT, pushed)
    site.hot.offers.track_offer(SHORT, Said(None, None, Outcome.OFFERED, "undelivered"), at_ms=1_000)
    await site.hot.noted()
    assert await site.came(SHORT, at=1_001) is ChildCame.KNOWN
    await site.hot.noted()
    assert await site.sent_again() == [(SHORT, "RUN", 3)]
    assert not (await site.state(SHORT)).open_offers[0].has_tried
    assert await site.came(SHORT, at=1_002) is ChildCame.KNOWN
    await site.hot.noted()
    assert len(await site.sent_again()) == 1


# ---- how children are spoken of


@pytest.mark.parametrize("child", [SHORT, LONG_NAME, f"{GW}/1/2"])
async def test_how_a_child_was_spoken_of_last_is_kept_unless_it_is_the_default(site: Site, child: str) -> None:
    await site.register()
    default = ChildForm.default(child.count("/"))
    assert await site.came(child, "sensor", form=DEFAULT) is ChildCame.REGISTERED
    assert (await site.state(child)).form == (None if default == DEFAULT else DEFAULT)
    for at, form in enumerate((*FORMS, *FORMS)):
        await site.report({child: {"version": "1.0"}}, form=form, at=at)
        assert (await site.state(child)).form == (None if form == default else form)
    for form in FORMS:
        site.hot.children.note_form(child, form)
        await site.hot.noted()
        (loaded_child,) = (await site.load(child)).children
        assert loaded_child is not None
        assert loaded_child.form == (None if form == default else form)
    for form in FORMS:
        assert await site.came(child, form=form) is ChildCame.KNOWN
        assert (await site.state(child)).form == (None if form == default else form)


async def test_a_form_that_is_known_and_one_of_a_stranger_write_nothing(site: Site, content: Content) -> None:
    await site.register(SHORT, LONG_NAME, version="1.0")
    site.hot.children.note_form(LONG_NAME, DEFAULT)
    await site.hot.noted()
    before = await content()
    site.hot.children.note_form(SHORT, DEFAULT)
    site.hot.children.note_form(LONG_NAME, DEFAULT)
    site.hot.children.note_form(f"{GW}/nobody", DEEP_DEFAULT)
    await site.hot.noted()
    assert await content() == before


async def test_a_form_outlives_what_operators_write_and_is_no_tag_and_no_firmware(site: Site) -> None:
    await site.register(SHORT, version="1.0")
    devices = site.devices
    await site.came(SHORT, form=DEEP_DEFAULT)

    async def expect(*tags: str) -> None:
        assert (await site.state(SHORT))[4:] == (tags, (), DEEP_DEFAULT)

    await expect()
    await devices.patch_device(SHORT, None, {}, ("a", "b"))
    await expect("a", "b")
    await devices.put_device(SHORT, "valve", {"version": "1.1"})
    await expect("a", "b")
    await devices.put_device(SHORT, "sensor", None, ("c",))
    await expect("c")
    await imported(devices, [(SHORT, "sensor", {"version": "1.2"}, ())])
    await expect()
    await imported(devices, [(SHORT, "sensor", None, ("d",))])
    await expect("d")
    await devices.patch_device(SHORT, None, {"version": None}, ())
    await expect()
    await report_alone(site, SHORT)
    await expect()
    (found,) = [device async for device in devices.scan_devices(device_type="sensor")]
    assert found[4:] == ((), (), DEEP_DEFAULT)


async def test_a_form_outlives_exhausted_firmware_and_their_reset(site: Site) -> None:
    await site.register(SHORT, version="1.0")
    await site.devices.patch_device(SHORT, None, {}, ("a",))
    site.hot.children.note_form(SHORT, DEEP_DEFAULT)
    site.offers = RedisOffers(site.redis, site.keys, attempts_max=1)

    async def fail(firmware_id: str) -> None:
        offer = replace(OFFER, firmware_id=firmware_id)
        await site.offers.record_offers([(SHORT, offer)])
        await site.offers.settle_offers([(SHORT, offer)], Outcome.FAILED, settled_at_ms=1)

    for number in range(20):
        await fail(f"F{number}")
        assert (await site.state(SHORT)).form == DEEP_DEFAULT
    kept = tuple(f"F{number}" for number in range(4, 20))
    assert (await site.state(SHORT))[4:] == (("a",), kept, DEEP_DEFAULT)
    site.hot.children.note_form(SHORT, ChildForm(Family.SUB, as_list=False))
    await site.hot.noted()
    assert (await site.state(SHORT))[4:] == (("a",), kept, ChildForm(Family.SUB, as_list=False))
    assert await site.attempts.reset_attempts(SHORT, "F4")
    assert (await site.state(SHORT)).exhausted == kept[1:]
    assert await site.attempts.reset_attempts(SHORT)
    assert (await site.state(SHORT))[4:] == (("a",), (), ChildForm(Family.SUB, as_list=False))
    assert not await site.attempts.reset_attempts(SHORT)
    await fail("F")
    site.hot.children.note_form(SHORT, DEFAULT)
    await site.hot.noted()
    assert (await site.state(SHORT))[4:] == (("a",), ("F",), None)


# ---- presence


async def test_a_child_is_there_where_its_gateway_is(site: Site) -> None:
    await site.register(SHORT, LONG_NAME, "other/1")
    everybody = [GW, SHORT, LONG_NAME, "other", "other/1"]
    connections = RedisConnections(site.redis, site.keys)

    async def are_there() -> list[bool]:
        return [one is not None for one in await connections.load_connections(everybody)]

    assert await are_there() == [False] * 5
    site.presence.come(GW, "one", at_ms=1)
    await site.hot.noted()
    assert await are_there() == [True, True, True, False, False]
    site.presence.go(GW, "one")
    await site.hot.noted()
    assert await are_there() == [False] * 5


async def push(site: Site, *devices: str, at: int = 1_000) -> None:
    pushed = replace(OFFER, run_id="RUN", chunk=2, offered_at_ms=at)
    assert await site.offers.record_offers([(device, pushed) for device in devices]) == [True] * len(devices)


async def tried(site: Site, *devices: str) -> list[bool]:
    return [(await site.state(device)).open_offers[0].has_tried for device in devices]


async def test_a_gateway_that_comes_back_is_sent_what_did_not_reach_its_children(site: Site) -> None:
    other = neighbour(site)
    waiting = [SHORT, LONG_NAME, f"{GW}/1/2"]
    strangers = [f"{other}/1", f"{GW}x/1", other]
    fresh, checked, far = f"{GW}/fresh", f"{GW}/checked", f"{GW}/far"
    await site.register(*waiting, f"{other}/1", f"{GW}x/1", fresh, checked, far, version="1.0")
    await push(site, *waiting, *strangers, GW)
    await push(site, fresh, at=99_000)
    await push(site, far)
    site.hot.offers.track_offer(far, Said(None, None, Outcome.DOWNLOADING, ""), at_ms=2_000)
    await site.hot.record(checked, OFFER)
    site.presence.come(GW, "one", at_ms=100_000)
    await site.hot.noted()
    assert sorted(await site.sent_again()) == sorted((device, "RUN", 2) for device in (*waiting, GW))
    site.presence.come(GW, "two", at_ms=100_001)
    await site.hot.noted()
    assert len(await site.sent_again()) == len(waiting) + 1


async def test_that_a_gateway_comes_back_is_no_attempt_of_its_children(site: Site) -> None:
    await site.register(SHORT, LONG_NAME, version="1.0")
    site.presence.come(GW, "one", at_ms=1)
    await site.hot.noted()
    await push(site, SHORT, LONG_NAME)
    await site.came(LONG_NAME)
    assert await tried(site, SHORT, LONG_NAME) == [False, True]
    site.presence.come(GW, "two", at_ms=100_000)
    await site.hot.noted()
    assert await tried(site, SHORT, LONG_NAME) == [False, True]


async def test_an_offer_to_a_child_whose_gateway_was_away_is_not_tried_when_the_child_comes(site: Site) -> None:
    away, behind_gateway = SHORT, LONG_NAME
    await site.register(away, behind_gateway, version="1.0")
    await push(site, away, behind_gateway)
    await site.came(away)
    assert await tried(site, away) == [False]
    await site.came(away)
    assert await tried(site, away) == [True]
    site.presence.come(GW, "one", at_ms=2_000)
    await site.hot.noted()
    await site.came(behind_gateway)
    assert await tried(site, behind_gateway) == [True]


@pytest.mark.single_redis
async def test_a_gateway_with_very_many_children_comes_back_in_several_steps(site: Site) -> None:
    children = [f"{GW}/{number}" for number in range(2 * CHILDREN_A_SCRIPT + 500)]
    await site.register(*children, version="1.0")
    await push(site, *children)
    site.presence.come(GW, "one", at_ms=100_000)
    for _ in range(5):
        await site.hot.noted()
    assert sorted(await site.sent_again()) == sorted((child, "RUN", 2) for child in children)


# ---- a bucket that is unpacked


async def test_a_bucket_with_600_children_is_scanned_and_paged_as_any_other(site: Site) -> None:
    children = [f"{GW}/{number}" for number in range(600)]
    beside = [f"d{number}" for number in range(200)]
    await site.register(*children, version="1.0")
    await imported(site.devices, [(device, "sensor", {"version": "1.0"}) for device in beside])
    everybody = {GW, *children, *beside}
    assert {device.identifier async for device in site.devices.scan_devices()} == everybody
    in_buckets = [name.decode() async for _, blob in site.devices.scan_buckets() for name, _ in unpack_bucket(blob)]
    assert sorted(in_buckets) == sorted(everybody)
    assert await pages(site, limit=77) == everybody
    assert await pages(site, limit=1_000, device_type="sensor") == everybody - {GW}
    assert await site.devices.count_unknown([*children, f"{GW}/600"]) == 1
    assert (await site.load(*children)).children == tuple(await site.devices.load_devices(children))
    answer = await site.report({child: {"version": "1.1"} for child in children})
    assert answer.stored == 600
    assert {text_of(device) async for device in site.devices.scan_devices(device_type="sensor")} == {"1.0", "1.1"}


async def pages(site: Site, *, limit: int, **only: Any) -> set[str]:
    """Whom the pages show, each once."""
    found: list[str] = []
    cursor = None
    while True:
        page, cursor = await site.devices.page_devices(cursor=cursor, limit=limit, **only)
        assert len(page) <= limit
        found += [device.identifier for device in page]
        if cursor is None:
            assert len(found) == len(set(found))
            return set(found)
