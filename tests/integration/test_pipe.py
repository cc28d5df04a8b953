"""The pipe on a real redis-server that stalls, dies, restarts and changes its role, and on servers that lie."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import pytest
import structlog
from redis.exceptions import RedisError

from ota_hook.state import pipe as pipe_module
from ota_hook.state.pipe import _TICK_S, PENDING_MAX, RedisPipe, Unavailable, pack
from ota_hook.state.primaries import Address
from tests.held_ports import HOST
from tests.integration.hot_state import answered
from tests.integration.waiting import eventually
from tests.redis_process import RedisProcess, redis_process

pytestmark = [pytest.mark.both_loops, pytest.mark.alone]

BUDGET_MS = 50
_ROUNDING_S = 1e-6
"""Sums and differences of the clock's numbers."""
SLACK_S = 0.02
"""Beside what the machine's business costs the loop, which is measured."""
SET_AND_GET = "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with redis_process(tmp_path / "redis") as started:
        yield started


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, server: RedisProcess) -> Address:
    return Address(path=server.socket_path) if request.param == "unix" else tcp(server.port)


def tcp(port: int, **options: Any) -> Address:
    return Address(host=HOST, port=port, **options)


def at(address: Address) -> Callable[[], Awaitable[Address]]:
    async def locate() -> Address:
        return address

    return locate


@asynccontextmanager
async def piped(locate: Callable[[], Awaitable[Address]], **options: Any) -> AsyncIterator[RedisPipe]:
    pipe = RedisPipe(locate, **({"budget_ms": BUDGET_MS} | options))
    try:
        await pipe.start()
        yield pipe
    finally:
        await pipe.close()


@dataclass
class Asked:
    """Commands that were submitted, and every answer that each of them got."""

    pipe: RedisPipe
    answers: list[list[object]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)

    def submit(self, *command: str | int | bytes) -> None:
        loop = asyncio.get_running_loop()
        number, began = len(self.answers), loop.time()
        self.answers.append([])

        def done(reply: object) -> None:
            self.answers[number].append(reply)
            self.order.append(number)
            self.took_s.append(loop.time() - began)

        self.pipe.submit(pack(command), done)

    @property
    def done(self) -> bool:
        return all(self.answers)

    async def all_answered(self, within_s: float = 10) -> None:
        await eventually(lambda: self.done, within_s=within_s, what="an answer to each")
        assert {len(answers) for answers in self.answers} <= {1}, "some were answered twice"

    def refused(self) -> int:
        return sum(isinstance(answers[0], Unavailable) for answers in self.answers if answers)


@contextmanager
def measured_lag() -> Iterator[list[float]]:
    """By how much the loop ran its timers late, whoever held it up."""
    loop = asyncio.get_running_loop()
    lag_s: list[float] = [0.0]

    async def look() -> None:
        while True:
            due = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            lag_s.append(loop.time() - due)

    task = loop.create_task(look())
    try:
        yield lag_s
    finally:
        task.cancel()


async def is_back(pipe: RedisPipe, *, within_s: float = 10.0) -> float:
    """It takes commands again by itself, and answers them."""
    took_s = await eventually(lambda: pipe.available, within_s=within_s, what="the pipe's return")
    assert await answered(pipe, "ECHO", "back") == b"back"
    return took_s


# ---- order and batches


async def test_thousands_of_commands_in_one_turn_are_answered_in_order(address: Address) -> None:
    async with piped(at(address), budget_ms=30_000) as pipe:
        asked = Asked(pipe)
        for number in range(10_000):
            asked.submit("ECHO", number)
        await asked.all_answered()
    assert asked.answers == [[b"%d" % number] for number in range(10_000)]
    assert asked.order == list(range(10_000))


async def test_the_commands_of_one_turn_leave_in_one_write(server: RedisProcess, address: Address) -> None:
    async with piped(at(address), budget_ms=30_000) as pipe:
        reads = []
        for commands in (0, 1, 300, 300):
            before = int(server.info("stats")["total_reads_processed"])
            asked = Asked(pipe)
            for number in range(commands):
                asked.submit("ECHO", number)
            await asked.all_answered()
            reads.append(int(server.info("stats")["total_reads_processed"]) - before)
        questions = reads[0]
        assert reads == [questions, questions + 1, questions + 1, questions + 1]


