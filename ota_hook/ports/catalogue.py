"""The catalogue: read by everyone, changed by operators.

Owns how it is read and changed. Must not know how it is stored, or how a change comes to other processes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Protocol

from ota_hook._device_set import DeviceSet
from ota_hook.model import CatalogueChange
from ota_hook.snapshot import Snapshot


class SnapshotSource(Protocol):
    """The catalogue in force in this process. Reading it is free; it is swapped whole, never changed in place."""

    @property
    def current(self) -> Snapshot: ...


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
