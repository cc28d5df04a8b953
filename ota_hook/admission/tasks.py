"""What may be said of a task, beside what its schedule's parsers refuse, and what it changes in the catalogue.

Must not know how tasks are written, or what their runs do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ota_hook.admission.device_types import find_type, keep_attribute
from ota_hook.decide import push_rule
from ota_hook.errors import InputError
from ota_hook.model import CatalogueChange
from ota_hook.snapshot import Snapshot
from ota_hook.task import Pacing, Task

TARGET_DEVICES_MAX: Final = 10_000
RATE_MAX: Final = 10_000_000
"""Commands per minute; no worker sends so many."""
CONCURRENT_MAX: Final = 10_000_000
JITTER_MAX_S: Final = 3_600
TIMEOUT_MAX_S: Final = 30 * 86_400
EXPIRES_MAX_S: Final = 365 * 86_400
RETRIES_MAX: Final = 10
BACKOFF_MAX_S: Final = 86_400
STOP_AFTER_MAX: Final = 1_000_000


def admit_task(
    snapshot: Snapshot, proposed: Task, old: Task | None, *, device_types: Collection[str]
) -> tuple[CatalogueChange, ...]:
    """The changes that it brings: a version attribute that is new to a type of its target joins that type.

    `device_types` are those of the target's devices. `old` is the task that it replaces: what that said already is not
    refused again, where the catalogue has changed meanwhile.
    """
    _check_pacing(proposed.pacing)
    if proposed.device_type is not None:
        find_type(snapshot, proposed.device_type, field="target.device_type")
        if old is None or _asks_for(old) != _asks_for(proposed):
            _require_rule(snapshot, proposed, proposed.device_type)
    if proposed.version_attribute is None:
        return ()
    types = [snapshot.types[key] for key in sorted(device_types) if key in snapshot.types]
    return tuple(change for known in types for change in keep_attribute(known, proposed.version_attribute))


def _asks_for(task: Task) -> tuple[str | None, ...]:
    return task.device_type, task.version_attribute, task.module


def _require_rule(snapshot: Snapshot, task: Task, device_type: str) -> None:
    """What the task leaves out a rule of the type must say; else its runs would find nothing, and say nothing."""
    if push_rule(snapshot, device_type, task.version_attribute, task.module) is None:
        raise InputError(
            f"No enabled rule of the device type {device_type!r} says what the task leaves out.",
            mend="Give both `version_attribute` and `module`, or add such a rule.",
            field="version_attribute" if task.version_attribute is None else "module",
        )


def _check_pacing(pacing: Pacing) -> None:
    if pacing.ramp_from_per_minute is None:
        return
    if pacing.rate_per_minute is None:
        raise InputError(
            "A ramp leads to a rate.", mend="Give `rate_per_minute` as well.", field="ramp_from_per_minute"
        )
    if pacing.ramp_from_per_minute > pacing.rate_per_minute:
        raise InputError("A ramp begins at or below its rate.", field="ramp_from_per_minute")
