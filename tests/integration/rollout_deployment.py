"""One deployment for the tests of workers: its stores on a real Redis, workers on it, and a double of the broker.

The broker notes each command, and devices answer it as real ones would, through the hook's store.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import orjson
import pytest
from redis.asyncio import Redis
from ulid import ULID

from ota_hook.decide import SettleOffer, decide_report
from ota_hook.dialect import BUILT_IN_DIALECTS, parse_dialect
from ota_hook.endings import end_tasks
from ota_hook.errors import DependencyError
from ota_hook.model import (
    CatalogueChange,
    DeviceType,
    DocumentKind,
    Firmware,
    Outcome,
    Package,
    Rule,
)
from ota_hook.ports.commands import Message
from ota_hook.ports.device_messages import Report
from ota_hook.ports.devices import DeviceEntry
from ota_hook.progress import Said
from ota_hook.rollout import sender as sender_module
from ota_hook.rollout import teller as teller_module
from ota_hook.rollout import worker as worker_module
from ota_hook.rollout.check_timer import CheckTimer
from ota_hook.rollout.keeper import Keeper
from ota_hook.rollout.planner import Planner
from ota_hook.rollout.scheduler import Scheduler
from ota_hook.rollout.sender import Sender, SendOptions
from ota_hook.rollout.watch import FirmwareWatch, StopRule
from ota_hook.rollout.worker import Worker
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.command_ids import RedisCommandIds
from ota_hook.state.devices import RedisDevices
from ota_hook.state.keys import Keys
from ota_hook.state.notices import RedisNotices
from ota_hook.state.offers import RedisOffers
from ota_hook.state.overdue import RedisOverdueOffers
from ota_hook.state.presence import RedisConnections
from ota_hook.state.run_events import RedisRunEvents
from ota_hook.state.runs import RedisRuns
from ota_hook.state.stops import RedisFirmwareStops
from ota_hook.state.tasks import RedisTasks
from ota_hook.state.turns import RedisTurn
from ota_hook.state.work import RedisWorkQueue
from ota_hook.task import Run, RunDevice, RunHead, RunState, Task
from tests.integration.hot_state import HotState, hot_state
from tests.integration.waiting import eventually

LEASE_MS = 600
ROUND_S = 0.1
"""Between two looks of a worker, here: so a test waits less for what shall happen, and for what shall not."""
CHECK_TIMEOUT_MS = 86_400_000
FIRMWARE = Firmware(
    id="01JFIRMWARE",
    name="tracker 2.0",
    device_type="tracker",
    version="2.0",
    package=Package(filename="t.bin", size_bytes=3, md5="m", sha256="s", crc32="c"),
)
TRACKER = DeviceType(key="tracker", name="Tracker")
RULE = Rule(id="01JRULE", name="check", device_type="tracker")
OPTIONS = SendOptions(dialect=parse_dialect("eztcloud", BUILT_IN_DIALECTS["eztcloud"]), http_base="http://ota")
TASK = Task(id="01JTASK", name="all", device_type="tracker", timeout_s=60)


@dataclass
class Broker:
    """A Publisher. `hold`: commands wait before they are taken; `away`: it takes none."""

    commands: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    away: bool = False
    on_command: Callable[[str, dict[str, object]], Awaitable[None]] | None = None

    async def publish_many(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        async def publish(message: Message) -> DependencyError | None:
            try:
                await self.publish(message.topic, message.payload, qos=message.qos)
            except DependencyError as exc:
                return exc
            return None

        return list(await asyncio.gather(*map(publish, messages)))

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        assert qos == 1
        if self.away:
            raise DependencyError("The broker is away.")
        command = orjson.loads(payload)
        device = topic.removeprefix("command_send/")
        self.commands.append((device, command))
        if self.hold is not None:
            await self.hold.wait()
        if self.on_command is not None:
            await self.on_command(device, command)

    @property
    def ids(self) -> dict[str, set[object]]:
        """The ids that each device was sent."""
        found: dict[str, set[object]] = {}
        for device, command in self.commands:
            found.setdefault(device, set()).add(command["id"])
        return found


class Deployment:
    """The stores of one deployment, and workers on it."""

    def __init__(self, redis: Redis, keys: Keys, catalogue: RedisCatalogue, hook: HotState) -> None:
        self.redis, self.keys, self.catalogue, self.hook = redis, keys, catalogue, hook
        self.devices = RedisDevices(redis, keys)
        self.offers = RedisOffers(redis, keys)
        self.tasks = RedisTasks(redis, keys)
        self.runs = RedisRuns(redis, keys)
        self.stops = RedisFirmwareStops(redis, keys)
        self.notices = RedisNotices(redis, keys, consumer="teller", again_ms=300)
        self.broker = Broker()
        self.shift_ms = 0
        self.knows_presence = False
        self.stop_rule = StopRule(50, 20)
        self.keepers: list[Keeper] = []
        self._workers: list[asyncio.Task[None]] = []

    def clock_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.shift_ms

    async def start_worker(self, name: str = "one") -> asyncio.Task[None]:
        queue = RedisWorkQueue(self.redis, self.keys, consumer=name, lease_ms=LEASE_MS)
        events = RedisRunEvents(self.redis, self.keys, consumer=name)
        await queue.open()
        await events.open()
        worker = Worker(
            queue=queue,
            lease_ms=LEASE_MS,
            runs=self.runs,
            events=events,
            planner=Planner(self.catalogue, self.devices, self.runs, clock_ms=self.clock_ms),
            sender=self.sender(name),
            keeper=self.keeper(queue),
            timer=self.check_timer(name),
            watch=FirmwareWatch(
                self.stop_rule,
                catalogue=self.catalogue,
                offers=self.offers,
                stops=self.stops,
                notices=self.notices,
                clock_ms=self.clock_ms,
            ),
            scheduler=Scheduler(self.tasks, new_id=lambda: str(ULID()), clock_ms=self.clock_ms),
            clock_ms=self.clock_ms,
        )
        task = asyncio.create_task(worker.run())
        self._workers.append(task)
        return task

    def sender(self, name: str) -> Sender:
        return Sender(
            OPTIONS,
            worker=name,
            lease_ms=LEASE_MS,
            snapshots=self.catalogue,
            devices=self.devices,
            offers=self.offers,
            runs=self.runs,
            command_ids=RedisCommandIds(self.redis, self.keys),
            publisher=self.broker,
            clock_ms=self.clock_ms,
        )

    async def plan(self, run_id: str) -> Run:
        """As a worker would that is killed then."""
        run = await self.run(run_id)
        assert await Planner(self.catalogue, self.devices, self.runs, clock_ms=self.clock_ms).plan(run.head)
        return run

    def keeper(self, queue: RedisWorkQueue) -> Keeper:
        keeper = Keeper(
            snapshots=self.catalogue,
            devices=self.devices,
            connections=RedisConnections(self.redis, self.keys) if self.knows_presence else None,
            offers=self.offers,
            runs=self.runs,
            queue=queue,
            notices=self.notices,
            clock_ms=self.clock_ms,
        )
        self.keepers.append(keeper)
        return keeper

    def check_timer(self, name: str) -> CheckTimer:
        return CheckTimer(
            RedisTurn(self.redis, self.keys.check_timer, holder=name, lease_ms=LEASE_MS),
            timeout_ms=CHECK_TIMEOUT_MS,
            snapshots=self.catalogue,
            devices=self.devices,
            offers=self.offers,
            overdue=RedisOverdueOffers(self.redis, self.keys),
            clock_ms=self.clock_ms,
        )

    async def stop(self) -> None:
        await end_tasks(self._workers)

    async def add_devices(self, count: int, *, version: str = "1.0", prefix: str = "d") -> list[str]:
        names = [f"{prefix}{number:05}" for number in range(count)]
        importing = await self.devices.begin_import()
        for start in range(0, count, 500):
            await importing.write(
                [DeviceEntry(name, "tracker", {"version": version}) for name in names[start : start + 500]]
            )
        return names

    async def run_now(self, task: Task = TASK, *, devices: tuple[str, ...] | None = None) -> str:
        stored = await self.tasks.load_task(task.id)
        if stored is None:
            await self.tasks.put_task(task, expected=b"", due_at_ms=None)
            stored = await self.tasks.load_task(task.id)
        assert stored is not None
        head = RunHead(id=str(ULID()), task=task, created_at_ms=self.clock_ms(), devices=devices)
        made = await self.tasks.create_run(head, expected=stored.stored, now_ms=self.clock_ms())
        assert made.word == "created"
        return made.run_id

    async def report(self, device: str, version: str) -> None:
        """The device says what it runs, and the hook settles what that proves."""
        state = await self.hook.stored(
            Report(device=device, versions={"version": version}, reported_at_ms=self.clock_ms()),
            self.catalogue.current.kept_by_type,
        )
        assert state is not None
        for decision in decide_report(state, ["version"], self.catalogue.current):
            assert isinstance(decision, SettleOffer)
            await self.hook.settle(
                device, decision.offer, decision.outcome, code=decision.code, settled_at_ms=self.clock_ms()
            )

    async def run(self, run_id: str) -> Run:
        run = await self.runs.load_run(run_id)
        assert run is not None
        assert sum(run.counters.values()) == run.total
        return run

    async def reached(self, run_id: str, state: RunState, *, within_s: float = 20) -> Run:
        return await self.until(run_id, lambda run: run.state is state, within_s=within_s)

    async def until(self, run_id: str, condition: Callable[[Run], bool], *, within_s: float = 20) -> Run:
        run = await self.run(run_id)

        async def holds() -> bool:
            nonlocal run
            run = await self.run(run_id)
            return condition(run)

        try:
            await eventually(holds, within_s=within_s)
        except AssertionError:
            raise AssertionError(f"the run is {run}") from None
        return run

    async def records(self, run_id: str) -> dict[str, RunDevice]:
        chunks = [await self.runs.read_chunk(run_id, n) for n in range(await self.runs.count_chunks(run_id))]
        found = list(itertools.chain(*chunks))
        assert len({device.identifier for device in found}) == len(found)
        return {device.identifier: device for device in found}

    async def edit(self, firmware: Firmware) -> None:
        await self.catalogue.change(lambda _: [CatalogueChange(DocumentKind.FIRMWARE, firmware.id, firmware)])


@asynccontextmanager
async def deployment(redis: Redis, keys: Keys, redis_url: str) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        catalogue = RedisCatalogue(redis, keys)
        await catalogue.start()
        stack.push_async_callback(catalogue.close)
        await catalogue.change(
            lambda _: [
                CatalogueChange(DocumentKind.DEVICE_TYPE, TRACKER.key, TRACKER),
                CatalogueChange(DocumentKind.RULE, RULE.id, RULE),
                CatalogueChange(DocumentKind.FIRMWARE, FIRMWARE.id, FIRMWARE),
            ]
        )
        hook = await stack.enter_async_context(hot_state(redis_url, keys))
        deployed = Deployment(redis, keys, catalogue, hook)
        stack.push_async_callback(deployed.stop)
        yield deployed


@pytest.fixture
async def deployed(
    redis: Redis, keys: Keys, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deployment]:
    monkeypatch.setattr(worker_module, "_ROUND_S", ROUND_S)
    monkeypatch.setattr(worker_module, "_BLOCK_MS", int(ROUND_S * 1_000))
    monkeypatch.setattr(sender_module, "_BROKER_PAUSE_S", ROUND_S)
    monkeypatch.setattr(teller_module, "_BLOCK_MS", int(ROUND_S * 1_000))
    async with deployment(redis, keys, redis_url) as running:
        yield running


async def some_rounds() -> None:
    """What a worker would do wrong, it would have done by then."""
    await asyncio.sleep(6 * ROUND_S)


def said(outcome: Outcome, code: str = "", *, command_id: int | None = None) -> Said:
    return Said(command_id, "main", outcome, code)
