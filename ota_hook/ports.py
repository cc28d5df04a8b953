"""What the shells need from outside, as Protocols. Adapters and test doubles implement them; bootstrap.py joins."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ota_hook._device_set import DeviceSet
from ota_hook.errors import DependencyError
from ota_hook.model import CatalogueChange, DeviceState, OpenOffer, Outcome, Package, SettledOffer
from ota_hook.progress import Said
from ota_hook.snapshot import Snapshot
from ota_hook.task import FirmwareStop, Pacing, Run, RunDevice, RunHead, RunMove, RunState, Task


class SnapshotSource(Protocol):
    """The catalogue in force in this process. Reading it is free; it is swapped whole, never changed in place."""

    @property
    def current(self) -> Snapshot: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a device reported: its usable versions, when the broker got them, and the type its topic names, if any.

    `register`: an unknown device is registered under `topic_type`.
    """

    device: str
    versions: Mapping[str, str]
    reported_at_ms: int
    topic_type: str | None = None
    register: bool = False


DeviceDone = Callable[["DeviceState | DependencyError | None"], None]
"""Gets the device, None where it is not registered, or the error where Redis did not answer within the budget."""


class DeviceStates(Protocol):
    """What the hook asks of devices. Nothing waits: `done` is called once, within the answer budget."""

    def load_device(self, identifier: str, done: DeviceDone) -> None:
        """Find the device, without its open offers."""
        ...

    def store_report(self, report: Report, kept_by_type: Mapping[str, frozenset[str]], done: DeviceDone) -> None:
        """Keep each version that the device's type keeps and that is not older than what is stored, atomically.

        `kept_by_type` is the catalogue's version attributes per type key. A device of another type than the topic's
        is left alone, as if it were unknown. A report that changes nothing writes nothing. `done` gets the state after
        the report with the device's open offers.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredDevice:
    """A device with its open offers, and the digest of its stored state (40 hex digits): another state, another digest.

    Open offers are no part of the digest.
    """

    state: DeviceState
    digest: str


@dataclass(frozen=True, slots=True)
class ExpectedDevice:
    """What a write to a device must find. None: nothing is expected. `"*"` among the digests: any state.

    `digests`: the device exists with one of them. `other_than`: it does not exist with one of them.
    """

    digests: tuple[str, ...] | None = None
    other_than: tuple[str, ...] | None = None


ANY_DEVICE: Final = ExpectedDevice()


class DeviceEntry(NamedTuple):
    """A device to create or replace. `versions` or `tags` None keeps what is stored of them."""

    identifier: str
    device_type: str
    versions: Mapping[str, str] | None = None
    tags: tuple[str, ...] | None = None


class ImportedBatch(NamedTuple):
    """How many devices were created and replaced, and which were not: what is stored of them can't be read or kept."""

    created: int
    replaced: int
    unreadable: tuple[str, ...] = ()


class DeviceImport(Protocol):
    """Many devices, batch after batch; all of it may be done again. Raises DependencyError."""

    async def write(self, devices: Sequence[DeviceEntry]) -> ImportedBatch:
        """Create or replace them, in their order."""
        ...

    async def confirm(self) -> None:
        """Return when all that was written is as safe as any other write of an operator."""
        ...


