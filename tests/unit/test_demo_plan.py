"""The demo's expectations as such: its groups, and how a device is held against them."""

from __future__ import annotations

from collections import Counter

import pytest

from ota_hook.standin.demo import judge
from ota_hook.standin.demo_plan import (
    CHILD_EXPECTED,
    DELTA,
    FIRMWARE,
    FULL,
    GATEWAY,
    GROUPS,
    TRIAL,
    DemoPlan,
    PlannedDevice,
)
from ota_hook.standin.fleet import DeviceProgress, FleetReport, FleetView, Phase

SUMMARY = FleetReport(devices=1, gateways=0, children=0, upgraded=1, offers=1, downloads=1, failed=0, seconds=1.0)
URL = "http://127.0.0.1:8080/firmware/01FULL/demo.bin"


def test_the_demo_has_fifty_devices_in_a_few_versions() -> None:
    identifiers = [identifier for group in GROUPS for identifier in group.identifiers]
    identifiers += [GATEWAY.identifier, *(GATEWAY.identify(child) for child in GATEWAY.children)]
    assert len(set(identifiers)) == len(identifiers) == 50
    assert len({group.version for group in GROUPS}) > 3


def test_the_demo_has_a_full_a_listed_and_a_delta_firmware() -> None:
    assert (FULL.devices, FULL.source_versions) == ((), ())
    assert len(TRIAL.devices) == 1
    assert len(DELTA.source_versions) == 1
    assert DELTA.size_bytes < FULL.size_bytes
    used = Counter(group.firmware.name for group in GROUPS if group.firmware for _ in group.identifiers)
    assert used == {FULL.name: 28, DELTA.name: 10, TRIAL.name: 1}
    assert len(FIRMWARE) == 3


def test_the_demos_gateway_has_children_on_several_levels() -> None:
    assert {len(child.path) for child in GATEWAY.children} == {1, 2}
    assert FULL.version == CHILD_EXPECTED
    assert {child.version for child in GATEWAY.children} == {"1.1.0"}


def seen(version: str, *fetched: str, error: str | None = None) -> DeviceProgress:
    phase = Phase.FAILED if error else Phase.CURRENT
    return DeviceProgress(
        identifier="a", device_type="demo-sensor", version=version, phase=phase, fetched=list(fetched), error=error
    )


PLANNED = PlannedDevice(identifier="a", version="1.0.0", expected="2.0.0", firmware_id="01FULL")
UNMOVED = PlannedDevice(identifier="a", version="2.0.0", expected="2.0.0", firmware_id=None)


def test_a_device_at_its_expected_version_by_the_expected_firmware_has_no_fault() -> None:
    assert PLANNED.find_fault(seen("2.0.0", URL)) is None
    assert UNMOVED.find_fault(seen("2.0.0")) is None


@pytest.mark.parametrize(
    ("planned", "device", "fault"),
    [
        (PLANNED, seen("1.0.0"), "is at 1.0.0, not 2.0.0"),
        (PLANNED, seen("2.1.0", URL), "is at 2.1.0, not 2.0.0"),
        (PLANNED, seen("2.0.0", URL.replace("FULL", "DELTA")), "fetched firmware"),
        (PLANNED, seen("2.0.0", URL, URL), "fetched firmware"),
        (PLANNED, seen("2.0.0", "http://elsewhere/demo.bin"), "fetched firmware"),
        (PLANNED, seen("1.0.0", error="digest_differs"), "digest_differs"),
        (UNMOVED, seen("2.0.0", URL), "fetched firmware"),
    ],
)
def test_every_other_end_is_a_fault(planned: PlannedDevice, device: DeviceProgress, fault: str) -> None:
    assert fault in (planned.find_fault(device) or "")


def test_the_result_names_what_failed_the_time_limit_and_firmware_that_is_not_the_demos() -> None:
    plan = DemoPlan(direct=(PLANNED,), gateways=(), foreign=("mine",))
    late = judge(plan, FleetView([seen("1.0.0")]), SUMMARY, in_time=False, time_limit_s=120)
    assert not late.succeeded
    assert late.reason is not None
    for part in ("120 s", "a is at 1.0.0", "mine"):
        assert part in late.reason
    assert judge(plan, FleetView([seen("2.0.0", URL)]), SUMMARY, in_time=True, time_limit_s=120).succeeded
