"""Device lists in Redis: staged under a new name, kept by the change that names them, never edited.

Owns two keys for each list: the identifiers, for people, and their digests, which every process that matches loads.
Must not know which firmware names a list; catalogue.py does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Final

import structlog
from ulid import ULID

from ota_hook._device_set import DeviceSet, DeviceSetBuilder
from ota_hook.errors import DependencyError, InputError
from ota_hook.snapshot import NOBODY
from ota_hook.state.connection import RedisClient, redis_errors, run_command, run_commands
from ota_hook.state.format import SEED_BYTES
from ota_hook.state.keys import Keys, as_bytes, as_text

LIST_MAX: Final = 1_000_000
STAGED_SECONDS: Final = 3_600
"""A staged list that no change names is forgotten after this."""

_ELEMENT_BYTES: Final = 16 * 1024
_ADDED_AT_ONCE: Final = 200
"""Identifiers: an element is at most so many longer than it should be."""
_READ_ELEMENTS: Final = 16
_DIGESTS_BYTES: Final = 512 * 1024
"""So much of the digests goes in one command: Redis is not held for long, nor are those who wait for it."""
_FIRST_DIGESTS_BYTES: Final = 32 * 1024
_LOADED_AT_ONCE: Final = 64
_SEPARATOR: Final = b"\n"
"""No identifier holds a control character."""

_log = structlog.get_logger("ota_hook.state.device_lists")


class DeviceLists:
    """Every method raises DependencyError where Redis does not answer."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    def keys_of(self, names: Iterable[str]) -> list[str]:
        """The keys of these lists."""
        return [key for name in names for key in (self._keys.device_list(name), self._keys.device_list_digests(name))]

    async def stage(self, identifiers: AsyncIterator[list[str]]) -> tuple[str, DeviceSet]:
        """Write a list, given in pieces, under a new name: (name, members); the empty one is named "" and has no key.

        InputError for more than a million identifiers. What `identifiers` raises leaves nothing behind but an expiring
        key.
        """
        name = str(ULID())
        seed = await self._load_seed()
        builder = DeviceSetBuilder(int.from_bytes(seed, "big"))
        element = bytearray()
        async for piece in identifiers:
            for start in range(0, len(piece), _ADDED_AT_ONCE):
                new = builder.add_new(piece[start : start + _ADDED_AT_ONCE])
                if len(builder) > LIST_MAX:
                    raise InputError(f"A device list holds at most {LIST_MAX} devices.", field="devices")
                if new:
                    element += as_bytes("\n".join(new)) + _SEPARATOR
                if len(element) >= _ELEMENT_BYTES:
                    await self._append_element(name, element)
                    element = bytearray()
        if not len(builder):
            return "", NOBODY
        if element:
            await self._append_element(name, element)
        members = await asyncio.to_thread(builder.finish)
        await self._write_digests(name, seed + members.digests())
        return name, members

    async def _load_seed(self) -> bytes:
        with redis_errors("reading the seed of device lists"):
            seed: bytes | None = await run_command(self._redis, "HGET", self._keys.meta, "list_seed")
        if seed is None:
            raise DependencyError("The data in Redis is gone, or not laid out yet.", mend="Try again.")
        return seed

    async def _append_element(self, name: str, element: bytearray) -> None:
        key = self._keys.device_list(name)
        with redis_errors("writing a device list"):
            await run_commands(self._redis, [("RPUSH", key, bytes(element[:-1])), ("EXPIRE", key, STAGED_SECONDS)])

    async def _write_digests(self, name: str, digests: bytes) -> None:
        key = self._keys.device_list_digests(name)
        with redis_errors("writing a device list"):
            for start in range(0, len(digests), _DIGESTS_BYTES):
                piece = digests[start : start + _DIGESTS_BYTES]
                await run_commands(self._redis, [("APPEND", key, piece), ("EXPIRE", key, STAGED_SECONDS)])

    async def load(self, names: Sequence[str]) -> dict[str, DeviceSet]:
        """The members of each list; one that is not there (any more) is left out."""
        if not names:
            return {}
        seed = await self._load_seed()
        loaded = {}
        for start in range(0, len(names), _LOADED_AT_ONCE):
            batch = names[start : start + _LOADED_AT_ONCE]
            for name, stored in zip(batch, await self._read_digests(batch), strict=True):
                if stored and not stored.startswith(seed):
                    _log.error("device_list_of_another_seed", list=name)
                elif stored:
                    number = int.from_bytes(seed, "big")
                    loaded[name] = await asyncio.to_thread(DeviceSet, number, stored[SEED_BYTES:])
        return loaded

    async def _read_digests(self, names: Sequence[str]) -> list[bytes]:
        """What is stored of each, empty for one that is not there or went while it was read."""
        keys = [self._keys.device_list_digests(name) for name in names]
        found = []
        with redis_errors("reading a device list"):
            sizes = await run_commands(self._redis, [("STRLEN", key) for key in keys])
            firsts = await run_commands(self._redis, [("GETRANGE", key, 0, _FIRST_DIGESTS_BYTES - 1) for key in keys])
            for key, size, first in zip(keys, sizes, firsts, strict=True):
                pieces = [first]
                for start in range(_FIRST_DIGESTS_BYTES, size, _DIGESTS_BYTES):
                    end = start + _DIGESTS_BYTES - 1
                    pieces.append(await run_command(self._redis, "GETRANGE", key, start, end))
                stored = b"".join(pieces)
                # One that went while it was read must not be taken for a short list.
                found.append(stored if len(stored) == size else b"")
        return found

    async def read(self, name: str) -> AsyncGenerator[list[str]]:
        """The members in pieces, each once, in the order in which they were given; none where there is no such list."""
        key = self._keys.device_list(name)
        start = 0
        while True:
            with redis_errors("reading a device list"):
                elements = await run_command(self._redis, "LRANGE", key, start, start + _READ_ELEMENTS - 1)
            for element in elements:
                yield as_text(element).split("\n")
            if len(elements) < _READ_ELEMENTS:
                return
            start += _READ_ELEMENTS
