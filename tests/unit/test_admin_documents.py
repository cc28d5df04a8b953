"""How facts of the core are written in the API's documents."""

from __future__ import annotations

import pytest

from admin_api.documents.devices import DeviceOut
from admin_api.documents.fields import rfc3339
from ota_hook.model import DeviceState, ReportedVersion


def test_a_moment_is_written_in_utc_with_milliseconds() -> None:
    assert rfc3339(1_769_846_400_001) == "2026-01-31T08:00:00.001Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999Z"
    assert rfc3339(253_402_300_799_999) == "9999-12-31T23:59:59.999Z"


@pytest.mark.parametrize("epoch_ms", [253_402_300_800_000, -(2**63), 2**63, 10**400])
def test_a_moment_that_no_calendar_has_is_null(epoch_ms: int) -> None:
    assert rfc3339(epoch_ms) is None


def test_a_device_with_a_hostile_clock_can_be_shown() -> None:
    device = DeviceOut.of(DeviceState("d", "tracker", {"version": ReportedVersion("1.0", 2**63)}))
    assert device.versions_reported_at == {"version": None}
