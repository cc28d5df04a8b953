"""Tasks, runs and how far each device is in one: values alone, like model.py.

Pure. A run carries a copy of its task: an edit of the task changes later runs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from ota_hook.model import Manual, Outcome, Schedule, Window

DEFAULT_TIMEOUT_S: Final = 3_600
DEFAULT_EXPIRES_S: Final = 7 * 86_400
DEFAULT_BACKOFF_S: Final = 300
DEFAULT_STOP_PERCENT: Final = 50
"""What operators' tasks have where nothing is said; the value `Task` has no stop by itself."""
DEFAULT_STOP_AFTER: Final = 20


class RunState(StrEnum):
    """What a run does. `waiting`: for its planning, or for its window to open. `stopped`: it stopped itself."""

    WAITING = "waiting"
    PLANNING = "planning"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing happens in it any more."""
        return self in _FINAL_STATES


_FINAL_STATES: Final = frozenset({RunState.CANCELLED, RunState.COMPLETED, RunState.FAILED})


class Missed(StrEnum):
    """What becomes of a due time that passed while nothing could run it."""

    RUN = "run"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How fast a run sends. None: without a bound.

    The rate begins at `ramp_from_per_minute`, where that is set, and doubles every minute until it is
    `rate_per_minute`. At most `max_concurrent` devices are offered and not finished. Each device waits
    up to `jitter_s` seconds, at random, before its turn.
    """

    rate_per_minute: int | None = None
    ramp_from_per_minute: int | None = None
    max_concurrent: int | None = None
    jitter_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A push that can be run.

    Its target is every device of `device_type`, or the listed `devices` (of any type); one of the two is set.
    `version_attribute` and `module` None: what the rules of each device's type say.
    `timeout_s`: so long after its command a device has time to report the version. `expires_s`: so long after its
    start a run waits for devices that could not be reached. `retries`: so often a device that failed or timed out is
    sent its command again, `backoff_s` seconds later and then twice as long each time.
    `stop_percent`: a run stops itself when so many per cent of at least `stop_after` devices that are finished failed
    or timed out; until it knows, it sends no further ahead than twice that many, or twice what succeeded. None: never.
    """

    id: str
    name: str
    device_type: str | None = None
    devices: tuple[str, ...] | None = None
    version_attribute: str | None = None
    module: str | None = None
    schedule: Schedule = field(default_factory=Manual)
    missed: Missed = Missed.RUN
    enabled: bool = True
    pacing: Pacing = field(default_factory=Pacing)
    window: Window | None = None
    timeout_s: int = DEFAULT_TIMEOUT_S
    expires_s: int = DEFAULT_EXPIRES_S
    retries: int = 0
    backoff_s: int = DEFAULT_BACKOFF_S
    stop_percent: int | None = None
    stop_after: int = DEFAULT_STOP_AFTER
    created_at_ms: int = 0
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """What is fixed of a run from its beginning. `devices`: those of the target that were chosen, None for all."""

    id: str
    task: Task
    created_at_ms: int
    devices: tuple[str, ...] | None = None
    due_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it stands. `counters`: how many of its devices are at which outcome; they add up to `total`.

    `retried`: how often a device that failed was planned again. `away`: how many have a command that could not be
    delivered, which goes again when they are back.
    """

    head: RunHead
    state: RunState = RunState.WAITING
    is_planned: bool = False
    reason: str = ""
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    total: int = 0
    retried: int = 0
    away: int = 0
    counters: Mapping[Outcome, int] = field(default_factory=dict)


class RunDevice(NamedTuple):
    """One device in a run. `command_id` 0: it has none yet. `at_ms`: when it came to this outcome.

    `failed_at_ms`: when it failed last and was planned again, 0 where it was not.
    """

    identifier: str
    outcome: Outcome
    firmware_id: str
    from_version: str
    command_id: int = 0
    at_ms: int = 0
    code: str = ""
    failed_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareStop:
    """A firmware that was taken out of force because it failed too often. The counts are those of that moment."""

    reason: str
    at_ms: int
    failed: int
    finished: int


class RunMove(NamedTuple):
    """What became of an offer that belongs to a run. `at_ms` 0: just now."""

    run_id: str
    chunk: int
    identifier: str
    outcome: Outcome
    code: str = ""
    at_ms: int = 0
