"""Pieces of packages for devices that can't speak HTTP, from a bounded cache. Implements ports.packages.PackageBlocks.

Owns what is kept in memory and how a missing block is fetched: from the package store's folder where that is here, else
by HTTP from where devices download. Must not know who asks, or whether they may.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

import httpx

from ota_hook.errors import DependencyError
from ota_hook.model import Firmware

BLOCK_BYTES: Final = 64 * 1024
DEFAULT_CACHE_BYTES: Final = 64 * 1024 * 1024
_HTTP_S: Final = 5.0
_CONNECTIONS: Final = 4

LoadBlock = Callable[[Firmware, int, int], Awaitable[bytes]]
"""The bytes of a package from an offset on, so many. DependencyError where they can't be had."""


class CachedBlocks:
    """ports.packages.PackageBlocks. Keeps what was asked for last, in blocks of 64 KiB, `cache_bytes` in all.

    Who asks for a block while it is fetched waits for the same fetch; one that nobody waits for any more goes on, so
    that who asks again finds it.
    """

    def __init__(self, load: LoadBlock, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._load = load
        self._most = max(1, cache_bytes // BLOCK_BYTES)
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._fetching: dict[tuple[str, int], asyncio.Task[bytes]] = {}

    async def read(self, firmware: Firmware, offset: int, size_bytes: int) -> bytes:
        """See ports.packages.PackageBlocks."""
        end = min(offset + size_bytes, firmware.package.size_bytes)
        if offset >= end:
            return b""
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        blocks = [await self._block(firmware, number) for number in range(first, last + 1)]
        start = first * BLOCK_BYTES
        return b"".join(blocks)[offset - start : end - start]

    async def _block(self, firmware: Firmware, number: int) -> bytes:
        place = (firmware.id, number)
        block = self._blocks.get(place)
        if block is not None:
            self._blocks.move_to_end(place)
            return block
        task = self._fetching.get(place)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(firmware, number))
            self._fetching[place] = task
            task.add_done_callback(lambda done: self._forget(place, done))
        return await asyncio.shield(task)

    async def _fetch(self, firmware: Firmware, number: int) -> bytes:
        offset = number * BLOCK_BYTES
        wanted = min(BLOCK_BYTES, firmware.package.size_bytes - offset)
        block = await self._load(firmware, offset, wanted)
        if len(block) != wanted:
            raise DependencyError(f"The package of the firmware {firmware.id} is shorter than it was.")
        self._blocks[firmware.id, number] = block
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return block

    def _forget(self, place: tuple[str, int], task: asyncio.Task[bytes]) -> None:
        self._fetching.pop(place, None)
        if not task.cancelled():
            task.exception()  # who waits for it has it; nobody may be left

    async def close(self) -> None:
        """Give up what is being fetched."""
        for task in list(self._fetching.values()):
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)


class BlockSource:
    """Reads from `folder`, where the admin role of this machine keeps packages; what is not there comes by HTTP."""

    def __init__(self, folder: Path, address: Callable[[Firmware], str | None]) -> None:
        self._folder = folder
        self._address = address
        self._http: httpx.AsyncClient | None = None

    async def load(self, firmware: Firmware, offset: int, size_bytes: int) -> bytes:
        """A LoadBlock."""
        try:
            return await asyncio.to_thread(_read, self._folder / firmware.id, offset, size_bytes)
        except FileNotFoundError:
            return await self._download(firmware, offset, size_bytes)
        except OSError as exc:
            raise DependencyError(f"The package of {firmware.id} can't be read: {exc.strerror or exc}.") from exc

    async def _download(self, firmware: Firmware, offset: int, size_bytes: int) -> bytes:
        url = self._address(firmware)
        if url is None:
            raise DependencyError(f"The firmware {firmware.id} has no address that this process can give.")
        if self._http is None:
            limits = httpx.Limits(max_connections=_CONNECTIONS)
            self._http = httpx.AsyncClient(timeout=_HTTP_S, limits=limits, trust_env=False)
        headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}", "Accept-Encoding": "identity"}
        try:
            async with asyncio.timeout(_HTTP_S), self._http.stream("GET", url, headers=headers) as response:
                return await _read_part(response, offset, size_bytes)
        except TimeoutError as exc:
            raise DependencyError(f"{url} took longer than {_HTTP_S:.0f} s for a part.") from exc
        except httpx.HTTPError as exc:
            raise DependencyError(f"{url} can't be reached: {exc}.", mend="Check OTA_HOOK_PUBLIC_URL.") from exc

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()


async def _read_part(response: httpx.Response, offset: int, size_bytes: int) -> bytes:
    """The bytes that were asked for, and no other: what is kept would be served to every device that asks."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        raise DependencyError(f"{response.url} answered {response.status_code} where a part was asked for.")
    is_asked_for = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-{offset + size_bytes - 1}/")
    if not is_asked_for or response.headers.get("Content-Encoding", "identity") != "identity":
        raise DependencyError(f"{response.url} answered with another part than was asked for.")
    part = bytearray()
    async for piece in response.aiter_raw():
        part += piece
        if len(part) > size_bytes:
            raise DependencyError(f"{response.url} answered with more than was asked for.")
    return bytes(part)


def _read(path: Path, offset: int, size_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size_bytes, offset)
    finally:
        os.close(descriptor)
