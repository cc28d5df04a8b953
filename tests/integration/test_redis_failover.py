"""What is written, lost and resumed when a primary dies, hangs or is demoted, behind Sentinels and in a Cluster.

"Replicated" is what a writer was told that waits for every replica: of that nothing may be missing afterwards. (What
only one of two has is lost where the other is elected.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import pytest
from redis.exceptions import ReadOnlyError

from ota_hook.errors import DependencyError
from ota_hook.model import CatalogueChange, DeviceType, DocumentKind, Rule
from ota_hook.snapshot import Snapshot
from ota_hook.state import catalogue as catalogue_module
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.connection import RedisClient, connect_redis, run_command
from ota_hook.state.devices import RedisDevices
from ota_hook.state.durability import DurableWriter
from ota_hook.state.format import open_layout
from ota_hook.state.keys import Keys
from ota_hook.state.primaries import Primaries, SlotRange
from ota_hook.state.routing import RoutedRedis
from tests.integration.redis_deployments import Deployment, Server, redis_cluster, served, watched_redis
from tests.integration.waiting import eventually

pytestmark = pytest.mark.alone

TYPE = DeviceType(key="tracker", name="Tracker", revision=0)
TIMEOUT_SECONDS = 2.0
CONFIRMED_WITHIN_MS = 1_500
ELECTED_WITHIN_S = 40.0
"""Three seconds or so; Sentinels that were held up themselves first wait for thirty."""
RESUMED_WITHIN_S = 5.0
"""After the replica became primary by its own account; a Cluster's new primary then still waits for a replica."""


@dataclass
class Process:
    """The stores of one process with connections of its own, and what it was told about its writes."""

    redis: RedisClient
    keys: Keys
    writer: DurableWriter
    catalogue: RedisCatalogue
    devices: RedisDevices
    counted: int = 0
    not_known: int = 0
    rules: list[str] = field(default_factory=list)
    put: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def wait_for_replicas(self, count: int) -> None:
        """Have as many confirm each write from now on."""
        self.writer._replicas = count

    async def change(self, number: int) -> None:
        """One catalogue change that adds a rule and counts itself."""
        rule = Rule(id=f"R{number}", name="n", event=f"event{number}", device_type=TYPE.key)

        def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
            current = snapshot.types[TYPE.key]
            counted = replace(current, revision=current.revision + 1)
            return [
                CatalogueChange(DocumentKind.DEVICE_TYPE, TYPE.key, counted),
                CatalogueChange(DocumentKind.RULE, rule.id, rule),
            ]

        try:
            await self.catalogue.change(decide)
        except DependencyError:
            self.not_known += 1
            return
        self.counted += 1
        self.rules.append(rule.id)

    async def put_device(self, number: int) -> None:
        try:
            await self.devices.put_device(f"d{number}", TYPE.key, {"version": str(number)})
        except DependencyError:
            self.refused.append(f"d{number}")
        else:
            self.put.append(f"d{number}")


@asynccontextmanager
async def process_of(url: str, prefix: str, *, replicas: int = 1) -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:
        redis = connect_redis(url, timeout_seconds=TIMEOUT_SECONDS)
        stack.push_async_callback(redis.aclose)
        keys = await open_layout(redis, prefix=prefix, buckets=64)
        writer = DurableWriter(redis, replicas=replicas, wait_ms=CONFIRMED_WITHIN_MS)
        catalogue = RedisCatalogue(redis, keys, writer=writer)
        await catalogue.start()
        stack.push_async_callback(catalogue.close)
        yield Process(redis, keys, writer, catalogue, RedisDevices(redis, keys, writer=writer))


@asynccontextmanager
async def repeating(act: Callable[[int], object], *, every_s: float = 0.0) -> AsyncIterator[None]:
    """Act again and again beside what is done in this context."""
    stop = asyncio.Event()

    async def run() -> None:
        number = 0
        while not stop.is_set():
            await act(number)  # type: ignore[misc]
            number += 1
            await asyncio.sleep(every_s)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        stop.set()
        await task


async def primary_with(process: Process, deployment: Deployment, key: str) -> Server:
    assert isinstance(process.redis, RoutedRedis)
    address = await process.redis.primaries.locate(Primaries.key_slot(key.encode()))
    return deployment.at(address.port)


async def replacement_of(primary: Server, replicas: Sequence[Server]) -> Server:
    """The replica that calls itself primary, when one does. `primary` may hang, so it is not asked."""
    others = [server for server in replicas if server is not primary]
    found: list[Server] = []

    def took_over() -> bool:
        found[:] = [server for server in others if server.info("replication")["role"] == "master"]
        return bool(found)

    await eventually(took_over, within_s=ELECTED_WITHIN_S, what="the election")
    return found[0]


