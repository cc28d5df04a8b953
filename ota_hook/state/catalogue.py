"""The catalogue in Redis: implements ports.Catalogue and ports.SnapshotSource.

Owns the documents, the revision that counts their changes, and this process's snapshot of them. Each change has a random
token beside its revision: a Redis that came back with other data (an older copy, a lost second) is noticed even where the
number is the same, and a change whose answer was lost can be found again. Must not know what a document means: Snapshot
judges it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from ulid import ULID

from ota_hook.errors import ConfigurationError, ConflictError, DependencyError, InputError, OtaHookError
from ota_hook.model import CatalogueChange, DocumentKind, Firmware
from ota_hook.snapshot import RefusedDocument, Snapshot
from ota_hook.state.catalogue_scripts import APPLY, LOAD, LOAD_ALL
from ota_hook.state.connection import Argument, redis_errors
from ota_hook.state.device_lists import DeviceLists
from ota_hook.state.documents import Document, decode_document, encode_document
from ota_hook.state.durability import DurableWriter
from ota_hook.state.format import FORMAT
from ota_hook.state.keys import Keys, as_bytes, as_text

POLL_MS: Final = 500
"""How long to wait for news before the revision is looked at all the same."""
STALE_SECONDS: Final = 2.0
BACKOFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
CHANGE_ATTEMPTS: Final = 16
STREAM_LENGTH: Final = 1_000
"""About so many changes are kept: who is further behind loads all."""

_KINDS: Final = tuple(DocumentKind)
_DocumentKey = tuple[DocumentKind, str]
_log = structlog.get_logger("ota_hook.state.catalogue")


class RedisCatalogue:
    """ports.Catalogue and ports.SnapshotSource: this process's snapshot, kept fresh by a task of its own."""

    def __init__(self, redis: Redis, keys: Keys, *, writer: DurableWriter | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._writer = writer or DurableWriter(redis)
        self._lists = DeviceLists(redis, keys)
        self._touched: tuple[Argument, ...] = (keys.meta, keys.changes, *map(keys.documents, _KINDS))
        self._current = Snapshot()
        self._token = b""
        self._refused: dict[_DocumentKey, RefusedDocument] = {}
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
        return tuple(self._refused.values())

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
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def change(self, decide: Callable[[Snapshot], Sequence[CatalogueChange]]) -> Snapshot:
        """See ports.Catalogue. `decide` must be pure: it runs once per attempt.

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

    async def stage_device_list(self, identifiers: AsyncIterator[str]) -> tuple[str, int]:
        """See ports.Catalogue. InputError for more than a million."""
        return await self._lists.stage(identifiers)

    async def read_device_list(self, name: str) -> AsyncIterator[str]:
        """See ports.Catalogue. A list in force is read from memory; "" and one that is gone have no members."""
        members = self._current.device_lists.get(name)
        if members is not None:
            for identifier in members:
                yield identifier
        elif name:
            async with aclosing(self._lists.read(name)) as identifiers:
                async for identifier in identifiers:
                    yield identifier

    # ---- changing

    async def _try_change(self, changes: Sequence[CatalogueChange]) -> bool:
        """Write the changes if nobody was faster, and put them in force here."""
        base = self._current
        lists = await self._load_lists(changes)
        snapshot, refused = await asyncio.to_thread(
            base.with_changes, changes, revision=base.revision + 1, device_lists=lists
        )
        written = {(change.kind, change.key) for change in changes}
        for document in refused:
            if (document.kind, document.key) in written:
                raise InputError(f"The {document.kind.replace('_', ' ')} can't be used: {document.reason}.")
        token = str(ULID()).encode()
        applied, unconfirmed = await self._write(_apply_call(self._keys, self._touched, base, snapshot, self._token, token, changes))
        if not applied:
            return False
        kept = {place: document for place, document in self._refused.items() if place not in written}
        self._note_refused([*kept.values(), *refused])
        self._recheck_refused = bool(kept)
        self._current, self._token = snapshot, token
        if unconfirmed is not None:
            raise DependencyError(unconfirmed, mend="Look at what is there before you try again.")
        return True

    async def _write(self, call: Call, token: bytes) -> tuple[bool, str | None]:
        """Whether the change was applied (False: somebody was faster), and why that is not confirmed.

        A lost answer is asked for again: under the same token the script does nothing twice.
        """
        failure: DependencyError | None = None
        for pause in WRITE_PAUSES_SECONDS:
            await asyncio.sleep(pause)
            try:
                ((state, _),), unconfirmed = await self._writer.write(APPLY, [call])
                if state == b"list_gone":
                    raise ConflictError("The new device list expired before it was put to use.", mend="Send it again.")
                if state == b"applied":
                    return True, unconfirmed
                # Behind a lost answer, "stale" may mean that ours was written and then another.
                if failure is not None and await self._was_written(token):
                    return False, None
            except DependencyError as exc:
                failure = exc
            else:
                return False, None
        raise DependencyError(
            "It is not known whether the change was written: Redis failed meanwhile.", mend="Look before you try again."
        ) from failure
