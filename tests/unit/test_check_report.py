"""The dry run of a check: which firmware, and why not each of the others."""

from __future__ import annotations

from dataclasses import replace

from ota_hook.check_report import explain_check
from ota_hook.model import DeviceState, DeviceType, ReportedVersion, Rule, VersionScheme
from tests.doubles import make_firmware, make_snapshot


def device(**versions: str) -> DeviceState:
    reported = {name: ReportedVersion(text, 1) for name, text in versions.items()}
    return DeviceState(identifier="d", device_type="tracker", versions=reported)


def test_the_report_agrees_with_what_a_check_is_answered() -> None:
    snapshot = make_snapshot(make_firmware("A", "1.1"), make_firmware("B", "1.2"), make_firmware("C", "0.9"))
    report = explain_check(snapshot, device(version="1.0"), "main")
    index = snapshot.index("tracker", "main")
    assert index is not None
    assert report.offer is not None
    assert report.offer.id == index.resolve("d", "1.0") == "B"
    assert [(entry.firmware.id, entry.reasons) for entry in report.firmware] == [
        ("B", ()),
        ("A", ("outranked",)),
        ("C", ("not_newer",)),
    ]


def test_of_several_events_the_first_by_name_is_explained() -> None:
    snapshot = make_snapshot(
        Rule(id="R1", name="r", device_type="tracker", event="zCheck", module="mcu", version_attribute="z"),
        Rule(id="R2", name="r", device_type="tracker", event="aCheck", module="mcu", version_attribute="a"),
    )
    report = explain_check(snapshot, device(a="1.0", z="2.0"), "mcu")
    assert report.rule is not None
    assert (report.rule.id, report.current_version, report.reason) == ("R2", "1.0", "no_firmware")


def test_braces_in_versions_are_text() -> None:
    snapshot = make_snapshot(make_firmware("A", "1.1", source_versions=("{sources} 2",)))
    (entry,) = explain_check(snapshot, device(version="{current} 1"), "main").firmware
    assert entry.explanations == ("The device's version {current} 1 is not one of its source versions ({sources} 2).",)


def test_a_version_that_the_scheme_can_not_compare_is_named_with_it() -> None:
    semver = DeviceType(key="tracker", name="t", version_scheme=VersionScheme.SEMVER)
    snapshot = make_snapshot(semver, make_firmware("A", "1.1.0"))
    (entry,) = explain_check(snapshot, device(version="1.0"), "main").firmware
    assert entry.reasons == ("current_version_unknown",)
    assert entry.explanations == (
        "The device's version 1.0 is not a version in the scheme semver, so nothing can be newer.",
    )
    (entry,) = explain_check(snapshot, device(), "main").firmware
    assert entry.explanations == ("No version of the device is known, so nothing can be newer.",)


def test_what_is_better_is_named() -> None:
    snapshot = make_snapshot(make_firmware("A", "1.1"), make_firmware("B", "1.2", name="winter"))
    best, other = explain_check(snapshot, device(version="1.0"), "main").firmware
    assert (best.explanations, other.explanations) == ((), ("It could be offered, but 1.2 (winter) is better.",))


def test_a_percentage_says_of_whom_it_is() -> None:
    fleet = make_firmware("A", "1.2", basis_points=0)
    tagged = make_firmware("B", "1.1", basis_points=0, tags=("a", "b"))
    entries = explain_check(make_snapshot(fleet, tagged), device(version="1.0")._replace(tags=("a",)), "main").firmware
    assert [entry.explanations[-1] for entry in entries] == [
        "It is outside of the 0 % of the fleet.",
        "It is outside of the 0 % of those tagged a or b.",
    ]


def test_a_firmware_that_the_index_could_not_take_is_named() -> None:
    snapshot = make_snapshot(make_firmware("A", "1.1"))
    snapshot = replace(snapshot, _indices={})
    (entry,) = explain_check(snapshot, device(version="1.0"), "main").firmware
    assert (entry.chosen, entry.reasons) == (False, ("unusable",))
