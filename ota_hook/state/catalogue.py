"""The catalogue in Redis: implements ports.catalogue.Catalogue and ports.catalogue.SnapshotSource.

Owns the documents, the revision that counts their changes, and this process's snapshot of them. Each change has a
random token beside its revision: a Redis that came back with other data (an older copy, a lost second) is noticed even
where the number is the same, and a change whose answer was lost can be found again. Must not know what a document
means: Snapshot judges it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import structlog
from ulid import ULID

from ota_hook._device_set import DeviceSet
from ota_hook.endings import end_tasks
from ota_hook.errors import ConfigurationError, ConflictError, DependencyError, InputError, OtaHookError
from ota_hook.model import CatalogueChange, DocumentKind, Firmware
from ota_hook.snapshot import RefusedDocument, Snapshot
from ota_hook.state.catalogue_scripts import APPLY, LOAD, LOAD_ALL
from ota_hook.state.connection import Argument, Call, RedisClient, redis_errors, run_command, run_commands
from ota_hook.state.device_lists import DeviceLists, stored_bytes
from ota_hook.state.documents import Document, decode_document, encode_document
from ota_hook.state.durability import DurableWriter, maybe_written
from ota_hook.state.format import FORMAT, open_layout
from ota_hook.state.keys import Keys

POLL_MS: Final = 500
"""How long to wait for news before the revision is looked at all the same."""
STALE_SECONDS: Final = 5.0
BACKOFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
CHANGE_ATTEMPTS: Final = 16
STREAM_LENGTH: Final = 1_000
"""About so many changes are kept: who is further behind loads all."""

WRITE_PAUSES_SECONDS: Final = (0.0, 0.3)
"""Before each attempt to write one change; the second outlasts a restart of the embedded Redis."""

_LAST_OF_REVISION: Final = 2**64 - 1
_KINDS: Final = tuple(DocumentKind)
_Place = tuple[DocumentKind, str]
"""Where a document is: its kind and key."""

_Written = Literal["applied", "overtaken", "stale"]
_log = structlog.get_logger("ota_hook.state.catalogue")


class RedisCatalogue:
    """Catalogue and SnapshotSource of ports.catalogue: this process's snapshot, kept fresh by a task of its own."""

    def __init__(self, redis: RedisClient, keys: Keys, *, writer: DurableWriter | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer or DurableWriter(redis)
        self._lists = DeviceLists(redis, keys)
        self._touched: tuple[Argument, ...] = (keys.meta, keys.changes, *map(keys.documents, _KINDS))
        self._current = Snapshot()
        self._token = b""
        self._list_seed: bytes | None = None
        self._recheck_refused = False
        self._compared_at: float | None = None
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def current(self) -> Snapshot:
        """The snapshot in force; the empty one before `start`."""
        return self._current

    @property
    def refused(self) -> tuple[RefusedDocument, ...]:
        """Documents that can't be used; the last good ones are in force."""
        return tuple(self._current.refused.values())

    @property
    def healthy(self) -> bool:
        """Whether the snapshot was compared with Redis within the last five seconds."""
        return self.age_seconds < STALE_SECONDS

    @property
    def age_seconds(self) -> float:
        """Since the snapshot was last compared with Redis; infinite before it was."""
        return float("inf") if self._compared_at is None else time.monotonic() - self._compared_at

    async def start(self) -> None:
        """Load the catalogue and keep it fresh until `close`. Raises DependencyError where it can't be loaded."""
        async with self._lock:
            await self._refresh()
        self._task = asyncio.create_task(self._keep_fresh(), name="catalogue")

    async def close(self) -> None:
        """End the task. The snapshot stays as it is."""
        if self._task is not None:
            await end_tasks([self._task])
        self._task = None

    async def change(self, decide: Callable[[Snapshot], Sequence[CatalogueChange]]) -> Snapshot:
        """See ports.catalogue.Catalogue. `decide` must be pure: it runs once per attempt.

        InputError for a document that the snapshot refuses, before anything is written. DependencyError where Redis
        fails; its text says whether the change was written, or that this is not known.
        """
        for _ in range(CHANGE_ATTEMPTS):
            async with self._lock:
                await self._refresh()
                changes = tuple(decide(self._current))
                if not changes or await self._try_change(changes):
                    return self._current
        raise DependencyError("Others keep changing the catalogue; nothing was changed.", mend="Try again.")

    async def stage_device_list(self, identifiers: AsyncIterator[list[str]]) -> tuple[str, DeviceSet]:
        """See ports.catalogue.Catalogue. InputError for more than a million."""
        return await self._lists.stage(identifiers)

    def read_device_list(self, name: str) -> AsyncGenerator[list[str]]:
        """See ports.catalogue.Catalogue."""
        members = self._current.device_lists.get(name)
        return self._lists.read(name, None if members is None else len(members))

    async def load_packages_in_use(self) -> list[str]:
        """The ids of firmware that Redis has and that are not deleted, whether their documents can be used or not."""
        keys = (self._keys.meta, self._keys.changes, self._keys.documents(DocumentKind.FIRMWARE))
        with redis_errors("reading the catalogue"):
            _, (flat,) = await LOAD_ALL.run(self._redis, keys, ())
        return await asyncio.to_thread(_list_living, flat)

    # ---- changing

    async def _try_change(self, changes: Sequence[CatalogueChange]) -> bool:
        """Write the changes if nobody was faster, and put them in force here."""
        base = self._current
        lists = await self._load_lists(base, changes, self._list_seed)
        snapshot, refused = await asyncio.to_thread(
            base.with_changes, changes, revision=base.revision + 1, device_lists=lists
        )
        written = {(change.kind, change.key) for change in changes}
        for document in refused:
            if (document.kind, document.key) in written:
                raise InputError(f"The {document.kind.replace('_', ' ')} can't be used: {document.reason}.")
        token = str(ULID()).encode()
        became, unconfirmed = await self._write(self._apply_call(snapshot, token, changes), token)
        if became == "stale":
            return False
        if became == "overtaken":
            with maybe_written():
                await self._refresh()
            return True
        self._put_in_force(snapshot, token)
        # What was refused before may be usable beside what was written.
        self._recheck_refused = bool(snapshot.refused)
        if unconfirmed is not None:
            raise DependencyError(unconfirmed, mend="Look at what is there before you try again.", maybe_written=True)
        return True

    def _apply_call(self, snapshot: Snapshot, token: bytes, changes: Sequence[CatalogueChange]) -> Call:
        """What APPLY is given to get from the snapshot in force to `snapshot`."""
        base = self._current
        new = [name for name in snapshot.device_lists if name not in base.device_lists]
        keep = self._lists.keys_of(new)
        drop = self._lists.keys_of(name for name in base.device_lists if name not in snapshot.device_lists)
        keys = (*self._touched, *keep, *drop)
        arguments: list[Argument] = [
            base.revision,
            self._token,
            token,
            STREAM_LENGTH,
            len(keep),
            len(changes),
            len(_KINDS),
        ]
        for change in changes:
            arguments += (_KINDS.index(change.kind) + 1, _key_bytes(change.key), encode_document(change))
        arguments += (stored_bytes(snapshot.device_lists[name]) for name in new)
        return keys, arguments

    async def _write(self, call: Call, token: bytes) -> tuple[_Written, str | None]:
        """Run APPLY: what became of the change, and why that is not confirmed.

        A lost answer is asked for again: under the same token the script does nothing twice.
        """
        failure: DependencyError | None = None
        for pause in WRITE_PAUSES_SECONDS:
            await asyncio.sleep(pause)
            try:
                ((state, _),), unconfirmed = await self._writer.write(APPLY, [call])
            except DependencyError as exc:
                failure = exc
                continue
            if state == b"list_gone":
                raise ConflictError("The new device list expired or lost a part before its use.", mend="Send it again.")
            if state == b"applied":
                return "applied", unconfirmed
            # Behind a lost answer, ours may have been written and another after it.
            overtaken = failure is not None and await self._was_written(token)
            return ("overtaken" if overtaken else "stale"), None
        raise DependencyError(
            "It is not known whether the change was written: Redis failed meanwhile.",
            mend="Look at what is there before you try again.",
            maybe_written=True,
        ) from failure

    async def _was_written(self, token: bytes) -> bool:
        with maybe_written(), redis_errors("looking for a change"):
            entries = await run_command(self._redis, "XREVRANGE", self._keys.changes, "+", "-", "COUNT", STREAM_LENGTH)
        return any(entry[1].get(b"token") == token for entry in entries)

    # ---- keeping up

    async def _keep_fresh(self) -> None:
        """Wait for news, or a while; compare; for ever. A failure makes the snapshot older, never wrong."""
        failures = 0
        while True:
            try:
                if not failures:
                    await self._await_news()
                async with self._lock:
                    await self._refresh()
                if failures:
                    _log.info("catalogue_refreshed", revision=self._current.revision)
                failures = 0
            except Exception as exc:  # noqa: BLE001 - whatever it is, this process must go on comparing
                if not failures:
                    unforeseen = not isinstance(exc, OtaHookError)
                    _log.warning("catalogue_not_refreshed", problem=str(exc), exc_info=unforeseen)
                await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
                failures += 1

    async def _await_news(self) -> None:
        behind = f"{self._current.revision}-{_LAST_OF_REVISION}"
        with redis_errors("waiting for news of the catalogue"):
            stream = self._keys.changes
            await run_command(self._redis, "XREAD", "COUNT", 1, "BLOCK", POLL_MS, "STREAMS", stream, behind, key=stream)

    async def _refresh(self) -> None:
        """Bring the snapshot up to what Redis has. Holding the lock is the caller's business."""
        with redis_errors("reading the catalogue"):
            known = (self._current.revision, self._token, STREAM_LENGTH)
            head, how, rows = await LOAD.run(self._redis, self._touched, known)
            await self._check_layout(head)
            base, stored = self._current, _by_place(rows)
            if how == b"all" or head[4] != self._list_seed:
                head, hashes = await LOAD_ALL.run(self._redis, self._touched, ())
                if head[4] != self._list_seed:
                    # Digests of two seeds can't be compared: no list that is loaded is of use any more.
                    base = Snapshot()
                stored = _everything(base, hashes)
            elif how == b"some" or self._recheck_refused:
                # One that was refused may be usable now, if only for what came beside it.
                stored.update(await self._read_documents(base.refused))
        self._compared_at = time.monotonic()
        if stored or base is not self._current or (int(head[2]), head[3]) != (base.revision, self._token):
            await self._adopt(base, stored, head)

    async def _adopt(self, base: Snapshot, stored: Mapping[_Place, bytes | None], head: Sequence[Any]) -> None:
        """Put what is stored in force, on top of `base`."""
        changes, unreadable = await asyncio.to_thread(_decode, base, stored)
        lists = await self._load_lists(base, changes, head[4])
        snapshot, _ = await asyncio.to_thread(
            base.with_changes, changes, revision=int(head[2]), device_lists=lists, unreadable=unreadable
        )
        self._put_in_force(snapshot, head[3])
        self._list_seed = head[4]
        self._recheck_refused = False

    def _put_in_force(self, snapshot: Snapshot, token: bytes) -> None:
        for place, document in snapshot.refused.items():
            if self._current.refused.get(place) != document:
                _log.error("document_refused", kind=document.kind, key=document.shown_key, reason=document.reason)
        self._current, self._token = snapshot, token

    async def _read_documents(self, places: Iterable[_Place]) -> dict[_Place, bytes | None]:
        wanted = list(places)
        found = await run_commands(
            self._redis, [("HGET", self._keys.documents(kind), _key_bytes(key)) for kind, key in wanted]
        )
        return dict(zip(wanted, found, strict=True))

    async def _load_lists(
        self, base: Snapshot, changes: Iterable[CatalogueChange], seed: bytes | None
    ) -> dict[str, DeviceSet]:
        """The lists that these changes name and `base` does not have. One that can't be used is left out."""
        named = {_list_of(change.document) for change in changes}
        return await self._lists.load([name for name in named if name and name not in base.device_lists], seed)

    async def _check_layout(self, head: Sequence[bytes | None]) -> None:
        """Redis may have come back as another one: empty (its layout is made again), or laid out otherwise."""
        if head[0] == b"%d" % FORMAT and head[1] == b"%d" % self._keys.buckets:
            return
        if await open_layout(self._redis, prefix=self._keys.prefix, buckets=self._keys.buckets) != self._keys:
            raise ConfigurationError(
                "The data in Redis was replaced by data of another layout.", mend="Start this process again."
            )


def _decode(
    base: Snapshot, stored: Mapping[_Place, bytes | None]
) -> tuple[list[CatalogueChange], list[RefusedDocument]]:
    """The changes that these documents make to the snapshot, and those that can't be read."""
    changes, unreadable = [], []
    for (kind, key), raw in stored.items():
        try:
            document = decode_document(kind, key, raw) if raw is not None else None
        except ValueError as exc:
            unreadable.append(RefusedDocument(kind, key, str(exc)))
            continue
        if (kind, key) in base.refused or document != _documents(base, kind).get(key):
            changes.append(CatalogueChange(kind, key, document))
    return changes, unreadable


def _everything(base: Snapshot, hashes: Sequence[Sequence[bytes]]) -> dict[_Place, bytes | None]:
    """Every document that Redis has, and None for each that only the snapshot has."""
    stored: dict[_Place, bytes | None] = {(kind, key): None for kind in _KINDS for key in _documents(base, kind)}
    stored |= dict.fromkeys(base.refused)
    for kind, flat in zip(_KINDS, hashes, strict=True):
        stored |= {(kind, _key_text(key)): raw for key, raw in zip(flat[::2], flat[1::2], strict=True)}
    return stored


def _list_living(flat: Sequence[bytes]) -> list[str]:
    """Of keys and documents of firmware, the keys of those that are not certainly tombstones."""
    stored = ((_key_text(key), raw) for key, raw in zip(flat[::2], flat[1::2], strict=True))
    return [key for key, raw in stored if not _is_tombstone(key, raw)]


def _is_tombstone(key: str, raw: bytes) -> bool:
    try:
        document = decode_document(DocumentKind.FIRMWARE, key, raw)
    except ValueError:
        return False
    return isinstance(document, Firmware) and document.deleted_at_ms is not None


def _key_text(stored: bytes) -> str:
    """A document's key. One that is not UTF-8, and so none of ours, survives the way there and back."""
    return stored.decode("utf-8", "surrogateescape")


def _key_bytes(key: str) -> bytes:
    """What `_key_text` was given."""
    return key.encode("utf-8", "surrogateescape")


def _by_place(rows: Sequence[Any]) -> dict[_Place, bytes | None]:
    """What LOAD lists: kind (1-based), key, document, …"""
    return {
        (_KINDS[kind - 1], _key_text(key)): raw
        for kind, key, raw in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
    }


def _documents(snapshot: Snapshot, kind: DocumentKind) -> Mapping[str, Document]:
    match kind:
        case DocumentKind.DEVICE_TYPE:
            return snapshot.types
        case DocumentKind.RULE:
            return snapshot.rules
        case DocumentKind.FIRMWARE:
            return snapshot.firmware


def _list_of(document: Document | None) -> str | None:
    """The device list that a change to this document needs."""
    return document.device_list if isinstance(document, Firmware) and document.deleted_at_ms is None else None