async def test_no_command_is_answered_in_the_turn_that_sent_it(address: Address) -> None:
    async with piped(at(address)) as pipe:
        asked = Asked(pipe)
        asked.submit("PING")
        assert asked.answers == [[]]
        await asked.all_answered()


async def test_every_kind_of_reply_arrives_whole(address: Address) -> None:
    long = b"\x00\r\n" * 700_000
    async with piped(at(address), budget_ms=30_000) as pipe:
        assert await answered(pipe, "SET", "k", long) in {"OK", b"OK"}
        assert await answered(pipe, "GET", "k") == long
        assert await answered(pipe, "GET", "none") is None
        assert await answered(pipe, "INCRBY", "n", 2**53) == 2**53
        assert await answered(pipe, "EVAL", "return {1, {'a', false}}", 0) == [1, [b"a", None]]
        wrong = await answered(pipe, "INCR", "k")
        assert isinstance(wrong, hiredis.ReplyError)
        assert pipe.connections == 1


async def test_a_callback_that_fails_keeps_no_other_from_its_answer(address: Address) -> None:
    def fail(reply: object) -> None:
        raise IndexError("a fault of the caller's")

    async with piped(at(address)) as pipe:
        before, after = Asked(pipe), Asked(pipe)
        before.submit("ECHO", 1)
        with structlog.testing.capture_logs() as said:
            pipe.submit(pack(("PING",)), fail)
            after.submit("ECHO", 2)
            await after.all_answered()
        assert (before.answers, after.answers) == ([[b"1"]], [[b"2"]])
        assert [line["event"] for line in said] == ["callback_failed"]
        assert pipe.connections == 1


# ---- the budget


async def test_a_stalled_redis_costs_each_command_its_budget_at_most_and_then_nothing(
    server: RedisProcess, address: Address
) -> None:
    async with piped(at(address)) as pipe:
        pipe._last_reply -= 3_600  # a quiet hour before is no stall
        server.stall()
        asked = Asked(pipe)
        with measured_lag() as lag_s:
            for _ in range(5):
                for number in range(100):
                    asked.submit("ECHO", number)
                await asyncio.sleep(_TICK_S)
            await asked.all_answered()
        assert asked.refused() == 500
        assert min(asked.took_s[asked.order.index(number)] for number in range(100)) >= BUDGET_MS / 1000 - _ROUNDING_S
        assert max(asked.took_s) <= BUDGET_MS / 1000 + _TICK_S + SLACK_S + 2 * max(lag_s)
        assert not pipe.available

        late = Asked(pipe)
        refused = pipe.refused
        for _ in range(100):
            late.submit("ECHO", "late")
        assert late.done
        assert late.refused() == 100
        assert pipe.refused == refused + 100

        server.resume()
        await is_back(pipe)
        assert pipe.connections == 1, "it was given up before its time"
        assert {len(answers) for answers in (*asked.answers, *late.answers)} == {1}


async def test_commands_that_were_under_way_before_a_stall_are_not_answered_twice(
    server: RedisProcess, address: Address
) -> None:
    async with piped(at(address)) as pipe:
        server.stall()
        asked = Asked(pipe)
        for _ in range(50):
            asked.submit("INCR", "n")
        await asked.all_answered()
        server.resume()
        await is_back(pipe)
        assert {len(answers) for answers in asked.answers} == {1}
        assert await answered(pipe, "GET", "n") == b"50"  # they ran, late: whoever asks must be able to bear it


async def test_a_redis_that_stalls_for_long_is_given_up_and_comes_back_by_itself(
    server: RedisProcess, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_module, "_STALLED_S", 0.5)
    async with piped(at(address)) as pipe:
        server.stall()
        asked = Asked(pipe)
        asked.submit("PING")
        with structlog.testing.capture_logs() as said:
            await eventually(lambda: "redis_given_up" in {line["event"] for line in said}, what="giving up")
        assert pipe.connections == 1
        server.resume()
        await is_back(pipe)
        assert pipe.connections == 2
        await asked.all_answered()


