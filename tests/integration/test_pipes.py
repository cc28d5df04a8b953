"""The hook's pipes on deployments whose primaries change: a Cluster's, and those that Sentinels name."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from ota_hook.errors import DependencyError
from ota_hook.model import DeviceState
from ota_hook.ports.device_messages import Report
from ota_hook.state import pipes as pipes_module
from ota_hook.state.connection import connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.format import open_layout
from ota_hook.state.hot import HotCommandIds
from ota_hook.state.pipes import PipeSet
from ota_hook.state.primaries import SLOTS, Primaries, SlotRange
from tests.integration.hot_state import HotState, hot_state, imported
from tests.integration.redis_deployments import Deployment, Server, redis_cluster, served, single_redis, watched_redis
from tests.integration.waiting import OwnTime, eventually, running_beside

pytestmark = pytest.mark.alone

KEPT = {"tracker": frozenset({"version"})}
BUDGET_MS = 1_000
"""Above what a busy machine adds to a server's answer, below the silence after which a primary is replaced."""
FOLLOWED_WITHIN_S = 40.0
"""Sentinels that were held up themselves first wait for thirty seconds."""
NAMES = [f"d{number}" for number in range(60)]


@dataclass
class Hook:
    """One hook process, and devices that report all the time: what each was told last, and how often it failed."""

    state: HotState
    ids: HotCommandIds
    devices: RedisDevices
    time: OwnTime
    told: dict[str, str] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    rounds: int = 0

    def holder(self, deployment: Deployment, name: str) -> Server:
        """The primary that the pipes have for a device."""
        key = self.state.keys.devices(self.state.keys.bucket_of(name))
        slot = Primaries.key_slot(key.encode())
        ranges = self.state.pipes._primaries.slots()
        return deployment.at(next(found.address.port for found in ranges if found.first <= slot <= found.last))

    async def report(self, name: str) -> None:
        version, began_s = f"1.{self.rounds}", self.time.seconds
        try:
            state = await self.state.stored(
                Report(device=name, versions={"version": version}, reported_at_ms=self.rounds + 1), KEPT
            )
        except DependencyError:
            self.failed[name] += 1
        else:
            assert isinstance(state, DeviceState)
            self.told[name] = version
        self.longest_s = max(self.longest_s, self.time.seconds - began_s)

    async def keep_reporting(self) -> None:
        while True:
            await asyncio.gather(*map(self.report, NAMES))
            self.rounds += 1
            await asyncio.sleep(0.01)

    def all_are_told(self) -> bool:
        """Whether each device's last report succeeded, not long ago."""
        return all(int(self.told[name].partition(".")[2]) >= self.rounds - 1 for name in NAMES)


@asynccontextmanager
async def hooked(deployment: Deployment) -> AsyncIterator[Hook]:
    async with AsyncExitStack() as stack:
        client = connect_redis(deployment.url)
        stack.push_async_callback(client.aclose)
        keys = await open_layout(client, buckets=64)
        devices = RedisDevices(client, keys)
        await imported(devices, [(name, "tracker", None) for name in NAMES])
        state = await stack.enter_async_context(hot_state(deployment.url, keys, budget_ms=BUDGET_MS))
        ids = HotCommandIds(state.pipes, keys, block=10)
        ids.start()
        stack.callback(ids.close)
        hook = Hook(state, ids, devices, await stack.enter_async_context(OwnTime.kept()))
        await stack.enter_async_context(running_beside(hook.keep_reporting()))
        await eventually(lambda: hook.rounds >= 3, what="three rounds of reports")
        assert hook.failed.total() == 0
        yield hook


async def await_return(hook: Hook) -> None:
    """Every device is told again, what was told is stored, and ids go on."""
    rounds = hook.rounds
    await eventually(lambda: hook.rounds > rounds + 3, within_s=FOLLOWED_WITHIN_S, what="more rounds")
    await eventually(hook.all_are_told, within_s=FOLLOWED_WITHIN_S, what="the return of every device")
    for name in NAMES:
        told = hook.told[name]
        await eventually(partial(_is_stored, hook, name, told), within_s=FOLLOWED_WITHIN_S, what=f"{name} at {told}")
    taken: set[int] = set()
    for _ in range(25):
        await eventually(lambda: _take(hook.ids, taken), what="an id")
    assert len(taken) == 25


