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
from ota_hook.errors import ConflictError, DependencyError, InputError
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
_DIGEST_BYTES: Final = 16
_COUNT_BYTES: Final = 8
_HEAD_BYTES: Final = SEED_BYTES + _COUNT_BYTES
_LOADED_AT_ONCE: Final = 64
_SEPARATOR: Final = b"\n"
"""No identifier holds a control character."""

_log = structlog.get_logger("ota_hook.state.device_lists")


def stored_bytes(members: DeviceSet) -> int:
    """How long the digests of a list are as they are stored."""
    return _HEAD_BYTES + len(members) * _DIGEST_BYTES


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

        InputError for more than a million identifiers, ConflictError where Redis lost a part meanwhile. What
        `identifiers` raises leaves nothing behind but an expiring key.
        """
        name = str(ULID())
        seed = await self._load_seed()
        builder = DeviceSetBuilder(int.from_bytes(seed, "big"))
        element, elements = bytearray(), 0
        async for piece in identifiers:
            for start in range(0, len(piece), _ADDED_AT_ONCE):
                new = builder.add_new(piece[start : start + _ADDED_AT_ONCE])
                if len(builder) > LIST_MAX:
                    raise InputError(f"A device list holds at most {LIST_MAX} devices.", field="devices")
                if new:
                    element += as_bytes("\n".join(new)) + _SEPARATOR
                if len(element) >= _ELEMENT_BYTES:
                    elements += 1
                    await self._append_element(name, element, elements)
                    element = bytearray()
        if not len(builder):
            return "", NOBODY
        if element:
            await self._append_element(name, element, elements + 1)
        members = await asyncio.to_thread(builder.finish)
        await self._write_digests(name, seed + len(members).to_bytes(_COUNT_BYTES, "big") + members.digests())
        return name, members

    async def _load_seed(self) -> bytes:
        with redis_errors("reading the seed of device lists"):
            seed: bytes | None = await run_command(self._redis, "HGET", self._keys.meta, "list_seed")
        if seed is None or len(seed) != SEED_BYTES:
            raise DependencyError("The data in Redis is gone, or not laid out yet.", mend="Try again.")
        return seed

    async def _append_element(self, name: str, element: bytearray, number: int) -> None:
        await self._append("RPUSH", self._keys.device_list(name), bytes(element[:-1]), number)

    async def _write_digests(self, name: str, digests: bytes) -> None:
        key = self._keys.device_list_digests(name)
        for start in range(0, len(digests), _DIGESTS_BYTES):
            piece = digests[start : start + _DIGESTS_BYTES]
            await self._append("APPEND", key, piece, start + len(piece))

    async def _append(self, command: str, key: str, piece: bytes, length: int) -> None:
        """Append, and require the length that the key has then: a Redis that was restarted may have lost some."""
        with redis_errors("writing a device list"):
            found, _ = await run_commands(self._redis, [(command, key, piece), ("EXPIRE", key, STAGED_SECONDS)])
        if found != length:
            raise ConflictError(
                "A part of the device list was lost or expired before the rest came.", mend="Send it again."
            )

    async def load(self, names: Sequence[str], seed: bytes | None) -> dict[str, DeviceSet]:
        """The members of each list. One that is not there (any more), not whole, or of another seed is left out."""
        loaded: dict[str, DeviceSet] = {}
        if seed is None or len(seed) != SEED_BYTES:
            return loaded
        for start in range(0, len(names), _LOADED_AT_ONCE):
            found = await self._read_digests(names[start : start + _LOADED_AT_ONCE], seed)
            for name, digests in found.items():
                loaded[name] = await asyncio.to_thread(DeviceSet, int.from_bytes(seed, "big"), digests)
        return loaded

    async def _read_digests(self, names: Sequence[str], seed: bytes) -> dict[str, bytes]:
        """The digests of the lists that can be used."""
        keys = {name: self._keys.device_list_digests(name) for name in names}
        found = {}
        with redis_errors("reading a device list"):
            kinds = await run_commands(self._redis, [("TYPE", key) for key in keys.values()])
            keys = {name: key for (name, key), kind in zip(keys.items(), kinds, strict=True) if kind == b"string"}
            sizes = await run_commands(self._redis, [("STRLEN", key) for key in keys.values()])
            firsts = await run_commands(
                self._redis, [("GETRANGE", key, 0, _FIRST_DIGESTS_BYTES - 1) for key in keys.values()]
            )
            for (name, key), size, first in zip(keys.items(), sizes, firsts, strict=True):
                if not _is_whole(first, size, seed):
                    _log.error(
                        "device_list_unusable", list=name, problem="It is of another seed, or of another length."
                    )
                    continue
                pieces = [first]
                for start in range(_FIRST_DIGESTS_BYTES, size, _DIGESTS_BYTES):
                    end = start + _DIGESTS_BYTES - 1
                    pieces.append(await run_command(self._redis, "GETRANGE", key, start, end))
                stored = b"".join(pieces)
                # One that went while it was read must not be taken for a short list.
                if len(stored) == size:
                    found[name] = stored[_HEAD_BYTES:]
        return found

    async def read(self, name: str, count: int | None) -> AsyncGenerator[list[str]]:
        """The members in pieces, each once, in the order in which they were given.

        `count` is how many there must be: ConflictError at the end where there are not. None: whatever is there.
        """
        key = self._keys.device_list(name)
        start = found = 0
        with redis_errors("reading a device list"):
            is_list = await run_command(self._redis, "TYPE", key) == b"list"
        while is_list:
            with redis_errors("reading a device list"):
                elements = await run_command(self._redis, "LRANGE", key, start, start + _READ_ELEMENTS - 1)
            for element in elements:
                piece = _split(element)
                found += len(piece)
                yield piece
            if len(elements) < _READ_ELEMENTS:
                break
            start += _READ_ELEMENTS
        if count is not None and found != count:
            raise _not_whole(f"{found:,} of its {count:,} identifiers are there")


def _is_whole(first: bytes, size: int, seed: bytes) -> bool:
    """Whether these are the first bytes of digests that are `size` bytes long in all and made with `seed`."""
    count = int.from_bytes(first[SEED_BYTES:_HEAD_BYTES], "big")
    return first.startswith(seed) and size == _HEAD_BYTES + count * _DIGEST_BYTES


def _split(element: bytes) -> list[str]:
    try:
        return as_text(element).split("\n")
    except UnicodeDecodeError as exc:
        raise _not_whole("some of its identifiers are no text") from exc


def _not_whole(problem: str) -> ConflictError:
    return ConflictError(
        f"The device list can't be read: {problem}. It was changed meanwhile, or damaged in Redis.",
        mend="Read it again; if that fails too, PUT the whole list.",
    )