async def check_that_nothing_replicated_is_missing(process: Process, url: str) -> None:
    async with AsyncExitStack() as stack:
        fresh = await started(stack, url, process.keys.prefix)
        snapshot = fresh.catalogue.current
        assert set(process.rules) <= snapshot.rules.keys()
        # Each change counted itself once: those that were confirmed, and at most those that were not.
        assert process.counted <= snapshot.types[TYPE.key].revision <= process.counted + process.not_known
        assert len(snapshot.rules) == snapshot.types[TYPE.key].revision
        stored = {state.identifier async for state in fresh.devices.scan_devices()}
        assert set(process.put) <= stored <= {*process.put, *process.refused}


async def started(stack: AsyncExitStack, url: str, prefix: str) -> Process:
    """A new process, started again where it ends because Redis is not there yet, as a machine's supervisor would."""
    found: list[Process] = []

    async def starts() -> bool:
        with suppress(DependencyError):
            found.append(await stack.enter_async_context(process_of(url, prefix)))
        return bool(found)

    await eventually(starts, within_s=RESUMED_WITHIN_S, what="the start of a process")
    return found[0]


async def begin(process: Process) -> None:
    await process.catalogue.change(lambda _: [CatalogueChange(DocumentKind.DEVICE_TYPE, TYPE.key, TYPE)])


async def test_a_cluster_primary_that_is_killed_is_replaced_and_nothing_replicated_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_module, "STALE_SECONDS", 1.0)
    async with (
        served(redis_cluster(tmp_path)) as cluster,
        process_of(cluster.url, "ota") as writer,
        process_of(cluster.url, "ota") as reader,
    ):
        await begin(writer)
        victim = await primary_with(writer, cluster, writer.keys.meta)
        replicas = [server for server in cluster.servers if server not in cluster.primaries()]
        async with repeating(writer.change), repeating(writer.put_device):
            await eventually(lambda: writer.counted > 30 and len(writer.put) > 30, what="thirty changes")
            victim.kill()
            died_with = len(writer.put)
            await eventually(lambda: not reader.catalogue.healthy, what="the age of the snapshot")
            await replacement_of(victim, replicas)
            # Without a replica the new primary's writes would stay unconfirmed; the old one comes back as that.
            victim.restart()
            before = writer.counted
            await eventually(lambda: writer.counted > before, within_s=RESUMED_WITHIN_S, what="the first change")
            await eventually(lambda: writer.counted > before + 30, within_s=10, what="thirty more changes")
            await eventually(lambda: reader.catalogue.healthy, within_s=RESUMED_WITHIN_S, what="the refresh")
            # Devices of the other two primaries were written all the time.
            assert len(writer.put) > died_with
        await eventually(
            lambda: reader.catalogue.current.revision == writer.catalogue.current.revision,
            within_s=RESUMED_WITHIN_S,
            what="the reader's return",
        )
        await check_that_nothing_replicated_is_missing(writer, cluster.url)


async def test_while_one_cluster_primary_is_dead_the_others_serve(tmp_path: Path) -> None:
    async with served(redis_cluster(tmp_path)) as cluster, process_of(cluster.url, "ota") as process:
        for server in cluster.servers:
            server.ask("CONFIG", "SET", "cluster-replica-no-failover", "yes")  # nobody takes over while this looks
        victim = await primary_with(process, cluster, process.keys.meta)
        names = [f"d{number}" for number in range(60)]
        holders = {
            name: await primary_with(process, cluster, process.keys.devices(process.keys.bucket_of(name)))
            for name in names
        }
        victim.kill()
        took: list[float] = []
        for number, name in enumerate(names):
            started = time.monotonic()
            await process.put_device(number)
            if holders[name] is not victim:
                took.append(time.monotonic() - started)
        assert set(process.put) == {name for name in names if holders[name] is not victim}
        assert 10 < len(took) < 60
        assert median(took) < 0.1


async def test_a_primary_behind_sentinels_that_is_killed_is_replaced_and_nothing_replicated_is_lost(
    tmp_path: Path,
) -> None:
    async with (
        served(watched_redis(tmp_path)) as watched,
        process_of(watched.url, "ota", replicas=2) as writer,
        process_of(watched.url, "ota") as reader,
    ):
        await begin(writer)
        victim = await primary_with(writer, watched, writer.keys.meta)
        async with repeating(writer.change), repeating(writer.put_device):
            await eventually(lambda: writer.counted > 30 and len(writer.put) > 30, what="thirty changes")
            watched.sentinels[0].kill()  # the first that the URL names; two are enough
            victim.kill()
            await replacement_of(victim, watched.servers)
            writer.wait_for_replicas(1)  # there is one left
            before = writer.counted
            await eventually(lambda: writer.counted > before, within_s=RESUMED_WITHIN_S, what="the first change")
            await eventually(lambda: writer.counted > before + 30, within_s=10, what="thirty more changes")
        await eventually(
            lambda: reader.catalogue.current.revision == writer.catalogue.current.revision,
            within_s=RESUMED_WITHIN_S,
            what="the reader's return",
        )
        await check_that_nothing_replicated_is_missing(writer, watched.url)


