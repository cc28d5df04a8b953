"""The firmware index, compiled. Its meaning is in docs/versions.md; the oracle in tests/oracle.py."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

from ota_hook._device_set import DeviceSet

class FirmwareEntry(NamedTuple):
    """What the index needs of one firmware of its (type, module).

    `devices`, `tags` and `basis_points` (hundredths of a per cent) select devices; where all are None every device is
    selected, else who is in `devices`, or has one of the `tags` (where set) and is within the percentage (where set).
    An empty one selects nobody. `source_versions` empty: any current version, else exact texts (compared after trimming
    white space on both sides).
    """

    id: str
    version: str
    enabled: bool = True
    devices: DeviceSet | None = None
    tags: tuple[str, ...] | None = None
    basis_points: int | None = None
    percentage_seed: int = 0
    source_versions: tuple[str, ...] = ()
    allow_downgrade: bool = False
    created_at_ms: int = 0

class Explanation(NamedTuple):
    """Why one firmware is, or is not, the device's next: `reasons` is empty for the chosen one alone.

    Reasons: `disabled`, `not_selected` (followed, where tags or a percentage are set, by which did not hold:
    `not_listed`, `tags_differ`, `outside_percentage`), `source_version_differs`, `current_version_unknown` (none
    stored, or not a version in the scheme), `same_version`, `not_newer`, `outranked` (eligible, another is better).
    """

    firmware_id: str
    chosen: bool
    reasons: tuple[str, ...]

class Match(NamedTuple):
    """A device of a bucket that has something newer."""

    identifier: str
    firmware_id: str
    current: str

@final
class FirmwareIndex:
    """The firmware of one (type, module), immutable; built once, asked often. Not for several threads at once."""

    def __init__(self, scheme: str, entries: Iterable[FirmwareEntry]) -> None:
        """Of several entries with one id the last counts.

        ValueError names the firmware whose version the scheme refuses, a downgrade without source versions, or a
        percentage that is none, or says that sets have different seeds.
        """

    def with_changes(self, changed: Iterable[FirmwareEntry], removed: Iterable[str] = ()) -> FirmwareIndex:
        """The index with these entries, new or in place of those with their ids, and without the `removed` ids.

        Equal to one made from all entries, at a tenth of the cost; this one stays as it is. ValueError as above.
        """

    def __len__(self) -> int: ...
    def resolve(self, identifier: str, current: str, tags: Sequence[str] = ()) -> str | None:
        """The id of the best eligible firmware for that device at that version, or None. No text raises."""

    def resolve_many(self, bucket: bytes, device_type: str, attribute: str) -> list[Match]:
        """The devices of the type that have something newer, of a bucket as `DeviceStore.scan_buckets` gives it.

        Their current version is what is stored under `attribute`. Records that can't be read are left out.
        """

    def explain(self, identifier: str, current: str | None, tags: Sequence[str] = ()) -> list[Explanation]:
        """One explanation per firmware, best version first."""