class DeviceStore(Protocol):
    """Devices, for operators. Every method raises DependencyError where Redis does not answer.

    A device whose record can't be read is left out of what is about many; what is about it raises ConflictError. To put
    it with versions, or to delete it, mends it.
    A write that finds another device than `expected` changes nothing and raises ConflictError with `stale`; it looks
    and writes atomically.
    """

    async def load_device(self, identifier: str) -> DeviceState | None:
        """The device with its open offers, or None where it is not registered."""
        ...

    async def load_devices(self, identifiers: Sequence[str]) -> list[DeviceState | None]:
        """`load_device` for many."""
        ...

    async def load_presence(self, identifiers: Sequence[str]) -> list[bool]:
        """Whether each is connected, as far as the hook was told."""
        ...

    async def load_stored(self, identifier: str) -> StoredDevice | None:
        """`load_device` with the digest of the state."""
        ...

    async def put_device(
        self,
        identifier: str,
        device_type: str,
        versions: Mapping[str, str] | None,
        tags: tuple[str, ...] | None = None,
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> bool:
        """Create or replace (admin). `versions` or `tags` None keeps what is stored. Returns whether it was created."""
        ...

    async def delete_device(self, identifier: str, *, expected: ExpectedDevice = ANY_DEVICE) -> bool:
        """Forget the device, its open offers and its history. Returns whether it existed."""
        ...

    async def create_device(
        self, identifier: str, device_type: str, versions: Mapping[str, str], tags: tuple[str, ...] = ()
    ) -> bool:
        """Create it, atomically (admin). False and nothing written where it exists."""
        ...

    async def patch_device(
        self,
        identifier: str,
        device_type: str | None,
        versions: Mapping[str, str | None],
        tags: tuple[str, ...] | None = None,
        *,
        expected: ExpectedDevice = ANY_DEVICE,
    ) -> StoredDevice | None:
        """Change the type and all tags (None keeps each), and only the named versions (None removes one), atomically.

        Returns the state after it, None for an unknown device.
        """
        ...

    async def count_unknown(self, identifiers: Sequence[str]) -> int:
        """How many of them are not registered, pipelined."""
        ...

    async def begin_import(self) -> DeviceImport: ...

    def scan_buckets(self, first: int = 0) -> AsyncGenerator[tuple[int, bytes]]:
        """Every device in the buckets from `first` on: a bucket's number and its packed blob, for compiled code.

        A bucket is read at one moment; empty ones are left out.
        """
        ...

    def scan_devices(
        self,
        *,
        device_type: str | None = None,
        tag: str | None = None,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> AsyncIterator[DeviceState]:
        """Every device (of that type, with that tag), bucket by bucket, in no useful order; without open offers.

        A record that can't be read is left out; `on_unreadable` is told its identifier, "" for a whole bucket.
        """
        ...

    async def page_devices(
        self, *, cursor: str | None, limit: int, device_type: str | None = None, tag: str | None = None
    ) -> tuple[list[DeviceState], str | None]:
        """A page and the cursor of the next (None at the end). An unreadable cursor raises InputError."""
        ...


class OpenOffers(Protocol):
    """What the hook notes of offers. Nothing waits: a note leaves with the next batch, and a kill may lose it."""

    def record_offer(self, identifier: str, offer: OpenOffer) -> None:
        """Open `offer`; the same firmware again adds its command id (the last four stay), another is superseded."""
        ...

    def settle_offer(
        self, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int
    ) -> None:
        """Close the open offer of that module and firmware. Nothing happens where it was closed already."""
        ...

    def track_offer(self, identifier: str, said: Said, *, at_ms: int) -> None:
        """Bring the open offer that was spoken of further, or close it; an outcome never goes back.

        `offered` with a code notes that code and changes no outcome. Where no such offer is open nothing happens.
        """
        ...


class Presence(Protocol):
    """Who is connected. Nothing waits; a note may be lost. `connection` names one connection of the device."""

    def come(self, identifier: str, connection: str, *, at_ms: int) -> None:
        """The device is connected; the runs whose command did not reach it are told. Unknown devices are not noted."""
        ...

    def go(self, identifier: str, connection: str) -> None:
        """That connection ended; another that the device has by now stays."""
        ...


class OfferStore(Protocol):
    """A device's last outcomes and counters per firmware, for operators. Raises DependencyError."""

    async def cancel_offers(self, firmware_id: str, *, settled_at_ms: int) -> int:
        """Close every open offer of a firmware as cancelled (its deletion). Returns how many; idempotent."""
        ...

    async def record_offers(self, offers: Sequence[tuple[str, OpenOffer]]) -> list[bool]:
        """Open offers of devices, as OpenOffers.record_offer does. False for a device that is not registered."""
        ...

    async def settle_offers(
        self, offers: Sequence[tuple[str, OpenOffer]], outcome: Outcome, *, code: str = "", settled_at_ms: int
    ) -> list[bool]:
        """Close open offers of devices, each where it is of that module, firmware and run; whether it was."""
        ...

    async def load_history(self, identifier: str) -> list[SettledOffer]:
        """The last 20 settled offers, newest first."""
        ...

    async def load_counters(self, firmware_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """Per firmware, how often each outcome happened."""
        ...


class CommandIds(Protocol):
    def next_id(self) -> int:
        """A positive integer below 2^53, unique in the deployment. DependencyError where none is left in stock."""
        ...


class CommandIdBlocks(Protocol):
    async def take_block(self, count: int) -> int:
        """The first of `count` command ids that nobody else has (at most 8,192). DependencyError."""
        ...


class Catalogue(Protocol):
    """Device types, rules and firmware with optimistic concurrency.

    A change function gets the newest snapshot, checks what it must (raising NotFound, ConflictError, InputError) and
    returns the changes; they are written atomically if the catalogue is still at that snapshot's revision, else the
    function runs again on the newer one. When `change` returns, Redis has confirmed the write (WAITAOF where it can)
    and `current` of this process shows it.
    """

    @property
    def current(self) -> Snapshot: ...

    async def change(self, decide: Callable[[Snapshot], Sequence[CatalogueChange]]) -> Snapshot: ...

    async def stage_device_list(self, identifiers: AsyncIterator[list[str]]) -> tuple[str, DeviceSet]:
        """Write a device list, given in pieces, under a new name: (name, members); the empty list's name is "".

        It expires within the hour unless a firmware document that names it is written by `change`; the list that a
        change leaves unnamed is dropped with it.
        """
        ...

    def read_device_list(self, name: str) -> AsyncGenerator[list[str]]:
        """The identifiers of a list in pieces, each once, in the order in which they were given.

        Of a list in `current` they are as many as its members: else it ends with ConflictError.
        """
        ...


class Message(NamedTuple):
    """What is published: a command's text, to one device's topic."""

    topic: str
    payload: bytes
    qos: int


class Publisher(Protocol):
    """Publishes to the broker. What one caller publishes to one topic arrives in that order."""

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish one command; returns when the broker took it (qos 1: its ack). Raises DependencyError."""
        ...

    async def publish_many(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        """Publish some hundred or thousand at once, far cheaper than one by one; returns when each has its result.

        The results stand in the order of the messages: None where the broker took it. Nothing is sent a second time;
        where an error has `maybe_written` the broker may have taken the message all the same.
        """
        ...


@dataclass(frozen=True, slots=True)
class Begun:
    """This request is the first under its key, or the first to be answered: run it, then `finish` or `abandon`.

    `new_id` is what it names its creation; `earlier_ids` are those of requests under the key that did not tell what
    became of them: what bears one of these was created by them.
    """

    key: str
    owner: str
    body_digest: str
    new_id: str = ""
    earlier_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """This request was answered before: answer the same."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class IdempotencyStore(Protocol):
    """Requests under an `Idempotency-Key`: run once, answered the same for 24 hours. All raise DependencyError."""

    async def begin(
        self, token_digest: str, route: str, key: str, body_digest: str, *, new_id: str = ""
    ) -> Begun | Replay:
        """Start a request, or find its answer. `route` is method and path; `new_id` what it names its creation.

        Raises InputError where the key was used with another body, ConflictError while the first request runs (a
        process that died frees it within a minute).
        """
        ...

    async def finish(self, begun: Begun, *, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Keep the answer for 24 hours."""
        ...

    async def abandon(self, begun: Begun, *, maybe_written: bool = False) -> None:
        """Forget the request (it failed and may be tried again under the same key); its `new_id` only where it
        certainly wrote nothing.
        """
        ...


class HookLiveness(Protocol):
    async def count_live(self) -> int:
        """How many hook processes' heartbeats are fresh. Raises DependencyError."""
        ...


class IncomingPackage(Protocol):
    """A package while its bytes arrive. Exactly one of `keep` and `discard` ends it."""

    @property
    def size_bytes(self) -> int: ...

    async def write(self, data: bytes) -> None:
        """Append. DependencyError where the store can't take it (a full disk)."""
        ...

    async def keep(self, filename: str) -> Package:
        """Make it durable under its firmware's id, read it back and compare. DependencyError: nothing was kept."""
        ...

    async def discard(self) -> None:
        """Leave nothing. Never raises; harmless after `keep`."""
        ...


class PackageReader(Protocol):
    """One open package. `read` may be called from one task at a time."""

    async def read(self, offset: int, size_bytes: int) -> bytes: ...

    async def close(self) -> None: ...


class PackageStore(Protocol):
    """The bytes of firmware by firmware id. Names that users gave are data here, never paths."""

    async def receive(self, firmware_id: str) -> IncomingPackage:
        """Begin a package. DependencyError where the store can't take one."""
        ...

    async def open(self, firmware_id: str) -> PackageReader:
        """Raises DependencyError where its bytes are missing or can't be read."""
        ...

    async def remove(self, firmware_id: str) -> None:
        """Remove it; one that is not there is no error."""
        ...


# ---- pushes


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task, and its bytes as they are stored: what a write expects to find."""

    task: Task
    stored: bytes


class SkippedDue(NamedTuple):
    """A due time at which no run was made."""

    due_at_ms: int
    reason: str


class RunMade(NamedTuple):
    """What came of making a run.

    `created`; `open`: `run_id` is the task's open run; `skipped`: a due time passed while one was open; `overtaken`:
    another worker claimed that due time; `changed`: the task is another now, or gone.
    """

    word: str
    run_id: str


class TaskStore(Protocol):
    """Tasks, when they are due, and making their runs. Raises DependencyError where Redis does not answer."""

    async def load_tasks(self) -> list[Task]:
        """Every task, by id. One that can't be read is left out and logged."""
        ...

    async def load_task(self, task_id: str) -> StoredTask | None: ...

    async def put_task(
        self, task: Task, *, expected: bytes, due_at_ms: int | None = None, keeps_due: bool = False
    ) -> None:
        """Write the task and when it is due next: at `due_at_ms` (None: never), or with `keeps_due` as it was.

        ConflictError (stale) where not `expected` is stored (b"": none).
        """
        ...

    async def delete_task(self, task_id: str, *, expected: bytes) -> None:
        """Forget the task; its runs stay. ConflictError as above."""
        ...

    async def load_due(self, *, before_ms: int, limit: int) -> list[tuple[str, int]]:
        """Tasks that are due, the earliest first, with the time."""
        ...

    async def load_due_times(self, task_ids: Sequence[str]) -> list[int | None]:
        """When each is due next."""
        ...

    async def load_open_runs(self, task_ids: Sequence[str]) -> list[str | None]:
        """The open run of each."""
        ...

    async def load_skips(self, task_id: str) -> list[SkippedDue]:
        """The last 20, newest first."""
        ...

    async def create_run(
        self, head: RunHead, *, expected: bytes, now_ms: int, next_due_ms: int | None = None, skip: str = ""
    ) -> RunMade:
        """Make a run of the task as `expected`, and queue its planning. A task has one open run at most.

        Where `head.due_at_ms` is set, that due time is claimed and `next_due_ms` becomes the next one; with a reason in
        `skip` it is claimed and noted, and no run is made. Asked twice for one run id, it makes one run.
        """
        ...


class PlanPosition(NamedTuple):
    """How far the planning of a run is: its state, the place behind what was looked at, and the chunks so far."""

    state: RunState
    cursor: int
    chunks: int


class Taken(NamedTuple):
    """What a worker may send of a chunk. `word`: `taken`, `held` (by another), `stopped` or `done`.

    `again`: an earlier holder may have sent these; `devices` are new. All have their command ids and are `sending`.
    `wait_ms` says when to ask for more.
    """

    word: str
    wait_ms: int
    again: list[RunDevice]
    devices: list[RunDevice]


class RunStore(Protocol):
    """Runs: their records, counters and states. Raises DependencyError where Redis does not answer."""

    async def load_open(self) -> list[RunHead]:
        """The runs that are not closed."""
        ...

    async def load_run(self, run_id: str) -> Run | None: ...

    async def page_runs(self, *, task_id: str | None, before: str | None, limit: int) -> tuple[list[Run], str | None]:
        """Runs (of a task), newest first, behind the run `before`; and what to pass for the next page."""
        ...

    async def read_chunk(self, run_id: str, chunk: int) -> list[RunDevice]: ...

    async def count_chunks(self, run_id: str) -> int: ...

    async def begin_plan(self, head: RunHead, *, now_ms: int) -> PlanPosition:
        """Begin to plan, or find out how far it is. Planning goes on only in the state `planning`."""
        ...

    async def add_chunk(
        self, run_id: str, devices: Sequence[RunDevice], *, before: PlanPosition, cursor: int
    ) -> PlanPosition | None:
        """Add devices, all there are up to `cursor`. None and nothing written where planning is not at `before`."""
        ...

    async def end_plan(self, run_id: str, position: PlanPosition, *, now_ms: int) -> bool:
        """All was looked at: the run runs; one without devices is completed."""
        ...

    async def queue_chunks(self, run_id: str, *, now_ms: int, stale_ms: int, most: int) -> list[int]:
        """Chunks to put into the queue: so that `most` are in it, those that nobody touched for `stale_ms` again."""
        ...

    async def take(
        self,
        run_id: str,
        chunk: int,
        *,
        worker: str,
        now_ms: int,
        lease_ms: int,
        first_id: int,
        most: int,
        pacing: Pacing,
        stop_after: int,
        stop_percent: int,
        is_first: bool,
    ) -> Taken:
        """Borrow a chunk (again) for `lease_ms` and take devices of it. Command ids are `first_id` and those behind.

        With `stop_after` above 0 no more devices are under way than twice the greater of it and of what succeeded, and
        the run is stopped as by `stop_if_it_fails`.
        """
        ...

    async def mark_sent(
        self, run_id: str, chunk: int, devices: Sequence[RunDevice], *, now_ms: int, timeout_ms: int
    ) -> None:
        """What became of devices that were `sending`, with their firmware as it was sent; a planned one waits again."""
        ...

    async def move(self, run_id: str, chunk: int, devices: Sequence[RunDevice], *, now_ms: int) -> int:
        """Bring devices to later outcomes; what would lead back is ignored. Returns how many moved.

        One that failed or timed out is planned again where the run's task retries.
        """
        ...

    async def wake(self, run_id: str, *, now_ms: int) -> None:
        """Devices whose wait for a retry is over have something to be sent again."""
        ...

    async def note_undelivered(self, run_id: str, chunk: int, identifiers: Sequence[str]) -> None:
        """Their command did not reach them: they don't time out, they are waited for until the run expires."""
        ...

    async def send_again(self, run_id: str, chunk: int, identifiers: Sequence[str], *, now_ms: int) -> int:
        """Their command goes once more, with its id, where they are `offered` still. Returns how many."""
        ...

    async def load_due_chunks(self, run_id: str, *, now_ms: int, limit: int) -> list[int]:
        """Chunks in which a device may have timed out."""
        ...

    async def set_next_deadline(self, run_id: str, chunk: int, *, timeout_ms: int) -> None:
        """Look for the next device of the chunk that times out."""
        ...

    async def set_state(
        self, head: RunHead, wanted: RunState | None, *, of: Sequence[RunState], reason: str, now_ms: int
    ) -> tuple[bool, RunState]:
        """Change the state where it is one `of` these: whether, and what it was. None: what it was before a pause."""
        ...

    async def is_news(self, run_id: str, state: RunState) -> bool:
        """Whether nobody asked this before of that run and state: who did tells others."""
        ...

    async def stop_if_it_fails(self, run_id: str, *, stop_after: int, stop_percent: int) -> bool:
        """Stop the run where so many per cent of `stop_after` or more finished devices failed or timed out."""
        ...

    async def close(self, head: RunHead) -> None:
        """A run in a final state: the task may have another, and the records are kept for 90 days."""
        ...


class Work(NamedTuple):
    """A piece of work. `chunk` None: plan the run; else send to the devices of that chunk. `attempt` from 1."""

    entry: str
    run_id: str
    chunk: int | None
    attempt: int = 1


class DeadWork(NamedTuple):
    """Work that was given up."""

    at_ms: int
    run_id: str
    chunk: int | None
    reason: str


class RunEvents(Protocol):
    """What became of offers that belong to runs, as the hook and the admin role tell it. Raises DependencyError."""

    async def open(self) -> None: ...

    async def read(self, *, most: int, block_ms: int) -> list[tuple[str, RunMove]]:
        """Events that no other worker has, or that one had for too long; waits up to `block_ms` for some."""
        ...

    async def finish(self, entries: Sequence[str]) -> None: ...


class FirmwareStops(Protocol):
    """Firmware that fails, and what was stopped for it. Raises DependencyError."""

    async def load_failing(self) -> list[str]:
        """Firmware that failed somewhere since it was last `settle`d."""
        ...

    async def load_stops(self, firmware_ids: Sequence[str]) -> list[FirmwareStop | None]:
        """The last stop of each."""
        ...

    async def put_stop(self, firmware_id: str, stop: FirmwareStop) -> None: ...

    async def settle(self, firmware_id: str) -> None:
        """It was looked at; call it before its counters are read."""
        ...


class Notices(Protocol):
    """What people outside shall hear of. Raises DependencyError."""

    async def add(self, kind: str, facts: Mapping[str, object]) -> None:
        """Tell it, at least once, soon."""
        ...


class Notice(NamedTuple):
    """One notice. `attempt` counts from 1; `id` stays the same when it is told again."""

    id: str
    attempt: int
    body: dict[str, object]


class NoticeSource(Protocol):
    """Notices that were not told yet. Raises DependencyError."""

    async def read(self, *, most: int, block_ms: int) -> list[Notice]:
        """What is to be told now; one that is not finished comes again, half a minute later."""
        ...

    async def finish(self, notices: Sequence[Notice]) -> None:
        """They were told, or are given up."""
        ...


class Listener(Protocol):
    async def tell(self, notice_id: str, body: dict[str, object]) -> None:
        """Tell it once. DependencyError where it was not heard."""
        ...


class WorkQueue(Protocol):
    """What workers shall do; each piece is done at least once. Raises DependencyError."""

    async def open(self) -> None: ...

    async def add(self, run_id: str, chunk: int | None) -> None: ...

    async def claim(self, *, most: int, block_ms: int) -> list[Work]:
        """Work that nobody has, or that nobody renewed within the lease; waits up to `block_ms` for some."""
        ...

    async def renew(self, work: Sequence[Work]) -> None:
        """Say that this worker is still at it."""
        ...

    async def finish(self, work: Work) -> None: ...

    async def bury(self, work: Work, reason: str) -> None:
        """Give it up, visibly."""
        ...

    async def load_dead(self, *, limit: int) -> list[DeadWork]: ...
