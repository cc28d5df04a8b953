"""The catalogue on a real Redis: changes, concurrency, refusals, and keeping up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from ota_hook._device_set import DeviceSet
from ota_hook.errors import ConfigurationError, ConflictError, DependencyError, InputError
from ota_hook.model import (
    CatalogueChange,
    CommandExtra,
    DeviceType,
    DocumentKind,
    Firmware,
    Package,
    Rule,
    VersionScheme,
)
from ota_hook.snapshot import NOBODY, Snapshot
from ota_hook.state import catalogue as catalogue_module
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.connection import connect_redis
from ota_hook.state.device_lists import DeviceLists
from ota_hook.state.documents import encode_document
from ota_hook.state.keys import Keys
from tests.integration.redis_fixtures import transaction_on
from tests.integration.waiting import eventually

TYPE = DeviceType(
    key="tracker", name="追踪器", version_attributes=("version", "mcu_version"), command_extras=(CommandExtra.SHA256,)
)
RULE = Rule(id="01JRULE", name="default", device_type="tracker")
PACKAGE = Package(filename="固件.bin", size_bytes=3, md5="a" * 32, sha256="b" * 64, crc32="c" * 8)
FIRMWARE = Firmware(
    id="01JFIRMWARE", name="fw", device_type="tracker", version="2.0", package=PACKAGE, source_versions=("1.0", "1.1")
)
Start = Callable[[], Awaitable[RedisCatalogue]]


@pytest.fixture
async def start(redis_url: str, keys: Keys) -> AsyncIterator[Start]:
    """Starts a catalogue with connections of its own, as another process has."""
    async with AsyncExitStack() as stack:

        async def start_one() -> RedisCatalogue:
            client = connect_redis(redis_url)
            stack.push_async_callback(client.aclose)
            catalogue = RedisCatalogue(client, keys)
            await catalogue.start()
            stack.push_async_callback(catalogue.close)
            return catalogue

        yield start_one


def writing(*documents: DeviceType | Rule | Firmware) -> Callable[[Snapshot], list[CatalogueChange]]:
    changes = [change_of(document) for document in documents]
    return lambda _: changes


def change_of(document: DeviceType | Rule | Firmware) -> CatalogueChange:
    match document:
        case DeviceType(key=key):
            return CatalogueChange(DocumentKind.DEVICE_TYPE, key, document)
        case Rule(id=key):
            return CatalogueChange(DocumentKind.RULE, key, document)
        case Firmware(id=key):
            return CatalogueChange(DocumentKind.FIRMWARE, key, document)


def removing(kind: DocumentKind, key: str) -> Callable[[Snapshot], list[CatalogueChange]]:
    return lambda _: [CatalogueChange(kind, key, None)]


def holding(
    catalogue: RedisCatalogue, *, revision: int | None = None, firmware: Iterable[Firmware] = ()
) -> Callable[[], bool]:
    wanted = {document.id: document for document in firmware}
    return lambda: catalogue.current.firmware == wanted and revision in {None, catalogue.current.revision}


async def in_pieces(identifiers: Sequence[str]) -> AsyncIterator[list[str]]:
    for start in range(0, len(identifiers), 700):
        yield list(identifiers[start : start + 700])


async def read_list(catalogue: RedisCatalogue, name: str) -> list[str]:
    return [identifier async for piece in catalogue.read_device_list(name) for identifier in piece]


async def test_a_change_is_in_force_here_when_it_returns_and_after_a_restart(start: Start) -> None:
    catalogue = await start()
    snapshot = await catalogue.change(writing(FIRMWARE, RULE, TYPE))
    assert snapshot is catalogue.current
    assert snapshot.revision == 1
    again = (await start()).current
    for current in (snapshot, again):
        assert (current.types, current.rules) == ({"tracker": TYPE}, {RULE.id: RULE})
        assert current.firmware == {FIRMWARE.id: FIRMWARE}
        index = current.index("tracker", "main")
        assert index is not None
        assert index.resolve("d", "1.0") == FIRMWARE.id


@pytest.mark.alone
async def test_a_change_is_live_in_another_process_within_a_second(start: Start) -> None:
    one, other = await start(), await start()
    await one.change(writing(TYPE, FIRMWARE))
    took = await eventually(lambda: other.current.revision == 1, what="the news")
    assert took < 1
    await other.change(writing(replace(FIRMWARE, enabled=False)))
    assert await eventually(lambda: not one.current.firmware[FIRMWARE.id].enabled) < 1
    await one.change(removing(DocumentKind.FIRMWARE, FIRMWARE.id))
    assert await eventually(lambda: not other.current.firmware) < 1
    assert other.current.index("tracker", "main") is None


async def test_a_change_is_seen_by_the_next_change_of_another_process_at_once(start: Start) -> None:
    one, other = await start(), await start()
    await one.change(writing(TYPE))
    seen: list[int] = []

    def look(snapshot: Snapshot) -> list[CatalogueChange]:
        seen.append(snapshot.revision)
        return []

    await other.change(look)
    assert seen == [1]


async def test_changes_at_once_lose_nothing(start: Start) -> None:
    catalogues = [await start() for _ in range(4)]
    await catalogues[0].change(writing(replace(TYPE, revision=0)))

    def count_up(snapshot: Snapshot) -> list[CatalogueChange]:
        current = snapshot.types["tracker"]
        return [change_of(replace(current, revision=current.revision + 1))]

    await asyncio.gather(*(catalogue.change(count_up) for catalogue in catalogues for _ in range(5)))
    snapshot = await catalogues[0].change(lambda _: [])
    assert snapshot.types["tracker"].revision == 20
    assert snapshot.revision == 21


async def test_a_decision_that_refuses_changes_nothing(
    start: Start, content: Callable[[], Awaitable[dict[bytes, object]]]
) -> None:
    catalogue = await start()
    before = await content()

    def refuse(_: Snapshot) -> list[CatalogueChange]:
        raise ConflictError("There is one already.")

    with pytest.raises(ConflictError):
        await catalogue.change(refuse)
    await catalogue.change(lambda _: [])
    assert await content() == before


async def test_a_document_that_can_not_be_used_is_refused_before_it_is_written(
    start: Start, content: Callable[[], Awaitable[dict[bytes, object]]]
) -> None:
    catalogue = await start()
    await catalogue.change(writing(TYPE))
    before = await content()
    for broken in (
        replace(FIRMWARE, version="no version"),
        replace(FIRMWARE, device_type="unheard_of"),
        replace(FIRMWARE, device_list="01JNOLIST"),
        replace(FIRMWARE, name="\ud800"),
    ):
        with pytest.raises(InputError):
            await catalogue.change(writing(broken))
    assert await content() == before


@pytest.mark.parametrize(
    "broken",
    [
        b"{",
        b"[]",
        b'{"id": "01JFIRMWARE"}',
        {"id": "01JOTHER"},
        {"version": "no"},
        {"basis_points": -1},
        {"basis_points": 10_001},
        {"percentage_seed": -1},
        {"percentage_seed": 2**64},
        {"groups": ["of a newer release"]},
        {"device_list": "01JNOLIST"},
        b"\xff",
    ],
)
async def test_a_broken_document_is_refused_and_the_last_good_one_stays_in_force(
    start: Start, redis: Redis, keys: Keys, broken: bytes | dict[str, object]
) -> None:
    catalogue = await start()
    await catalogue.change(writing(TYPE, FIRMWARE))
    if isinstance(broken, dict):
        broken = json.dumps(json.loads(encode(FIRMWARE)) | broken).encode()
    await write_behind_its_back(redis, keys, DocumentKind.FIRMWARE, FIRMWARE.id, broken)
    await eventually(lambda: catalogue.current.revision == 2, what="the news")
    assert [(refused.kind, refused.key) for refused in catalogue.refused] == [(DocumentKind.FIRMWARE, FIRMWARE.id)]
    assert catalogue.refused[0].reason
    assert catalogue.current.firmware == {FIRMWARE.id: FIRMWARE}
    index = catalogue.current.index("tracker", "main")
    assert index is not None
    assert index.resolve("d", "1.0") == FIRMWARE.id
    fresh = await start()
    assert (fresh.current.types, fresh.current.firmware) == ({"tracker": TYPE}, {})
    assert len(fresh.refused) == 1
    mended = replace(FIRMWARE, name="mended")
    await catalogue.change(writing(mended))
    await eventually(lambda: fresh.current.firmware == {FIRMWARE.id: mended})
    assert not catalogue.refused
    assert not fresh.refused


async def test_a_document_that_was_refused_is_used_once_what_it_needs_is_there(
    start: Start, redis: Redis, keys: Keys
) -> None:
    one, other = await start(), await start()
    await one.change(writing(replace(TYPE, version_scheme=VersionScheme.SEMVER)))
    await write_behind_its_back(redis, keys, DocumentKind.FIRMWARE, FIRMWARE.id, encode(FIRMWARE))
    await eventually(lambda: len(one.refused) == len(other.refused) == 1, what="the refusal")
    await one.change(writing(TYPE))  # back to `auto`, where "2.0" is a version
    for catalogue in (one, other):
        await eventually(holding(catalogue, firmware=[FIRMWARE]))
        assert catalogue.refused == ()


async def test_a_field_that_is_no_text_is_refused_alone(start: Start, redis: Redis, keys: Keys) -> None:
    running = await start()
    await running.change(writing(TYPE, FIRMWARE))
    await write_behind_its_back(redis, keys, DocumentKind.FIRMWARE, b"\xff\xfe", b"{}")
    await redis.hset(keys.documents(DocumentKind.RULE), b"\xff", b"{}")
    await eventually(lambda: bool(running.refused), what="the refusal")
    fresh = await start()
    for catalogue, kinds in ((running, ["firmware"]), (fresh, ["rule", "firmware"])):
        assert [document.kind for document in catalogue.refused] == kinds
        assert catalogue.current.firmware == {FIRMWARE.id: FIRMWARE}
    disabled = replace(FIRMWARE, enabled=False)
    await running.change(writing(disabled))
    for catalogue in (running, fresh):
        await eventually(holding(catalogue, firmware=[disabled]))
    await write_behind_its_back(redis, keys, DocumentKind.FIRMWARE, b"\xff\xfe", None)
    await eventually(lambda: not running.refused, what="the end of what was refused")


async def test_a_package_is_in_use_until_its_firmware_is_certainly_deleted(
    start: Start, redis: Redis, keys: Keys
) -> None:
    catalogue = await start()
    refused = replace(FIRMWARE, id="01JREFUSED", device_type="of_a_broken_type")
    deleted = replace(FIRMWARE, id="01JDELETED", deleted_at_ms=1)
    await catalogue.change(writing(TYPE, FIRMWARE, deleted))
    for key, raw in ((refused.id, encode(refused)), ("01JUNREADABLE", b"{"), (b"\xff", b"{}")):
        await redis.hset(keys.documents(DocumentKind.FIRMWARE), key, raw)
    fresh = await start()
    assert fresh.current.firmware.keys() == {FIRMWARE.id, deleted.id}
    in_use = {FIRMWARE.id, refused.id, "01JUNREADABLE", "\udcff"}
    assert set(await fresh.load_packages_in_use()) == set(await catalogue.load_packages_in_use()) == in_use


async def test_fields_of_a_newer_release_are_ignored(start: Start, redis: Redis, keys: Keys) -> None:
    newer = encode(RULE)[:-1] + b',"of_a_newer_release":{"x":1}}'
    await write_behind_its_back(redis, keys, DocumentKind.RULE, RULE.id, newer)
    assert (await start()).current.rules == {RULE.id: RULE}


async def test_a_process_that_missed_more_than_the_stream_keeps_loads_all(
    start: Start, redis: Redis, keys: Keys
) -> None:
    one, other = await start(), await start()
    await one.change(writing(TYPE, FIRMWARE, RULE))
    await eventually(lambda: other.current.revision == 1)
    await redis.hdel(keys.documents(DocumentKind.RULE), RULE.id)
    await redis.hset(keys.meta, mapping={"revision": "7", "token": "other"})
    await redis.xtrim(keys.changes, maxlen=0, approximate=False)
    for catalogue in (one, other):
        await eventually(holding(catalogue, revision=7, firmware=[FIRMWARE]))
        assert catalogue.current.types == {"tracker": TYPE}
        assert catalogue.current.rules == {}


async def test_other_data_under_the_same_revision_is_noticed(start: Start, redis: Redis, keys: Keys) -> None:
    catalogue = await start()
    await catalogue.change(writing(TYPE))
    other = replace(TYPE, name="of a restored copy")
    await redis.hset(keys.documents(DocumentKind.DEVICE_TYPE), TYPE.key, encode(other))
    await redis.hset(keys.meta, "token", "another")
    await eventually(lambda: catalogue.current.types == {"tracker": other})
    await catalogue.change(writing(RULE))
    assert (await start()).current.rules == {RULE.id: RULE}


async def test_a_redis_that_lost_everything_is_laid_out_again(start: Start, redis: Redis, keys: Keys) -> None:
    catalogue = await start()
    await catalogue.change(writing(TYPE))
    async for key in redis.scan_iter(match=f"{keys.prefix}:*"):
        await redis.delete(key)
    await eventually(lambda: catalogue.current.types == {})
    assert catalogue.healthy
    await catalogue.change(writing(RULE, TYPE))
    assert (await start()).current.types == {"tracker": TYPE}


async def test_a_change_whose_answer_was_lost_is_written_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue, other = await start(), await start()
    monkeypatch.setattr(catalogue_module, "WRITE_PAUSES_SECONDS", (0.0, 0.0))
    write = catalogue._writer.write
    overtake = False

    async def write_and_lose(*arguments: object) -> object:
        await write(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(catalogue._writer, "write", write)
        if overtake:
            await other.change(writing(RULE))
        raise DependencyError("The connection was cut.")

    monkeypatch.setattr(catalogue._writer, "write", write_and_lose)
    snapshot = await catalogue.change(writing(TYPE))
    assert (snapshot.revision, snapshot.types) == (1, {"tracker": TYPE})
    overtake = True
    monkeypatch.setattr(catalogue._writer, "write", write_and_lose)
    snapshot = await catalogue.change(writing(FIRMWARE))
    assert snapshot.revision == 3
    assert (snapshot.rules, snapshot.firmware) == ({RULE.id: RULE}, {FIRMWARE.id: FIRMWARE})


async def test_starting_without_redis_is_a_dependency_error(keys: Keys) -> None:
    client = connect_redis("unix:///nonexistent/redis.sock")
    catalogue = RedisCatalogue(client, keys)
    with pytest.raises(DependencyError):
        await catalogue.start()
    assert not catalogue.healthy
    await catalogue.close()
    await client.aclose()


async def test_a_process_refuses_data_of_another_layout(start: Start, redis: Redis, keys: Keys) -> None:
    catalogue = await start()
    await redis.hset(keys.meta, "format", "2")
    with pytest.raises(ConfigurationError, match="format 2"):
        await catalogue.change(writing(TYPE))


# ---- device lists


async def test_a_staged_list_is_kept_once_a_firmware_names_it(start: Start, redis: Redis, keys: Keys) -> None:
    one, other = await start(), await start()
    members = {f"设备-{number}" for number in range(4_500)}
    name, staged = await one.stage_device_list(in_pieces([*members, "设备-1", "设备-2"]))
    assert len(staged) == 4_500
    assert 0 < await redis.ttl(keys.device_list(name)) <= 3_600
    await one.change(writing(TYPE, replace(FIRMWARE, device_list=name)))
    assert await redis.ttl(keys.device_list(name)) == -1
    await eventually(lambda: other.current.revision == 1)
    for catalogue in (one, other):
        assert catalogue.current.device_lists == {name: staged}
        assert all(member in catalogue.current.device_lists[name] for member in members)
        index = catalogue.current.index("tracker", "main")
        assert index is not None
        assert index.resolve("设备-7", "1.0") == FIRMWARE.id
        assert index.resolve("stranger", "1.0") is None
        assert sorted(await read_list(catalogue, name)) == sorted(members)


async def test_a_list_that_a_change_leaves_unnamed_is_dropped(start: Start, redis: Redis, keys: Keys) -> None:
    catalogue = await start()
    first, _ = await catalogue.stage_device_list(in_pieces(["a"]))
    second, members = await catalogue.stage_device_list(in_pieces(["b"]))
    await catalogue.change(writing(TYPE, replace(FIRMWARE, device_list=first)))
    await catalogue.change(writing(replace(FIRMWARE, device_list=second)))
    assert await redis.exists(keys.device_list(first)) == 0
    assert catalogue.current.device_lists == {second: members}
    await catalogue.change(writing(replace(FIRMWARE, device_list=second, deleted_at_ms=1)))
    assert await redis.exists(keys.device_list(second), keys.device_list_digests(second)) == 0
    assert await read_list(catalogue, second) == []


async def test_the_empty_list_has_no_key_and_selects_nobody(start: Start) -> None:
    catalogue = await start()
    assert await catalogue.stage_device_list(in_pieces([])) == ("", NOBODY)
    await catalogue.change(writing(TYPE, replace(FIRMWARE, device_list="")))
    index = catalogue.current.index("tracker", "main")
    assert index is not None
    assert index.resolve("d", "1.0") is None
    assert await read_list(catalogue, "") == []


async def test_a_staged_list_can_be_read_before_it_is_named(start: Start) -> None:
    catalogue = await start()
    name, _ = await catalogue.stage_device_list(in_pieces(["7", "007", "a"]))
    assert await read_list(catalogue, name) == ["7", "007", "a"]


async def test_a_list_that_expired_is_not_named(
    start: Start, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = await start()
    name, _ = await catalogue.stage_device_list(in_pieces(["a"]))
    await catalogue.change(writing(TYPE))
    load = catalogue._lists.load

    async def load_and_lose(wanted: Sequence[str], seed: bytes | None) -> dict[str, DeviceSet]:
        loaded = await load(wanted, seed)
        for lost in wanted:
            await redis.delete(keys.device_list_digests(lost))
        return loaded

    monkeypatch.setattr(catalogue._lists, "load", load_and_lose)
    with pytest.raises(ConflictError, match="expired"):
        await catalogue.change(writing(replace(FIRMWARE, device_list=name)))
    assert (await start()).current.firmware == {}


@pytest.mark.parametrize("damage", ["longer", "shorter", "a list", "another seed", "gone", "empty"])
async def test_a_damaged_list_takes_its_own_firmware_out_alone(
    start: Start, redis: Redis, keys: Keys, damage: str
) -> None:
    running = await start()
    name, _ = await running.stage_device_list(in_pieces(["a", "b"]))
    listed, other = replace(FIRMWARE, device_list=name), replace(FIRMWARE, id="01JOTHER", version="1.9")
    await running.change(writing(TYPE, listed, other))
    key = keys.device_list_digests(name)
    stored = await read_bytes(redis, key)
    await redis.delete(key)
    match damage:
        case "longer":
            await redis.set(key, stored + b"x")
        case "shorter":  # by one device
            await redis.set(key, stored[:-16])
        case "a list":
            await redis.lpush(key, stored)
        case "another seed":
            await redis.set(key, bytes(8) + stored[8:])
        case "empty":
            await redis.set(key, b"")
    fresh = await start()
    assert fresh.current.firmware == {other.id: other}
    assert [(document.key, document.firmware) for document in fresh.refused] == [(listed.id, listed)]
    edited = replace(other, name="edited")
    await running.change(writing(edited))
    await eventually(holding(fresh, firmware=[edited]))
    assert running.current.firmware == {listed.id: listed, other.id: edited}
    await redis.delete(key)
    await redis.set(key, stored)
    await running.change(writing(other))
    await eventually(holding(fresh, firmware=[listed, other]))
    assert fresh.refused == ()


async def test_another_seed_of_lists_takes_what_was_listed_under_the_old_one_out(
    start: Start, redis: Redis, keys: Keys
) -> None:
    running = await start()
    old, _ = await running.stage_device_list(in_pieces(["a"]))
    back = replace(FIRMWARE, id="01JBACK", version="0.9", allow_downgrade=True, device_list=old)
    await running.change(writing(TYPE, back))
    await redis.hset(keys.meta, "list_seed", b"87654321")
    new, members = await running.stage_device_list(in_pieces(["b"]))
    listed = replace(FIRMWARE, device_list=new)
    await running.change(writing(listed))
    for catalogue in (running, await start()):
        assert catalogue.current.firmware == {listed.id: listed}
        assert catalogue.current.device_lists == {new: members}
        assert [document.key for document in catalogue.refused] == [back.id]
        index = catalogue.current.index("tracker", "main")
        assert index is not None
        assert (index.resolve("a", "1.0"), index.resolve("b", "1.0")) == (None, listed.id)


async def test_a_seed_that_is_none_leaves_the_rest_of_the_catalogue_in_force(
    start: Start, redis: Redis, keys: Keys
) -> None:
    running = await start()
    name, _ = await running.stage_device_list(in_pieces(["a"]))
    listed, other = replace(FIRMWARE, id="01JLISTED", version="3.0", device_list=name), FIRMWARE
    await running.change(writing(TYPE, listed, other))
    await redis.hset(keys.meta, "list_seed", "short")
    await running.change(writing(RULE))
    for catalogue in (running, await start()):
        assert catalogue.current.firmware == {other.id: other}
        with pytest.raises(DependencyError):
            await catalogue.stage_device_list(in_pieces(["a"]))


@pytest.mark.parametrize("lost", ["identifiers", "digests"])
async def test_a_list_that_lost_a_part_on_its_way_is_not_taken_for_whole(
    start: Start, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr("ota_hook.state.device_lists._DIGESTS_BYTES", 32 * 1024)
    catalogue = await start()
    identifiers = [f"device-{number}" for number in range(4_000)]
    end = ":digests" if lost == "digests" else ""

    async def delete_what_came() -> bool:
        names = [key async for key in redis.scan_iter(match=f"{keys.prefix}:*:list:*{end}")]
        for key in names:
            await redis.delete(key)
        return bool(names)

    async def lose_them() -> AsyncIterator[list[str]]:
        yield identifiers[:2_000]
        assert await delete_what_came()
        yield identifiers[2_000:]

    if lost == "digests":
        append = catalogue._lists._append

        async def append_and_lose(command: str, key: str, piece: bytes, length: int) -> None:
            if command == "APPEND" and length > len(piece):
                await delete_what_came()
            await append(command, key, piece, length)

        monkeypatch.setattr(catalogue._lists, "_append", append_and_lose)
    with pytest.raises(ConflictError, match="Send it again"):
        await catalogue.stage_device_list(lose_them() if lost == "identifiers" else in_pieces(identifiers))


async def test_a_list_that_lost_a_part_before_its_use_is_not_named(
    start: Start, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = await start()
    await catalogue.change(writing(TYPE))
    name, _ = await catalogue.stage_device_list(in_pieces(["a", "b"]))
    load = catalogue._lists.load

    async def load_and_lose(wanted: Sequence[str], seed: bytes | None) -> dict[str, DeviceSet]:
        loaded = await load(wanted, seed)
        key = keys.device_list_digests(name)
        await redis.set(key, (await read_bytes(redis, key))[:-16])
        return loaded

    monkeypatch.setattr(catalogue._lists, "load", load_and_lose)
    with pytest.raises(ConflictError, match="Send it again"):
        await catalogue.change(writing(replace(FIRMWARE, device_list=name)))
    assert (await start()).current.firmware == {}


@pytest.mark.parametrize("damage", ["gone", "shorter", "no text", "a text"])
async def test_a_list_whose_identifiers_are_not_all_there_is_not_read_as_if_it_were_whole(
    start: Start, redis: Redis, keys: Keys, damage: str
) -> None:
    catalogue = await start()
    name, _ = await catalogue.stage_device_list(in_pieces(["a", "b"]))
    await catalogue.change(writing(TYPE, replace(FIRMWARE, device_list=name)))
    key = keys.device_list(name)
    await redis.delete(key)
    match damage:
        case "shorter":
            await redis.rpush(key, "a")
        case "no text":
            await redis.rpush(key, b"a\n\xff")
        case "a text":
            await redis.set(key, "a\nb")
    with pytest.raises(ConflictError, match="can't be read"):
        await read_list(catalogue, name)


async def test_a_list_beyond_its_bound_is_refused(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota_hook.state.device_lists.LIST_MAX", 3_000)
    lists = DeviceLists(redis, keys)
    with pytest.raises(InputError, match="at most"):
        await lists.stage(in_pieces([str(number) for number in range(5_000)]))
    for key in [key async for key in redis.scan_iter(match=f"{keys.prefix}:*:list:*")]:
        assert await redis.ttl(key) > 0


@pytest.mark.alone
async def test_a_list_of_a_hundred_thousand_is_live_elsewhere_within_five_seconds(start: Start) -> None:
    one, other = await start(), await start()
    name, staged = await one.stage_device_list(in_pieces([f"device-{number}" for number in range(100_000)]))
    assert len(staged) == 100_000
    await one.change(writing(TYPE, replace(FIRMWARE, device_list=name)))
    written = time.monotonic()
    await eventually(lambda: name in other.current.device_lists, within_s=10)
    assert time.monotonic() - written < 5
    assert len(other.current.device_lists[name]) == 100_000


async def read_bytes(redis: Redis, key: str) -> bytes:
    stored = await redis.get(key)
    assert isinstance(stored, bytes)
    return stored


def encode(document: DeviceType | Rule | Firmware) -> bytes:
    return encode_document(change_of(document))


async def write_behind_its_back(
    redis: Redis, keys: Keys, kind: DocumentKind, key: str | bytes, raw: bytes | None
) -> None:
    """Write a document as another release, or a careless hand, might: with the news, past every check."""
    revision = int(await redis.hget(keys.meta, "revision") or 0) + 1
    async with await transaction_on(redis, keys.meta) as pipe:
        if raw is None:
            pipe.hdel(keys.documents(kind), key)
        else:
            pipe.hset(keys.documents(kind), key, raw)
        number = list(DocumentKind).index(kind) + 1
        pipe.execute_command(
            "XADD", keys.changes, f"{revision}-0", "kind", number, "key", key, "token", f"hand{revision}"
        )
        pipe.hset(keys.meta, mapping={"revision": str(revision), "token": f"hand{revision}"})
        await pipe.execute()