async def test_a_primary_behind_sentinels_that_hangs_is_left_and_does_not_come_between_when_it_wakes(
    tmp_path: Path,
) -> None:
    async with served(watched_redis(tmp_path)) as watched, process_of(watched.url, "ota", replicas=2) as writer:
        await begin(writer)
        victim = await primary_with(writer, watched, writer.keys.meta)
        async with repeating(writer.change):
            await eventually(lambda: writer.counted > 10, what="ten changes")
            victim.stall()
            try:
                new = await replacement_of(victim, watched.servers)
                writer.wait_for_replicas(1)  # there is one left
                before = writer.counted
                await eventually(lambda: writer.counted > before + 10, within_s=10, what="ten more changes")
            finally:
                victim.resume()
            # It calls itself primary until the Sentinels tell it otherwise, some ten seconds later.
            before = writer.counted
            await eventually(lambda: writer.counted > before + 10, what="ten more changes")
        assert (await primary_with(writer, watched, writer.keys.meta)) is new
        await check_that_nothing_replicated_is_missing(writer, watched.url)


async def test_a_write_to_a_demoted_primary_goes_to_the_new_one_once(tmp_path: Path) -> None:
    async with served(watched_redis(tmp_path, replicas=1)) as watched, process_of(watched.url, "ota") as process:
        await begin(process)
        assert isinstance(process.redis, RoutedRedis)
        primaries = process.redis.primaries
        (replica,) = (server for server in watched.servers if server not in watched.primaries())

        def mislead() -> None:
            """Believe what held before a failover."""
            primaries._adopt((SlotRange(0, 16_383, primaries.address_at("127.0.0.1", replica.port)),))

        mislead()
        await process.put_device(1)
        mislead()
        await process.change(1)
        mislead()
        assert await run_command(process.redis, "INCR", "plain") == 1
        assert (process.put, process.rules, process.not_known) == (["d1"], ["R1"], 0)
        await check_that_nothing_replicated_is_missing(process, watched.url)


async def test_a_single_redis_that_became_a_replica_is_connected_to_anew(tmp_path: Path) -> None:
    async with served(watched_redis(tmp_path, replicas=1)) as watched:
        (primary,) = watched.primaries()
        for sentinel in watched.sentinels:
            sentinel.kill()
        client = connect_redis(f"redis://127.0.0.1:{primary.port}")
        devices = RedisDevices(client, await open_layout(client))
        await devices.put_device("d", "tracker", None)
        number = int(str(await run_command(client, "CLIENT", "ID")))
        (replica,) = (server for server in watched.servers if server is not primary)
        primary.ask("REPLICAOF", "127.0.0.1", replica.port)
        with pytest.raises(DependencyError, match="READONLY"):
            await devices.put_device("d", "tracker", {"version": "1"})
        # Behind a managed Redis's name there may be another server by now.
        assert int(str(await run_command(client, "CLIENT", "ID"))) > number
        number = int(str(await run_command(client, "CLIENT", "ID")))
        with pytest.raises(ReadOnlyError):
            await run_command(client, "SET", "k", "1")
        assert int(str(await run_command(client, "CLIENT", "ID"))) > number
        primary.ask("REPLICAOF", "NO", "ONE")
        await devices.put_device("d", "tracker", {"version": "1"})
        await client.aclose()


async def test_sentinels_that_are_not_there_or_disagree_name_nobody(tmp_path: Path) -> None:
    client = connect_redis("redis+sentinel://127.0.0.1:1,127.0.0.1:2/ota")
    with pytest.raises(DependencyError):
        await open_layout(client)
    await client.aclose()
    async with served(watched_redis(tmp_path, replicas=0)) as watched:
        client = connect_redis(watched.url.replace("/ota", "/other"))
        with pytest.raises(DependencyError, match="names no primary of 'other'"):
            await open_layout(client)
        await client.aclose()
        # One Sentinel that still holds to a primary of its own is outvoted.
        (primary,) = watched.servers
        misled = watched.sentinels[0]
        misled.ask("SENTINEL", "REMOVE", "ota")
        misled.ask("SENTINEL", "MONITOR", "ota", "127.0.0.1", misled_port(watched, primary), 1)
        primaries = Primaries(watched.url)
        await primaries.refresh()
        assert (await primaries.locate()).port == primary.port


def misled_port(watched: Deployment, primary: Server) -> int:
    """A server that is there and no primary of this deployment: one of the Sentinels."""
    return next(sentinel.port for sentinel in watched.sentinels if sentinel.port != primary.port)
