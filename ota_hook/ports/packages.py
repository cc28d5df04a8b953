"""The bytes of firmware: taken in, read, removed.

Owns how packages come and go. Must not know the catalogue, or where bytes are kept.
"""

from __future__ import annotations

from typing import Protocol

from ota_hook.model import Firmware, Package


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


class PackageBlocks(Protocol):
    """Pieces of packages, quickly."""

    async def read(self, firmware: Firmware, offset: int, size_bytes: int) -> bytes:
        """The bytes from `offset` on, fewer at the package's end. DependencyError where they can't be had."""
        ...


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
