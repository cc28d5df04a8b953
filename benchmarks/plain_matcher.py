"""The matcher as one would write it without a compiler: packaging.version, dicts and sets, best first.

What benchmarks compare with. It remembers what it parsed, so it is no straw man; it knows PEP 440's versions alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import xxhash
from packaging.version import Version


@dataclass(frozen=True, slots=True)
class PlainFirmware:
    """A firmware as the compiled index's entries say it, with its list as a set of identifiers."""

    id: str
    version: str
    devices: frozenset[str] | None = None
    tags: tuple[str, ...] | None = None
    basis_points: int | None = None
    percentage_seed: int = 0
    source_versions: tuple[str, ...] = ()

    def selects(self, identifier: str, tags: Sequence[str]) -> bool:
        if self.devices is None and self.tags is None and self.basis_points is None:
            return True
        if self.devices is not None and identifier in self.devices:
            return True
        if self.tags is None and self.basis_points is None:
            return False
        if self.tags is not None and not any(tag in self.tags for tag in tags):
            return False
        hashed = xxhash.xxh3_64_intdigest(identifier.encode(), self.percentage_seed)
        return self.basis_points is None or hashed % 10_000 < self.basis_points


class PlainMatcher:
    """The firmware of one (type, module)."""

    def __init__(self, firmware: Iterable[PlainFirmware]) -> None:
        ranked = [(Version(one.version), one) for one in firmware]
        self._ranked = sorted(ranked, key=lambda pair: (pair[0], pair[1].id), reverse=True)
        self._parsed: dict[str, Version] = {}

    def resolve(self, identifier: str, current: str, tags: Sequence[str] = ()) -> str | None:
        """The id of the best eligible firmware, or None."""
        key = self._parsed.get(current)
        if key is None:
            key = self._parsed[current] = Version(current)
        for version, firmware in self._ranked:
            if version <= key:
                return None
            if firmware.source_versions and current not in firmware.source_versions:
                continue
            if firmware.selects(identifier, tags):
                return firmware.id
        return None

    def resolve_many(self, devices: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """(identifier, firmware, current) of who has something newer; `devices` are identifier → current version."""
        found = []
        for identifier, current in devices.items():
            best = self.resolve(identifier, current)
            if best is not None:
                found.append((identifier, best, current))
        return found
