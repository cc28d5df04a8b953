"""The client on a real Cluster whose slots move and whose primaries change places in good order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from ulid import ULID

from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.ports.devices import DeviceEntry
from ota_hook.state.connection import Script, connect_redis, list_primaries, run_command, run_commands, run_pipelined
from ota_hook.state.devices import RedisDevices
from ota_hook.state.durability import DurableWriter, list_risks
from ota_hook.state.format import open_layout
from ota_hook.state.primaries import SLOTS, Primaries
from ota_hook.state.routing import RoutedRedis
from tests.integration.redis_deployments import Deployment, Server, redis_cluster, served, single_redis
from tests.integration.waiting import eventually

COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
COUNT_TWO = Script("redis.call('INCRBY', KEYS[2], ARGV[1]) return redis.call('INCRBY', KEYS[1], ARGV[1])")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One of this module's own: its slots are moved about."""
    with redis_cluster(tmp_path_factory.mktemp("moving")) as deployment:
        yield deployment


@pytest.fixture
async def redis(cluster: Deployment) -> AsyncIterator[RoutedRedis]:
    client = connect_redis(cluster.url)
    assert isinstance(client, RoutedRedis)
    yield client
    await client.aclose()


@pytest.fixture
def names() -> list[str]:
    """Keys in many slots of every primary."""
    run = ULID()
    return [f"{run}:{{{number}}}" for number in range(200)]


async def test_the_slot_map_covers_all_slots_and_names_who_serves_them(cluster: Deployment) -> None:
    primaries = Primaries(cluster.url)
    assert primaries.slots() == ()
    await primaries.refresh()
    ranges = primaries.slots()
    assert [slot for found in ranges for slot in range(found.first, found.last + 1)] == list(range(SLOTS))
    assert {found.address.port for found in ranges} == {server.port for server in cluster.primaries()}
    server = cluster.servers[0]
    for key in (b"ota:{c}:meta", b"plain", b"{", b"a{b", "é{ü}".encode()):
        assert Primaries.key_slot(key) == server.ask("CLUSTER", "KEYSLOT", key.decode())
        holder = cluster.at((await primaries.locate(Primaries.key_slot(key))).port)
        assert holder.ask("EXISTS", key.decode()) == 0  # no MOVED


async def test_the_cluster_is_found_while_only_one_of_the_named_nodes_is_there(cluster: Deployment) -> None:
    primaries = Primaries(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.servers[4].port},127.0.0.1:2")
    await primaries.refresh()
    assert len({found.address for found in primaries.slots()}) == 3


async def test_a_pipeline_over_many_primaries_answers_in_order(redis: RoutedRedis, names: list[str]) -> None:
    answers, _ = await run_pipelined(redis, COUNT, [((name,), (at,)) for at, name in enumerate(names)])
    assert answers == list(range(len(names)))
    assert await run_commands(redis, [("GET", name) for name in names]) == [b"%d" % at for at in range(len(names))]
    assert len(await list_primaries(redis)) == 3


async def test_a_script_that_only_some_servers_know_runs_once_for_each_key(
    redis: RoutedRedis, cluster: Deployment, names: list[str]
) -> None:
    calls = [((name,), (1,)) for name in names]
    await run_pipelined(redis, COUNT, calls)
    cluster.primaries()[1].ask("SCRIPT", "FLUSH")
    answers, waited = await run_pipelined(redis, COUNT, calls, then=[("WAIT", 1, 1_000)])
    assert answers == [2] * len(names)
    assert len(waited) >= 3
    assert all(answer == [1] for answer in waited)
    cluster.primaries()[0].ask("SCRIPT", "FLUSH")
    assert {await COUNT.run(redis, [name], [1]) for name in names} == {3}


async def test_a_write_waits_for_the_replicas_of_every_primary_that_took_a_part(
    redis: RoutedRedis, cluster: Deployment, names: list[str]
) -> None:
    calls = [((name,), (1,)) for name in names]
    assert (await DurableWriter(redis, replicas=1).write(COUNT, calls))[1] is None
    replica = next(server for server in cluster.running() if server not in cluster.primaries())
    await asyncio.to_thread(replica.stall)
    try:
        _, unconfirmed = await DurableWriter(redis, replicas=1, wait_ms=100).write(COUNT, calls)
        assert unconfirmed is not None
        assert "It was written, but 1 replica" in unconfirmed
        elsewhere = [call for call in calls if not await serves(redis, cluster, replica, call[0][0])]
        assert 0 < len(elsewhere) < len(calls)
        assert (await DurableWriter(redis, replicas=1).write(COUNT, elsewhere))[1] is None
    finally:
        replica.resume()