async def _is_stored(hook: Hook, name: str, told: str) -> bool:
    try:
        state = await hook.state.loaded(name)
    except DependencyError:  # for a moment after its return no device is read
        return False
    assert state is not None
    return int(state.versions["version"].text.partition(".")[2]) >= int(told.partition(".")[2])


def _take(ids: HotCommandIds, taken: set[int]) -> bool:
    try:
        number = ids.next_id()
    except DependencyError:
        return False
    assert number not in taken
    taken.add(number)
    return True


@pytest.mark.parametrize("how", ["killed", "stalled"])
async def test_a_cluster_primary_that_is_gone_is_followed_and_the_others_devices_notice_nothing(
    tmp_path: Path, how: str
) -> None:
    async with served(redis_cluster(tmp_path)) as cluster, hooked(cluster) as hook:
        victim = hook.holder(cluster, NAMES[0])
        touched = {name for name in NAMES if hook.holder(cluster, name) is victim}
        assert 0 < len(touched) < len(NAMES)
        if how == "killed":
            victim.kill()
        else:
            victim.stall()
        await eventually(lambda: hook.failed.keys() >= touched, within_s=FOLLOWED_WITHIN_S, what="failures")
        assert not hook.state.pipes.available
        try:
            await eventually(
                lambda: all(hook.holder(cluster, name) is not victim for name in NAMES),
                within_s=FOLLOWED_WITHIN_S,
                what="the failover",
            )
            await await_return(hook)
            assert hook.failed.keys() == touched
            assert hook.state.pipes.available
            assert hook.longest_s < BUDGET_MS / 1000 + 0.3
        finally:
            if how == "stalled":
                victim.resume()


async def test_a_slot_that_moved_is_followed_at_once_and_costs_no_other_device_a_report(tmp_path: Path) -> None:
    async with served(redis_cluster(tmp_path)) as cluster, hooked(cluster) as hook:
        source = hook.holder(cluster, NAMES[0])
        keys = hook.state.keys
        bucket = keys.bucket_of(NAMES[0])
        slot = Primaries.key_slot(keys.devices(bucket).encode())
        moved = {name for name in NAMES if keys.bucket_of(name) == bucket}
        target = next(server for server in cluster.primaries() if server is not source)

        def move() -> None:
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id())
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id())
            while found := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
                assert isinstance(found, list)
                source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *found)
            for server in (target, source, *cluster.primaries()):
                server.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id())

        connections = {id(pipe): pipe.connections for pipe in hook.state.all_pipes()}
        await asyncio.to_thread(move)
        took_s = await eventually(
            lambda: hook.holder(cluster, NAMES[0]) is target, within_s=FOLLOWED_WITHIN_S, what="following"
        )
        assert took_s < 2
        await await_return(hook)
        assert hook.failed.keys() <= moved
        assert {id(pipe): pipe.connections for pipe in hook.state.all_pipes()} == connections


async def test_a_primary_behind_sentinels_that_is_killed_is_followed(tmp_path: Path) -> None:
    async with served(watched_redis(tmp_path)) as watched, hooked(watched) as hook:
        (victim,) = watched.primaries()
        victim.kill()
        await eventually(lambda: len(hook.failed) == len(NAMES), within_s=FOLLOWED_WITHIN_S, what="failures")
        assert not hook.state.pipes.available
        await eventually(lambda: hook.state.pipes.available, within_s=FOLLOWED_WITHIN_S, what="the new primary")
        await await_return(hook)
        assert hook.longest_s < BUDGET_MS / 1000 + 0.3


async def test_an_answer_that_no_node_should_give_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes_module, "_LOOK_S", 0.01)
    async with served(single_redis(tmp_path)) as server:
        primaries = Misled(f"redis+cluster://127.0.0.1:{server.port}")
        pipes = PipeSet(primaries, budget_ms=BUDGET_MS)
        await pipes.start()
        try:
            primaries.answer = ValueError("not a slot map")
            pipes._moved.set()
            await eventually(lambda: primaries.asked == 2, what="the look that fails")
            primaries.answer = None
            pipes._moved.set()
            await eventually(lambda: primaries.asked == 3, what="the next look")
            assert pipes.available
        finally:
            await pipes.close()


class Misled(Primaries):
    """One server has every slot; `answer` is what asking for them raises."""

    asked = 0
    answer: Exception | None = None

    async def refresh(self) -> None:
        self.asked += 1
        if self.answer is not None:
            raise self.answer
        self._adopt((SlotRange(0, SLOTS - 1, self.address_at(*self.url.nodes[0])),))
