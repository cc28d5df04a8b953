"""Who is online, as far as the broker told.

Pure. The broker tells of every connect and disconnect once, and of none later: what happens while no hook process takes
its calls, or what ends with one of its nodes, nobody hears of. So a connection counts for a bounded time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ota_hook.model import DeviceState

SIGN_OF_LIFE_MS: Final = 7 * 86_400_000
"""A device that neither connected nor reported for so long is not online any more, whatever the broker told."""
_SKEW_MS: Final = 5_000
"""So far the clocks of hook processes and of the broker may differ."""


class Connection(NamedTuple):
    """A connection that the broker told of and of whose end it did not tell.

    `came_at_ms`: when it came. `told_since_ms`: when the broker's node that has it began to tell (it was restarted, or
    the hook was enabled there); 0 where that is not known. What it told before may have ended untold.
    """

    came_at_ms: int
    told_since_ms: int = 0


def is_online(device: DeviceState, connection: Connection | None, *, now_ms: int) -> bool:
    """Whether the device is connected by all that is known. A report proves that its connection was there still."""
    if connection is None:
        return False
    reported = (version.reported_at_ms for version in device.versions.values())
    sign_ms = max(connection.came_at_ms, *reported, 0)
    return sign_ms + _SKEW_MS >= connection.told_since_ms and now_ms - sign_ms < SIGN_OF_LIFE_MS