async def test_a_process_that_is_held_up_does_not_blame_redis(address: Address) -> None:
    async with piped(at(address)) as pipe:
        for _ in range(3):
            asked = Asked(pipe)
            for number in range(100):
                asked.submit("ECHO", number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # they have left
            time.sleep(3 * BUDGET_MS / 1000)  # noqa: ASYNC251 - that is the point
            await asked.all_answered()
            assert asked.answers == [[b"%d" % number] for number in range(100)]
            assert pipe.available


async def test_one_slow_command_opens_the_breaker_until_it_is_done(server: RedisProcess, address: Address) -> None:
    async with piped(at(address)) as pipe:
        asked = Asked(pipe)
        asked.submit("DEBUG", "SLEEP", "0.2")
        asked.submit("ECHO", "behind")
        await asked.all_answered()
        assert asked.refused() == 2
        assert not pipe.available
        await is_back(pipe)
        assert pipe.connections == 1


# ---- lost connections


async def test_a_killed_redis_is_answered_for_at_once_and_found_again_on_its_port(
    server: RedisProcess, address: Address
) -> None:
    async with piped(at(address), scripts=[SET_AND_GET], budget_ms=30_000) as pipe:
        digest = await answered(pipe, "SCRIPT", "LOAD", SET_AND_GET)
        server.stall()
        asked = Asked(pipe)
        for number in range(100):
            asked.submit("ECHO", number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        server.kill()
        await asked.all_answered(within_s=5)
        assert asked.refused() == 100
        assert not pipe.available
        await asyncio.to_thread(server.start)
        await is_back(pipe)
        # The new server has never heard of the script but from the pipe.
        assert await answered(pipe, "EVALSHA", digest, 1, "k", "v") == b"v"


async def test_a_redis_that_is_away_at_the_start_is_found_when_it_comes(tmp_path: Path) -> None:
    with redis_process(tmp_path / "redis", started=False) as server:
        began = time.monotonic()
        async with piped(at(tcp(server.port))) as pipe:
            assert time.monotonic() - began < 1
            assert not pipe.available
            assert isinstance(await answered(pipe, "PING"), Unavailable)
            await asyncio.to_thread(server.start)
            await is_back(pipe)


async def test_a_redis_that_is_away_is_not_asked_in_a_hurry(tmp_path: Path) -> None:
    tries = 0

    async def locate() -> Address:
        nonlocal tries
        tries += 1
        return Address(path=str(tmp_path / "none.sock"))

    async with piped(locate):
        await asyncio.sleep(0.5)
    assert 3 <= tries <= 6


async def test_a_redis_that_closes_each_connection_is_not_asked_in_a_hurry() -> None:
    async with fake_redis(lambda command: None if command[0] == b"GET" else b"+OK\r\n") as fake:
        async with piped(at(tcp(fake.port))) as pipe:
            until = time.monotonic() + 0.7
            while time.monotonic() < until:
                await answered(pipe, "GET", "k")
                await asyncio.sleep(0.001)
        assert 3 <= fake.accepted <= 8


async def test_a_place_that_can_not_be_found_out_for_a_while_is_asked_again(server: RedisProcess) -> None:
    troubles: list[Exception] = [RedisError("nobody says"), OSError("no route"), ValueError("no sense")]

    async def locate() -> Address:
        if troubles:
            raise troubles.pop(0)
        return tcp(server.port)

    with structlog.testing.capture_logs() as said:
        async with piped(locate) as pipe:
            assert not pipe.available
            await is_back(pipe)
            assert troubles == []
            assert pipe.connections == 1
    assert [line["event"] for line in said].count("redis_connection_failed") == 1


async def test_an_answer_where_to_connect_that_never_comes_is_given_up(
    server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_module, "_CONNECT_S", 0.5)
    answers = [asyncio.Event(), None]

    async def locate() -> Address:
        if event := answers.pop(0):
            await event.wait()
        return tcp(server.port)

    async with piped(locate) as pipe:
        await is_back(pipe)


async def test_closing_answers_what_waits_and_what_comes_after(server: RedisProcess, address: Address) -> None:
    async with piped(at(address), budget_ms=30_000) as pipe:
        server.stall()
        asked = Asked(pipe)
        for _ in range(20):
            asked.submit("PING")
        await pipe.close()
        assert asked.done
        asked.submit("PING")
        assert asked.refused() == 21
        await pipe.close()
        server.resume()
        await asyncio.sleep(0.05)
        assert {len(answers) for answers in asked.answers} == {1}


async def test_no_more_commands_wait_than_the_bound(server: RedisProcess) -> None:
    async with piped(at(tcp(server.port)), budget_ms=60_000) as pipe:
        server.stall()
        asked = Asked(pipe)
        for number in range(PENDING_MAX):
            asked.submit("ECHO", number)
        assert not any(asked.answers)
        assert not pipe.available
        beyond = Asked(pipe)
        for _ in range(10):
            beyond.submit("PING")
        assert beyond.refused() == 10
        server.resume()
        await asked.all_answered(within_s=30)
        assert asked.answers == [[b"%d" % number] for number in range(PENDING_MAX)]
        assert pipe.available


# ---- scripts and roles


async def test_a_script_that_redis_forgot_is_an_error_for_the_caller_alone(address: Address) -> None:
    async with piped(at(address), scripts=[SET_AND_GET]) as pipe:
        digest = await answered(pipe, "SCRIPT", "LOAD", SET_AND_GET)
        asked = Asked(pipe)
        asked.submit("EVALSHA", digest, 1, "k", "1")
        asked.submit("SCRIPT", "FLUSH")
        asked.submit("EVALSHA", digest, 1, "k", "2")
        asked.submit("EVAL", SET_AND_GET, 1, "k", "3")
        await asked.all_answered()
        first, _, unknown, third = (answers[0] for answers in asked.answers)
        assert (first, third) == (b"1", b"3")
        assert isinstance(unknown, hiredis.ReplyError)
        assert str(unknown).startswith("NOSCRIPT")
        assert pipe.connections == 1


@pytest.mark.parametrize("write", [("SET", "k", "v"), ("EVAL", SET_AND_GET, 1, "k", "v")])
async def test_a_primary_that_became_a_replica_is_left_for_the_new_one(
    server: RedisProcess, tmp_path: Path, write: tuple[str | int, ...]
) -> None:
    with redis_process(tmp_path / "other") as other:
        addresses = [tcp(server.port)]

        async def locate() -> Address:
            return addresses[-1]

        async with piped(locate, budget_ms=5_000) as pipe:
            assert server.ask("REPLICAOF", HOST, other.port) == b"OK"
            addresses.append(tcp(other.port))
            assert isinstance(await answered(pipe, *write), Unavailable)
            await is_back(pipe)
            assert not isinstance(await answered(pipe, *write), Exception)
            assert pipe.connections == 2
        assert other.ask("GET", "k") == b"v"


async def test_a_redis_that_still_loads_its_data_is_waited_for(tmp_path: Path) -> None:
    with redis_process(tmp_path / "redis", "--rdbcompression", "no") as server:
        server.ask("DEBUG", "POPULATE", 300, "key", 100_000)  # it answers once per 2 MiB while it loads
        server.ask("SAVE")
        server.kill()
        server.launch("--key-load-delay", "4000")

        def is_loading() -> bool:
            try:
                return str(server.ask("PING")).startswith("LOADING")
            except OSError:
                return False

        await eventually(is_loading, what="the loading")
        with structlog.testing.capture_logs() as said:
            async with piped(at(tcp(server.port)), scripts=[SET_AND_GET]) as pipe:
                assert not pipe.available
                await is_back(pipe, within_s=20)
                assert await answered(pipe, "DBSIZE") == 300
        assert any("LOADING" in str(line.get("problem")) for line in said)


async def test_a_wrong_password_is_said_without_it_and_tried_again(tmp_path: Path) -> None:
    with redis_process(tmp_path / "redis", "--requirepass", "s3cret") as server:
        passwords = ["wr0ng", "s3cret"]

        async def locate() -> Address:
            return tcp(server.port, password=passwords[0], db=3)

        with structlog.testing.capture_logs() as said:
            async with piped(locate) as pipe:
                assert not pipe.available
                passwords.pop(0)
                await is_back(pipe)
                await answered(pipe, "SET", "k", "v")
                assert await answered(pipe, "SELECT", 0) in {"OK", b"OK"}
                assert await answered(pipe, "GET", "k") is None  # it was in database 3
        problems = [str(line["problem"]) for line in said if line["event"] == "redis_connection_failed"]
        assert len(problems) == 1
        assert "WRONGPASS" in problems[0]
        assert "wr0ng" not in repr(said)


# ---- servers that lie


Answering = Callable[[list[bytes]], bytes | None]


@dataclass
class FakeRedis:
    """Answers each command as it is told; None closes the connection."""

    answer: Answering
    port: int = 0
    accepted: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        commands = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    reply = self.answer(command)
                    if reply is None:
                        return
                    writer.write(reply)
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def fake_redis(answer: Answering) -> AsyncIterator[FakeRedis]:
    fake = FakeRedis(answer)
    listening = await asyncio.start_server(fake.serve, HOST, 0)
    fake.port = listening.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        listening.close()


NONSENSE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\x00\xff\x80\r\n",
    b"$-7\r\n",
    b"$99999999999999999999\r\n",
    b"*99999999999999999999\r\n",
    b":12a\r\n",
]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_ends_the_connection_and_nothing_waits(nonsense: bytes) -> None:
    replies = [nonsense]

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"ECHO":
            return b"$%d\r\n%b\r\n" % (len(command[1]), command[1])
        return replies.pop() if command[0] == b"GET" and replies else b"+OK\r\n"

    async with fake_redis(answer) as fake, piped(at(tcp(fake.port)), budget_ms=30_000) as pipe:
        asked = Asked(pipe)
        for key in ("a", "b", "c"):
            asked.submit("GET", key)
        await asked.all_answered()
        assert asked.refused() == 3
        await is_back(pipe)
        assert pipe.connections == fake.accepted == 2


async def test_nonsense_instead_of_a_login_is_a_failed_connection() -> None:
    async with fake_redis(lambda command: b"220 mail.example ESMTP\r\n") as fake, piped(at(tcp(fake.port))) as pipe:
        assert not pipe.available
        await eventually(lambda: fake.accepted >= 3, what="another try")
        assert pipe.connections == 0


async def test_replies_that_nobody_asked_for_end_the_connection() -> None:
    chatty = [b"+OK\r\n+OK\r\n+OK\r\n"]

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"ECHO":
            return b"$4\r\nback\r\n"
        return chatty.pop() if command[0] == b"GET" and chatty else b"+OK\r\n"

    async with fake_redis(answer) as fake, piped(at(tcp(fake.port))) as pipe:
        first = Asked(pipe)
        first.submit("GET", "a")
        await first.all_answered()
        assert first.answers in ([["OK"]], [[b"OK"]])
        await eventually(lambda: fake.accepted == 2, what="another connection")
        await is_back(pipe)


async def test_half_a_reply_and_then_the_end_is_no_reply() -> None:
    halves = [b"$10\r\nhalf"]

    def answer(command: list[bytes]) -> bytes | None:
        if command[0] == b"ECHO":
            return b"$4\r\nback\r\n"
        if command[0] == b"GET":
            return halves.pop() if halves else None
        return b"+OK\r\n"

    async with fake_redis(answer) as fake, piped(at(tcp(fake.port)), budget_ms=30_000) as pipe:
        asked = Asked(pipe)
        asked.submit("GET", "a")
        asked.submit("GET", "b")
        await asked.all_answered()
        assert asked.refused() == 2
        await is_back(pipe)


async def test_a_server_that_accepts_and_never_answers_is_given_up_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipe_module, "_CONNECT_S", 0.5)
    mute = True

    def answer(command: list[bytes]) -> bytes:
        if mute:
            return b""
        return b"$4\r\nback\r\n" if command[0] == b"ECHO" else b"+OK\r\n"

    began = time.monotonic()
    with structlog.testing.capture_logs() as said:
        async with fake_redis(answer) as fake, piped(at(tcp(fake.port)), scripts=[SET_AND_GET]) as pipe:
            assert time.monotonic() - began < 1.5
            assert not pipe.available
            mute = False
            await is_back(pipe)
    assert {line["event"] for line in said} <= {"redis_connection_failed", "redis_connection_lost"}
