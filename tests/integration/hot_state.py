"""The hook's side of state, awaited: where the hook is called back, a test waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ota_hook.errors import DependencyError
from ota_hook.identifiers import gateway_of
from ota_hook.model import ChildForm, DeviceState, OpenOffer, Outcome
from ota_hook.ports.device_messages import (
    ChildCame,
    ChildComing,
    ChildrenReported,
    ChildStates,
    DeviceStates,
    LoadedChildren,
    Report,
    StoredChildren,
)
from ota_hook.ports.devices import DeviceEntry, DeviceStore
from ota_hook.state.devices import DEFAULT_REFRESH_MS
from ota_hook.state.hot import HotCommandIds, HotDevices, HotOffers
from ota_hook.state.hot_children import HotChildren
from ota_hook.state.keys import Keys
from ota_hook.state.pipe import RedisPipe, Unavailable, pack
from ota_hook.state.pipes import PipeSet
from ota_hook.state.primaries import Primaries

T = TypeVar("T")

PATIENT_MS = 30_000
"""A budget that a busy machine does not use up: these tests are about what is stored."""
_TRIES = 50
_ROUNDS = 3
"""Of an offer: the script by its digest, then by its text, then the counter."""


@dataclass
class HotState:
    """The adapters on pipes of their own, as one hook process has them."""

    pipes: PipeSet
    keys: Keys
    devices: HotDevices
    offers: HotOffers
    children: HotChildren

    async def loaded(self, identifier: str) -> DeviceState | None:
        return await loaded(self.devices, identifier)

    async def stored(self, report: Report, kept_by_type: Mapping[str, frozenset[str]]) -> DeviceState | None:
        return await stored(self.devices, report, kept_by_type)

    async def record(self, identifier: str, offer: OpenOffer) -> None:
        """Return when Redis has the note and its count."""
        self.offers.record_offer(identifier, offer)
        await self.noted()

    async def settle(
        self, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str = "", settled_at_ms: int
    ) -> None:
        """Return when Redis has the note and its count."""
        self.offers.settle_offer(identifier, offer, outcome, code=code, settled_at_ms=settled_at_ms)
        await self.noted()

    async def noted(self) -> None:
        """Return when Redis has what was noted before. A pipe answers in order, so a PING behind a note is enough."""
        for _ in range(_ROUNDS):
            for pipe in self.all_pipes():
                assert await answered(pipe, "PING") in {"PONG", b"PONG"}

    def all_pipes(self) -> list[RedisPipe]:
        return list(self.pipes._by_address.values()) or [self.pipes._only]


@asynccontextmanager
async def hot_state(
    redis_url: str, keys: Keys, *, budget_ms: int = PATIENT_MS, refresh_ms: int = DEFAULT_REFRESH_MS
) -> AsyncIterator[HotState]:
    async with open_pipes(redis_url, budget_ms=budget_ms) as pipes:
        yield HotState(
            pipes,
            keys,
            HotDevices(pipes, keys, refresh_ms=refresh_ms),
            HotOffers(pipes, keys),
            HotChildren(pipes, keys, refresh_ms=refresh_ms),
        )


@asynccontextmanager
async def open_pipes(redis_url: str, *, budget_ms: int = PATIENT_MS) -> AsyncIterator[PipeSet]:
    primaries = Primaries(redis_url)
    pipes = PipeSet(primaries, budget_ms=budget_ms)
    try:
        await pipes.start()
        yield pipes
    finally:
        await pipes.close()
        await primaries.aclose()


async def loaded(devices: DeviceStates, identifier: str) -> DeviceState | None:
    """`load_device`, awaited; what `done` gets as an error is raised."""
    return await _answer_of(lambda done: devices.load_device(identifier, done))


async def loaded_offered(devices: DeviceStates, identifier: str) -> DeviceState | None:
    """`load_offered`, awaited."""
    return await _answer_of(lambda done: devices.load_offered(identifier, done))


async def stored(
    devices: DeviceStates, report: Report, kept_by_type: Mapping[str, frozenset[str]]
) -> DeviceState | None:
    """`store_report`, awaited; what `done` gets as an error is raised."""
    return await _answer_of(lambda done: devices.store_report(report, kept_by_type, done))


async def loaded_children(children: ChildStates, gateway: str, identifiers: Sequence[str]) -> LoadedChildren:
    """`load_children`, awaited."""
    return await _answer_of(lambda done: children.load_children(gateway, identifiers, done))


async def stored_children(
    children: ChildStates, report: ChildrenReported, kept_by_type: Mapping[str, frozenset[str]]
) -> StoredChildren:
    """`store_children`, awaited."""
    return await _answer_of(lambda done: children.store_children(report, kept_by_type, done))


async def children_came(
    children: ChildStates, *coming: ChildComing, at_ms: int, topic_type: str | None = None
) -> Sequence[ChildCame]:
    """`children_came`, awaited, said by the children's own gateway."""
    gateway = gateway_of(coming[0].identifier)
    return await _answer_of(
        lambda done: children.children_came(gateway, coming, topic_type=topic_type, at_ms=at_ms, done=done)
    )


async def child_came(
    children: ChildStates, identifier: str, form: ChildForm, *, product: str | None, at_ms: int
) -> ChildCame:
    """`children_came` of one child, awaited."""
    (came,) = await children_came(children, ChildComing(identifier, form, product), at_ms=at_ms)
    return came


async def answered(pipe: RedisPipe, *command: str | bytes | int) -> Any:
    """One command's reply, or what stands for it."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    pipe.submit(pack(command), answer.set_result)
    return await answer


async def next_id(ids: HotCommandIds, pipe: RedisPipe) -> int:
    """The next id. Where a block is still on its way the pipe is asked until it has come, or others took it again."""
    for _ in range(_TRIES):
        try:
            return ids.next_id()
        except DependencyError:
            assert not isinstance(await answered(pipe, "PING"), Unavailable)
    return ids.next_id()


async def imported(devices: DeviceStore, batch: Iterable[tuple[Any, ...]]) -> tuple[int, int]:
    """One import of (identifier, type, versions, tags), confirmed; (created, replaced)."""
    run = await devices.begin_import()
    done = await run.write([DeviceEntry(*entry) for entry in batch])
    await run.confirm()
    assert done.unreadable == ()
    return done.created, done.replaced


async def _answer_of(ask: Callable[[Callable[[T | DependencyError], None]], None]) -> T:
    """What `done` gets; an error is raised."""
    future: asyncio.Future[T | DependencyError] = asyncio.get_running_loop().create_future()
    ask(future.set_result)  # a second call would raise
    answer = await future
    if isinstance(answer, DependencyError):
        raise answer
    return answer