async def test_an_import_is_confirmed_by_the_replicas_of_every_primary(redis: RoutedRedis, cluster: Deployment) -> None:
    keys = await open_layout(redis, prefix=f"imported{ULID()}")
    devices = RedisDevices(redis, keys, writer=DurableWriter(redis, replicas=1, wait_ms=100))
    entries = [DeviceEntry(f"d{number}", "tracker", {"version": "1.0"}) for number in range(300)]
    replica = next(server for server in cluster.running() if server not in cluster.primaries())
    await asyncio.to_thread(replica.stall)
    try:
        run = await devices.begin_import()
        assert await run.write(entries) == (300, 0, ())
        with pytest.raises(DependencyError, match="1 replica") as refused:
            await run.confirm()
        assert refused.value.maybe_written
    finally:
        replica.resume()
    devices = RedisDevices(redis, keys, writer=DurableWriter(redis, replicas=1))
    again = await devices.begin_import()
    assert await again.write(entries) == (0, 300, ())
    await again.confirm()


async def serves(redis: RoutedRedis, cluster: Deployment, replica: Server, key: str) -> bool:
    """Whether the key's primary is the one that `replica` copies."""
    primary = await redis.primaries.locate(Primaries.key_slot(key.encode()))
    replicas = cluster.at(primary.port).info("replication")
    return any(isinstance(copy, dict) and copy.get("port") == replica.port for copy in replicas.values())


async def test_an_error_of_one_command_reaches_the_caller(redis: RoutedRedis, names: list[str]) -> None:
    await run_command(redis, "RPUSH", names[0], "1")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await run_pipelined(redis, COUNT, [((name,), (1,)) for name in names[:2]])
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await run_commands(redis, [("GET", name) for name in names[:2]])


async def test_more_callers_than_connections_wait_for_their_turn(cluster: Deployment, names: list[str]) -> None:
    client = connect_redis(cluster.url, connections=2)
    answers = await asyncio.gather(*(run_command(client, "INCR", name) for name in names))
    assert answers == [1] * len(names)
    await client.aclose()


# ---- slots that move


async def test_a_slot_that_moved_is_followed(redis: RoutedRedis, cluster: Deployment, names: list[str]) -> None:
    key = names[0]
    assert await run_command(redis, "INCR", key) == 1
    await asyncio.to_thread(Move(cluster, key).all_at_once)
    assert await run_command(redis, "INCR", key) == 2
    assert (await run_pipelined(redis, COUNT, [((name,), (1,)) for name in names]))[0] == [3] + [1] * 199
    assert await COUNT.run(redis, [key], [1]) == 4

    async def knows() -> bool:
        return (await redis.primary_of(key)) is await client_at(redis, cluster.at(port_of(cluster, key)))

    await eventually(knows, what="the new slot map")


async def test_a_slot_that_is_being_moved_is_served_on_both_sides(
    redis: RoutedRedis, cluster: Deployment, names: list[str]
) -> None:
    stays, goes, new = (f"{names[1]}:{name}" for name in ("stays", "goes", "new"))
    await run_commands(redis, [("SET", stays, "1"), ("SET", goes, "2")])
    move = Move(cluster, stays)
    await asyncio.to_thread(move.begin)
    await asyncio.to_thread(move.migrate, goes)
    assert await run_command(redis, "GET", stays) == b"1"
    assert await run_command(redis, "GET", goes) == b"2"
    assert await COUNT.run(redis, [new], [5]) == 5
    reads = [("GET", name) for name in (stays, goes, new, names[2])]
    assert await run_commands(redis, reads) == [b"1", b"2", b"5", None]
    # A script over several keys has to wait until all of them are on one side.
    both = asyncio.create_task(COUNT_TWO.run(redis, [goes, stays], [1]))
    await asyncio.sleep(0)
    await asyncio.to_thread(move.migrate, stays)
    await asyncio.to_thread(move.finish)
    assert await both == 3
    assert await run_commands(redis, reads) == [b"2", b"3", b"5", None]


