"""The firmware index, compiled. The meaning is in docs/versions.md; the oracle in tests/oracle.py."""

from collections.abc import Iterable
from typing import NamedTuple, final

class FirmwareEntry(NamedTuple):
    """What the index needs of one firmware of its (type, module).

    `devices` None: every device; empty: nobody. `source_versions` empty: any current version, else exact texts
    (compared after trimming white space on both sides).
    """

    id: str
    version: str
    enabled: bool = True
    devices: frozenset[str] | None = None
    source_versions: tuple[str, ...] = ()
    allow_downgrade: bool = False
    created_at_ms: int = 0

class Explanation(NamedTuple):
    """Why one firmware is, or is not, the device's next: `reasons` is empty for the chosen one alone.

    Reasons: `disabled`, `not_selected`, `source_version_differs`, `current_version_unknown` (none stored, or not a
    version in the scheme), `same_version`, `not_newer`, `outranked` (eligible, but another is better).
    """

    firmware_id: str
    chosen: bool
    reasons: tuple[str, ...]

@final
class FirmwareIndex:
    """The firmware of one (type, module), immutable; built once, asked often."""

    def __init__(self, scheme: str, entries: Iterable[FirmwareEntry]) -> None:
        """ValueError names the firmware whose version the scheme refuses, or a downgrade without source versions."""

    def __len__(self) -> int: ...
    def resolve(self, identifier: str, current: str) -> str | None:
        """The id of the best eligible firmware for that device at that version, or None. Never raises."""

    def explain(self, identifier: str, current: str | None) -> list[Explanation]:
        """One explanation per firmware, best version first."""
