"""Format, command ids, idempotency, heartbeats and durability on a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog
from redis.asyncio import Redis
from ulid import ULID

from ota_hook.errors import ConfigurationError, ConflictError, DependencyError, InputError
from ota_hook.model import COMMAND_ID_LIMIT
from ota_hook.ports.idempotency import Begun, Replay
from ota_hook.state.clock import RedisClock
from ota_hook.state.connection import Script, connect_redis
from ota_hook.state.durability import DurableWriter, list_risks
from ota_hook.state.format import open_layout
from ota_hook.state.heartbeat import Heartbeat
from ota_hook.state.hot import HotCommandIds
from ota_hook.state.idempotency import ANSWER_MAX_BYTES, RedisIdempotency
from ota_hook.state.keys import Keys
from ota_hook.state.pipes import PipeSet
from tests.integration.hot_state import answered, next_id, open_pipes
from tests.integration.waiting import eventually

# ---- format


async def test_the_number_of_buckets_is_fixed_by_the_first_process(redis: Redis, keys: Keys) -> None:
    prefix = f"{keys.prefix}:new"
    layouts = await asyncio.gather(*(open_layout(redis, prefix=prefix, buckets=n) for n in (4, 8, 12, 16)))
    assert len(set(layouts)) == 1
    assert await open_layout(redis, prefix=prefix) == layouts[0]


async def test_a_newer_format_is_refused(redis: Redis, keys: Keys) -> None:
    await redis.hset(keys.meta, "format", "2")
    with pytest.raises(ConfigurationError, match="format 2"):
        await open_layout(redis, prefix=keys.prefix)


@pytest.mark.parametrize(("field", "value"), [("format", "x"), ("format", "0"), ("buckets", "0"), ("buckets", "many")])
async def test_a_meta_key_that_is_not_ours_is_refused(redis: Redis, keys: Keys, field: str, value: str) -> None:
    await redis.hset(keys.meta, field, value)
    with pytest.raises(ConfigurationError, match="not this program's"):
        await open_layout(redis, prefix=keys.prefix)


@pytest.mark.parametrize("prefix", ["", "a{b}", "a*", "p" * 65, "ü", "a b"])
async def test_a_prefix_that_would_break_the_keys_is_refused(redis: Redis, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        await open_layout(redis, prefix=prefix)


async def test_a_number_of_buckets_out_of_range_is_refused(redis: Redis, keys: Keys) -> None:
    for buckets in (0, -1, 2**25):
        with pytest.raises(ConfigurationError, match="buckets"):
            await open_layout(redis, prefix=keys.prefix, buckets=buckets)


def test_a_url_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="URL"):
        connect_redis("http://secret:password@host")


@pytest.mark.single_redis
async def test_a_refused_password_is_a_configuration_error_that_does_not_tell_it(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser("guest", enabled=True, passwords=["+right"], commands=["+@all"], keys=["*"])
    client = connect_redis(redis_url.replace("unix://", "unix://guest:wr0ng@"))
    with pytest.raises(ConfigurationError) as refused:
        await open_layout(client)
    assert "wr0ng" not in str(refused.value)
    await client.aclose()
    await redis.acl_deluser("guest")


# ---- command ids


class Ids:
    """HotCommandIds on pipes of their own, as one hook process has them."""

    def __init__(self, pipes: PipeSet, keys: Keys, block: int) -> None:
        self.hot = HotCommandIds(pipes, keys, block=block)
        self.hot.start()
        self._pipe = pipes.of(keys.command_ids)

    async def next(self) -> int:
        return await next_id(self.hot, self._pipe)


@asynccontextmanager
async def command_ids(redis_url: str, keys: Keys, *, block: int) -> AsyncIterator[Ids]:
    async with open_pipes(redis_url) as pipes:
        ids = Ids(pipes, keys, block)
        yield ids
        ids.hot.close()


async def test_ids_are_unique_positive_and_increasing_in_one_process(redis_url: str, keys: Keys) -> None:
    async with command_ids(redis_url, keys, block=10) as ids:
        taken = [await ids.next() for _ in range(105)]
    assert taken == sorted(set(taken))
    assert taken[0] > 0


async def test_ids_are_unique_over_processes_and_tasks(redis_url: str, keys: Keys) -> None:
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(command_ids(redis_url, keys, block=7)) for _ in range(3)]

        async def take(ids: Ids) -> list[int]:
            return [await ids.next() for _ in range(20)]

        taken = await asyncio.gather(*(take(ids) for _ in range(10) for ids in processes))
    assert len({number for numbers in taken for number in numbers}) == 600


@pytest.mark.single_redis
async def test_ids_inside_a_block_come_without_redis(redis: Redis, redis_url: str, keys: Keys) -> None:
    async with command_ids(redis_url, keys, block=1_000) as ids:
        first = await ids.next()
        commands = await commands_processed(redis)
        assert [ids.hot.next_id() for _ in range(400)] == list(range(first + 1, first + 401))
        assert await commands_processed(redis) - commands <= 1  # the question itself


async def test_the_next_block_is_there_before_the_last_one_ends(redis_url: str, keys: Keys) -> None:
    async with command_ids(redis_url, keys, block=100) as ids:
        first = await ids.next()
        for _ in range(55):
            ids.hot.next_id()
        assert await answered(ids._pipe, "PING") in {"PONG", b"PONG"}
        assert [ids.hot.next_id() for _ in range(143)] == list(range(first + 56, first + 199))


async def test_an_id_without_redis_is_a_dependency_error_at_once(redis_url: str, keys: Keys) -> None:
    async with open_pipes(redis_url) as pipes:
        await pipes.close()
        ids = HotCommandIds(pipes, keys)
        ids.start()
        for _ in range(5):
            with pytest.raises(DependencyError):
                ids.next_id()
        ids.close()


async def test_ids_continue_once_redis_is_back(redis: Redis, redis_url: str, keys: Keys) -> None:
    await redis.set(keys.command_ids, "not a number")
    async with command_ids(redis_url, keys, block=5) as ids:
        with pytest.raises(DependencyError):
            await ids.next()
        await redis.delete(keys.command_ids)
        taken: list[int] = []

        def is_back() -> bool:
            try:
                taken.append(ids.hot.next_id())
            except DependencyError:
                return False
            return True

        await eventually(is_back, what="the next id")
    assert taken == [1]


async def test_ids_stop_below_two_to_the_53(redis: Redis, redis_url: str, keys: Keys) -> None:
    await redis.set(keys.command_ids, COMMAND_ID_LIMIT - 11)
    async with command_ids(redis_url, keys, block=10) as ids:
        taken = [await ids.next() for _ in range(10)]
        assert max(taken) == COMMAND_ID_LIMIT - 1
        with structlog.testing.capture_logs() as said, pytest.raises(DependencyError):
            await ids.next()
    assert "command_ids_used_up" in {line["event"] for line in said}


# ---- the clock


async def redis_ms(redis: Redis, keys: Keys) -> int:
    seconds, microseconds = await Script("return redis.call('TIME')").run(redis, (keys.meta,), ())
    return int(seconds) * 1_000 + int(microseconds) // 1_000


async def test_a_clock_goes_by_redis_whatever_its_own_process_says_and_is_set_right_again(
    redis: Redis, keys: Keys
) -> None:
    wrong_ms = 600_000
    clock = RedisClock(redis, keys, local_ms=lambda: time.monotonic_ns() // 1_000_000 + wrong_ms, wall_ms=lambda: 7)
    with structlog.testing.capture_logs() as logged:
        await clock.start()
    assert [entry["event"] for entry in logged] == ["clock_differs"]
    assert abs(clock.now_ms() - await redis_ms(redis, keys)) < 1_000
    wrong_ms = -600_000
    assert abs(clock.now_ms() - await redis_ms(redis, keys)) > 1_000_000
    keeping = asyncio.create_task(clock.keep(every_s=0.05))
    now_ms = await redis_ms(redis, keys)
    await eventually(lambda: abs(clock.now_ms() - now_ms) < 60_000)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


# ---- idempotency


@pytest.fixture
def idempotency(redis: Redis, keys: Keys) -> RedisIdempotency:
    return RedisIdempotency(redis, keys, keep_ms=60_000, lock_ms=30_000)


async def test_a_request_runs_once_and_is_answered_the_same_again(idempotency: RedisIdempotency) -> None:
    begun = await idempotency.begin("token", "POST /rules", "k", "digest")
    assert isinstance(begun, Begun)
    await idempotency.finish(begun, status=201, headers={"etag": '"1"'}, body=b"\x00\xff{}")
    again = await idempotency.begin("token", "POST /rules", "k", "digest")
    assert again == Replay(status=201, headers={"etag": '"1"'}, body=b"\x00\xff{}")


async def test_another_body_under_the_same_key_is_refused(idempotency: RedisIdempotency) -> None:
    begun = await idempotency.begin("token", "POST /rules", "k", "digest")
    assert isinstance(begun, Begun)
    with pytest.raises(InputError):
        await idempotency.begin("token", "POST /rules", "k", "other")
    await idempotency.finish(begun, status=201, headers={}, body=b"")
    with pytest.raises(InputError):
        await idempotency.begin("token", "POST /rules", "k", "other")


async def test_the_same_key_of_another_token_or_route_is_another_request(idempotency: RedisIdempotency) -> None:
    for token, route in (("a", "b"), ("a", "c"), ("ab", ""), ("", "ab")):
        assert isinstance(await idempotency.begin(token, route, "k", "digest"), Begun)


async def test_of_requests_at_once_one_runs_and_the_others_conflict(idempotency: RedisIdempotency) -> None:
    answers = await asyncio.gather(
        *(idempotency.begin("token", "POST /rules", "k", "digest") for _ in range(10)), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["Begun"] + ["ConflictError"] * 9


async def test_an_abandoned_request_may_run_again(idempotency: RedisIdempotency) -> None:
    begun = await idempotency.begin("token", "POST /rules", "k", "digest")
    assert isinstance(begun, Begun)
    await idempotency.abandon(begun)
    assert isinstance(await idempotency.begin("token", "POST /rules", "k", "other"), Begun)


async def test_a_process_that_died_frees_its_request_and_can_not_answer_for_its_successor(
    redis: Redis, keys: Keys
) -> None:
    idempotency = RedisIdempotency(redis, keys, lock_ms=50)
    died = await idempotency.begin("token", "POST /rules", "k", "digest")
    assert isinstance(died, Begun)

    successor = died

    async def is_free() -> bool:
        nonlocal successor
        try:
            begun = await idempotency.begin("token", "POST /rules", "k", "digest")
        except ConflictError:
            return False
        assert isinstance(begun, Begun)
        successor = begun
        return True

    await eventually(is_free, what="the end of the lock")
    assert successor.owner != died.owner
    idempotency = RedisIdempotency(redis, keys)
    await idempotency.finish(died, status=500, headers={}, body=b"late")
    await idempotency.abandon(died)
    with pytest.raises(ConflictError):
        await idempotency.begin("token", "POST /rules", "k", "digest")
    await idempotency.finish(successor, status=201, headers={}, body=b"")
    assert isinstance(await idempotency.begin("token", "POST /rules", "k", "digest"), Replay)


async def test_what_an_earlier_request_may_have_created_is_known_to_the_next(
    idempotency: RedisIdempotency, redis: Redis
) -> None:
    async def begin(new_id: str) -> Begun:
        begun = await idempotency.begin("token", "POST /firmware", "k", "digest", new_id=new_id)
        assert isinstance(begun, Begun)
        return begun

    ids = [str(ULID()) for _ in range(20)]
    for number in range(17):
        lost = await begin(ids[number])
        assert lost.earlier_ids == tuple(ids[max(0, number - 15) : number])
        await idempotency.abandon(lost, maybe_written=True)
    failed = await begin(ids[17])
    await idempotency.abandon(failed)
    last = await begin(ids[18])
    assert last.earlier_ids == tuple(ids[2:17])
    await idempotency.finish(last, status=201, headers={}, body=b"")
    assert isinstance(await idempotency.begin("token", "POST /firmware", "k", "digest", new_id=ids[19]), Replay)


async def test_an_answer_too_long_to_keep_does_not_run_again(idempotency: RedisIdempotency) -> None:
    begun = await idempotency.begin("token", "POST /rules", "k", "digest")
    assert isinstance(begun, Begun)
    await idempotency.finish(begun, status=200, headers={}, body=b"x" * (ANSWER_MAX_BYTES + 1))
    with pytest.raises(ConflictError, match="too long"):
        await idempotency.begin("token", "POST /rules", "k", "digest")


async def test_answers_are_kept_for_24_hours(redis: Redis, keys: Keys) -> None:
    idempotency = RedisIdempotency(redis, keys)
    begun = await idempotency.begin("token", "POST /rules", "k", "digest")
    assert isinstance(begun, Begun)
    await idempotency.finish(begun, status=201, headers={}, body=b"")
    assert 86_390 < await redis.ttl(begun.key) <= 86_400


# ---- heartbeats


async def test_live_processes_are_counted_until_they_leave(redis: Redis, keys: Keys) -> None:
    one, two = Heartbeat(redis, keys), Heartbeat(redis, keys)
    assert await one.count_live() == 0
    await one.beat()
    await one.beat()
    await two.beat()
    assert await two.count_live() == 2
    await one.remove()
    assert await two.count_live() == 1


async def test_a_process_that_falls_silent_is_not_counted_and_is_swept_out(redis: Redis, keys: Keys) -> None:
    silent, other = Heartbeat(redis, keys, ttl_ms=30), Heartbeat(redis, keys)
    await silent.beat()

    async def is_alone() -> bool:
        return await other.count_live() == 0

    await eventually(is_alone, what="the silence")
    await other.beat()
    assert await redis.zcard(keys.live_hooks) == 1


# ---- durability

SET = Script("return redis.call('SET', KEYS[1], ARGV[1])")


async def test_a_write_is_confirmed_where_the_server_has_no_waitaof(redis: Redis, keys: Keys) -> None:
    key = f"{keys.prefix}:written"
    assert await DurableWriter(redis).write(SET, [([key], ["1"]), ([key], ["2"])]) == ([b"OK", b"OK"], None)
    assert await redis.get(key) == b"2"


@pytest.mark.single_redis
async def test_a_write_that_its_replicas_do_not_confirm_says_that_it_happened(redis: Redis, keys: Keys) -> None:
    key = f"{keys.prefix}:written"
    writer = DurableWriter(redis, replicas=1, wait_ms=10)
    with pytest.raises(DependencyError, match="It was written, but 1 replica") as failure:
        await writer.write_or_fail(SET, [([key], ["1"])])
    assert failure.value.maybe_written
    assert await redis.get(key) == b"1"


@pytest.mark.single_redis
async def test_a_script_that_redis_forgot_is_sent_again(redis: Redis, keys: Keys) -> None:
    key = f"{keys.prefix}:written"
    assert await SET.run(redis, [key], ["1"]) == b"OK"
    await redis.script_flush()
    assert await SET.run(redis, [key], ["2"]) == b"OK"
    await redis.script_flush()
    assert (await DurableWriter(redis).write(SET, [([key], ["3"])]))[0] == [b"OK"]
    assert await redis.get(key) == b"3"


async def test_a_write_that_was_never_sent_says_so() -> None:
    nobody = connect_redis("redis://127.0.0.1:1/0", timeout_seconds=1)
    with pytest.raises(DependencyError) as failure:
        await DurableWriter(nobody).write(SET, [(["key"], ["1"])])
    assert not failure.value.maybe_written
    await nobody.aclose()


async def test_a_script_that_fails_is_a_dependency_error(redis: Redis, keys: Keys) -> None:
    await redis.rpush(f"{keys.prefix}:list", "1")
    writer = DurableWriter(redis)
    with pytest.raises(DependencyError, match="WRONGTYPE"):
        await writer.write(Script("return redis.call('INCR', KEYS[1])"), [([f"{keys.prefix}:list"], [])])


@pytest.mark.single_redis
async def test_the_embedded_redis_has_no_risks_and_a_forgetful_one_has_them_in_plain_words(redis: Redis) -> None:
    assert await list_risks(redis) == []
    await redis.config_set("appendfsync", "no")
    assert any("power cut" in risk for risk in await list_risks(redis))
    await redis.config_set("appendfsync", "everysec")
    await redis.config_set("maxmemory", "1gb")
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    assert any("evicts" in risk for risk in await list_risks(redis))
    await redis.config_set("appendonly", "no")
    assert any("append-only" in risk for risk in await list_risks(redis))
    for name, value in (
        ("maxmemory", "0"),
        ("maxmemory-policy", "noeviction"),
        ("appendfsync", "always"),
        ("appendonly", "yes"),
    ):
        await redis.config_set(name, value)


@pytest.mark.single_redis
async def test_risks_that_can_not_be_checked_are_said_so(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser("shy", enabled=True, nopass=True, commands=["+@all", "-config"], keys=["*"])
    client = connect_redis(redis_url.replace("unix://", "unix://shy:@"))
    assert any("could not be checked" in risk for risk in await list_risks(client))
    await client.aclose()
    await redis.acl_deluser("shy")


async def commands_processed(redis: Redis) -> int:
    return int((await redis.info("stats"))["total_commands_processed"])