class Move:
    """A slot's way from its primary to another, step by step as `redis-cli --cluster reshard` takes them."""

    def __init__(self, cluster: Deployment, key: str) -> None:
        self._slot = Primaries.key_slot(key.encode())
        self._source = cluster.at(port_of(cluster, key))
        self._target = next(server for server in cluster.primaries() if server is not self._source)
        self._primaries = cluster.primaries()

    def begin(self) -> None:
        self._target.ask("CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._source.id())
        self._source.ask("CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._target.id())

    def migrate(self, *keys: str) -> None:
        self._source.ask("MIGRATE", "127.0.0.1", self._target.port, "", 0, 1_000, "KEYS", *keys)

    def finish(self) -> None:
        # The cluster is every test's: another's key may lie in this slot.
        rest = self._source.ask("CLUSTER GETKEYSINSLOT", self._slot, 100)
        assert isinstance(rest, list)
        if rest:
            self.migrate(*rest)
        for server in (self._target, self._source, *self._primaries):
            server.ask("CLUSTER", "SETSLOT", self._slot, "NODE", self._target.id())

    def all_at_once(self) -> None:
        self.begin()
        keys = self._source.ask("CLUSTER GETKEYSINSLOT", self._slot, 100)
        assert isinstance(keys, list)
        self.migrate(*keys)
        self.finish()


def port_of(cluster: Deployment, key: str) -> int:
    """Who serves the key by the servers' own account."""
    slot = Primaries.key_slot(key.encode())
    ranges = cluster.primaries()[0].client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
    return next(int(primary[1]) for first, last, primary, *_ in ranges if first <= slot <= last)


async def client_at(redis: RoutedRedis, server: Server) -> Redis:
    return redis._client(redis.primaries.address_at("127.0.0.1", server.port))


# ---- primaries that change places


async def test_while_a_replica_takes_over_in_good_order_every_write_happens_once(
    redis: RoutedRedis, cluster: Deployment, names: list[str]
) -> None:
    stop = False

    async def write(lane: int) -> int:
        count = 0
        while not stop:
            await COUNT.run(redis, [names[lane]], [1])
            count += 1
        return count

    lanes = [asyncio.create_task(write(lane)) for lane in range(8)]
    old = cluster.primaries()[0]
    replica = next(server for server in cluster.running() if server.info("replication").get("master_port") == old.port)
    await asyncio.to_thread(replica.ask, "CLUSTER", "FAILOVER")
    await eventually(lambda: replica.info("replication")["role"] == "master", what="the take-over")

    async def follows() -> bool:
        return await client_at(redis, replica) in await redis.all_primaries()

    await eventually(follows, what="the new slot map")
    stop = True
    counts = await asyncio.gather(*lanes)
    assert min(counts) > 0
    found = await run_commands(redis, [("GET", name) for name in names[:8]])
    assert [int(value) for value in found] == counts


# ---- what start-up says


async def test_start_up_asks_every_primary(redis: RoutedRedis, cluster: Deployment) -> None:
    async def knows_who_is_one() -> bool:
        await redis.primaries.refresh()  # from any node: one that slept through the tests before may still be wrong
        return {found.address.port for found in redis.primaries.slots()} == {one.port for one in cluster.primaries()}

    await eventually(knows_who_is_one, what="the slot map after the tests before")
    risks = await list_risks(redis)
    assert [risk for risk in risks if "append-only" in risk]  # the same of all three, said once
    server = cluster.primaries()[2]
    server.ask("CONFIG", "SET", "maxmemory", "1gb")
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert [risk for risk in await list_risks(redis) if "evicts" in risk]
    server.ask("CONFIG", "SET", "maxmemory", "0")
    server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert len(await list_risks(redis)) == len(risks)


async def test_a_refused_password_is_a_configuration_error(cluster: Deployment) -> None:
    client = connect_redis(cluster.url.replace("redis+cluster://", "redis+cluster://guest:wr0ng@"))
    with pytest.raises(ConfigurationError, match="refused the login") as refused:
        await open_layout(client)
    assert "wr0ng" not in str(refused.value)
    await client.aclose()


async def test_a_cluster_that_is_not_there_is_a_dependency_error() -> None:
    client = connect_redis("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(DependencyError):
        await open_layout(client)
    await client.aclose()


async def test_a_single_redis_under_a_clusters_url_is_a_dependency_error_that_says_so(tmp_path: Path) -> None:
    async with served(single_redis(tmp_path)) as server:
        client = connect_redis(f"redis+cluster://127.0.0.1:{server.port}")
        with pytest.raises(DependencyError, match="cluster support disabled"):
            await open_layout(client)
        await client.aclose()
