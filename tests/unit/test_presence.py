"""Who is online by what the broker told, and when that is not believed any more."""

from __future__ import annotations

import pytest

from ota_hook.model import DeviceState, ReportedVersion
from ota_hook.presence import SIGN_OF_LIFE_MS, Connection, is_online

NOW_MS = 1_795_000_000_000
HOUR_MS = 3_600_000


def device(reported_at_ms: int = 0) -> DeviceState:
    return DeviceState("d1", "tracker", {"version": ReportedVersion("1.0", reported_at_ms)})


@pytest.mark.parametrize("reported_at_ms", [0, NOW_MS])
def test_a_device_of_whose_connection_nobody_told_is_not_online(reported_at_ms: int) -> None:
    assert not is_online(device(reported_at_ms), None, now_ms=NOW_MS)


def test_a_device_is_online_from_its_connect_on() -> None:
    assert is_online(device(), Connection(NOW_MS), now_ms=NOW_MS)
    assert is_online(DeviceState("d1", "tracker"), Connection(NOW_MS, NOW_MS - HOUR_MS), now_ms=NOW_MS)


def test_a_connection_counts_for_a_week_behind_the_last_sign_of_life() -> None:
    came_at_ms = NOW_MS - 30 * 86_400_000
    assert not is_online(device(), Connection(came_at_ms), now_ms=NOW_MS)
    assert is_online(device(NOW_MS - SIGN_OF_LIFE_MS + 1), Connection(came_at_ms), now_ms=NOW_MS)
    assert not is_online(device(NOW_MS - SIGN_OF_LIFE_MS), Connection(came_at_ms), now_ms=NOW_MS)


def test_what_a_node_told_before_it_attached_anew_does_not_count_until_the_device_reports() -> None:
    connection = Connection(NOW_MS - 2 * HOUR_MS, told_since_ms=NOW_MS - HOUR_MS)
    assert not is_online(device(), connection, now_ms=NOW_MS)
    assert not is_online(device(NOW_MS - 90 * 60_000), connection, now_ms=NOW_MS)
    assert is_online(device(NOW_MS - 30 * 60_000), connection, now_ms=NOW_MS)


def test_clocks_of_two_hook_processes_may_differ_a_little() -> None:
    assert is_online(device(), Connection(NOW_MS - 1_000, told_since_ms=NOW_MS), now_ms=NOW_MS)
