"""How simulated devices behave, and what an observer sees of one. It must not know connections or the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

TOPICS: Final[Mapping[str, str]] = {
    "eztcloud": "{topic}/{device}",
    "typed": "{device_type}/{device}/{topic}",
}
"""By dialect where a device speaks and listens: `{topic}` is `attributes`, `gateway_command_send`, …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBehaviour:
    """How a fleet's devices behave. Times in seconds; every wait and retry ends.

    The devices power on one after the other within `start_spread_s`.

    `check_interval_s` None: a device is done with its first `upgrade: false`. Set: it stays, takes what is pushed to
    it, asks again after so long, and after a failure starts over after so long.

    `asks` False: it reports where it would ask, and takes what is pushed to it.
    """

    topics: str = TOPICS["eztcloud"]
    version_attribute: str = "version"
    event: str = "otaCheck"
    module: str = "main"
    connect_attempts: int = 5
    check_attempts: int = 5
    answer_timeout_s: float = 10.0
    download_attempts: int = 5
    download_timeout_s: float = 120.0
    piece_attempts: int = 5
    piece_timeout_s: float = 3.0
    retry_pause_s: float = 0.5
    reboot_s: float = 0.2
    start_spread_s: float = 0.0
    upgrades_max: int = 10
    check_interval_s: float | None = None
    asks: bool = True


class Phase(StrEnum):
    """What a device is at."""

    CONNECTING = "connecting"
    CHECKING = "checking"
    DOWNLOADING = "downloading"
    REBOOTING = "rebooting"
    CURRENT = "current"
    FAILED = "failed"


SETTLED: Final = frozenset({Phase.CURRENT, Phase.FAILED})


@dataclass(slots=True, kw_only=True)
class DeviceProgress:
    """What an observer sees of a device; the device alone writes it.

    `fetched` are the URLs of verified packages, over HTTP or in pieces; `resumed_at` says behind how many bytes a
    package that came in pieces went on after its connection was cut.
    """

    identifier: str
    device_type: str
    version: str
    phase: Phase = Phase.CONNECTING
    offers: int = 0
    upgrades: int = 0
    fetched: list[str] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    error: str | None = None

    @property
    def downloads(self) -> int:
        return len(self.fetched)


class DeviceFailureError(Exception):
    """A device gave up; the text says why."""
