"""Sets of devices that hold up to a million identifiers at 16 bytes each; compiled."""

from collections.abc import Iterable
from typing import Any, Self, final

@final
class DeviceSet:
    """An immutable set of devices: digests of 128 bits of their identifiers, with the deployment's secret `seed`."""

    def __new__(cls, seed: int, digests: bytes = b"") -> Self:
        """From what `digests` of another set gave, or any number of digests in any order.

        ValueError where their length is no multiple of 16.
        """

    @staticmethod
    def of(identifiers: Iterable[str], *, seed: int) -> DeviceSet:
        """The set of these identifiers."""

    @property
    def seed(self) -> int: ...
    def __len__(self) -> int: ...
    def __contains__(self, identifier: str, /) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __sizeof__(self) -> int: ...
    def digests(self) -> bytes:
        """What the constructor takes: 16 bytes for each member, ascending."""

    def isdisjoint(self, other: DeviceSet) -> bool:
        """Whether no device is in both. ValueError where their seeds differ."""

@final
class DeviceSetBuilder:
    """Collects identifiers and tells which of them are new."""

    def __new__(cls, seed: int) -> Self: ...
    def __len__(self) -> int: ...
    def add(self, identifier: str) -> bool:
        """Add one; whether it was not there yet."""

    def add_new(self, identifiers: list[str]) -> list[str]:
        """Add these; those of them that were not there yet, in their order."""

    def finish(self) -> DeviceSet:
        """The set of all that were added."""

@final
class DeviceGroups:
    """Several sets in one table: devices that the same sets have are one group. For the firmware index."""

    def __new__(cls, sets: tuple[DeviceSet, ...], *, seed: int) -> Self:
        """ValueError where a set was made with another seed."""

    @property
    def sets(self) -> tuple[DeviceSet, ...]: ...
    def __len__(self) -> int: ...
    def __sizeof__(self) -> int: ...

__pyx_capi__: dict[str, Any]  # Cython's own: how compiled modules find each other's functions
