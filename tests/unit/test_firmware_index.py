"""Which firmware a device gets, and what is said of the others."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from ota_hook._matcher import Explanation, FirmwareEntry, FirmwareIndex
from ota_hook.model import VersionScheme
from tests import oracle
from tests.device_sets import device_set


def index_of(*entries: FirmwareEntry, scheme: str = "auto") -> FirmwareIndex:
    return FirmwareIndex(scheme, entries)


def reasons_of(index: FirmwareIndex, identifier: str, current: str | None) -> dict[str, tuple[str, ...]]:
    return {explanation.firmware_id: explanation.reasons for explanation in index.explain(identifier, current)}


def test_an_empty_index_offers_nothing() -> None:
    index = index_of()
    assert len(index) == 0
    assert index.resolve("d1", "1.0") is None
    assert index.explain("d1", "1.0") == []


def test_the_highest_version_wins() -> None:
    index = index_of(FirmwareEntry("A", "1.9"), FirmwareEntry("B", "1.10"), FirmwareEntry("C", "1.2"))
    assert index.resolve("d1", "1.0") == "B"
    assert index.resolve("d1", "1.9") == "B"
    assert index.resolve("d1", "1.10") is None
    assert index.resolve("d1", "2.0") is None


def test_another_spelling_of_the_same_version_is_no_upgrade() -> None:
    index = index_of(FirmwareEntry("A", "v1.0"))
    assert index.resolve("d1", "1.0.0") is None
    assert reasons_of(index, "d1", "1.0.0") == {"A": ("same_version",)}


def test_a_disabled_firmware_is_not_offered_but_explained() -> None:
    index = index_of(FirmwareEntry("A", "2.0", enabled=False), FirmwareEntry("B", "1.5"))
    assert len(index) == 2
    assert index.resolve("d1", "1.0") == "B"
    assert index.explain("d1", "1.0") == [
        Explanation("A", chosen=False, reasons=("disabled",)),
        Explanation("B", chosen=True, reasons=()),
    ]


def test_a_listed_firmware_goes_to_the_devices_on_its_list_alone() -> None:
    index = index_of(FirmwareEntry("A", "2.0", devices=device_set("d1", "d2")), FirmwareEntry("B", "1.5"))
    assert index.resolve("d1", "1.0") == "A"
    assert index.resolve("d2", "1.0") == "A"
    assert index.resolve("d3", "1.0") == "B"
    assert index.resolve("D1", "1.0") == "B"
    assert index.resolve("d1", "2.0") is None


def test_an_empty_list_is_nobody() -> None:
    index = index_of(FirmwareEntry("A", "2.0", devices=device_set()))
    assert index.resolve("d1", "1.0") is None
    assert reasons_of(index, "d1", "1.0") == {"A": ("not_selected",)}


def test_source_versions_are_compared_as_trimmed_text() -> None:
    index = index_of(FirmwareEntry("A", "2.0", source_versions=(" 1.0 ", "1.1")))
    assert index.resolve("d1", "1.0") == "A"
    assert index.resolve("d1", "\t1.0\n") == "A"
    assert index.resolve("d1", "1.1") == "A"
    assert index.resolve("d1", "1.0.0") is None
    assert index.resolve("d1", "v1.0") is None
    assert reasons_of(index, "d1", "1.0.0") == {"A": ("source_version_differs",)}


def test_of_two_deltas_from_one_version_the_higher_wins() -> None:
    low, high = FirmwareEntry("A", "2.0", source_versions=("1.0",)), FirmwareEntry("B", "2.1", source_versions=("1.0",))
    assert index_of(low, high).resolve("d1", "1.0") == index_of(high, low).resolve("d1", "1.0") == "B"
    listed = device_set("d1")
    low, high = low._replace(devices=listed), high._replace(devices=listed)
    assert index_of(low, high).resolve("d1", "1.0") == index_of(high, low).resolve("d1", "1.0") == "B"


def test_a_list_and_source_versions_must_both_hold() -> None:
    index = index_of(FirmwareEntry("A", "2.0", devices=device_set("d1"), source_versions=("1.0",)))
    assert index.resolve("d1", "1.0") == "A"
    assert index.resolve("d1", "1.1") is None
    assert index.resolve("d2", "1.0") is None
    assert reasons_of(index, "d2", "1.1") == {"A": ("not_selected", "source_version_differs")}


def test_an_older_firmware_is_offered_only_where_it_allows_downgrade() -> None:
    plain = index_of(FirmwareEntry("A", "1.0", source_versions=("2.0",)))
    allowed = index_of(FirmwareEntry("A", "1.0", source_versions=("2.0", "1.0.0"), allow_downgrade=True))
    assert plain.resolve("d1", "2.0") is None
    assert reasons_of(plain, "d1", "2.0") == {"A": ("not_newer",)}
    assert allowed.resolve("d1", "2.0") == "A"
    assert allowed.resolve("d1", "2.0.0") is None
    assert allowed.resolve("d1", "1.0.0") is None
    assert reasons_of(allowed, "d1", "1.0.0") == {"A": ("same_version",)}


def test_a_downgrade_is_taken_where_the_better_one_is_what_runs() -> None:
    index = index_of(
        FirmwareEntry("NOW", "2.0", source_versions=("2.0",), allow_downgrade=True),
        FirmwareEntry("BACK", "1.0", source_versions=("2.0",), allow_downgrade=True),
    )
    assert index.resolve("d1", "2.0") == "BACK"


def test_of_one_version_a_listed_firmware_beats_a_delta_and_that_one_for_everyone() -> None:
    everyone = FirmwareEntry("EVERYONE", "2.0", created_at_ms=9)
    delta = FirmwareEntry("DELTA", "2.0.0", source_versions=("1.0",), created_at_ms=5)
    listed = FirmwareEntry("LISTED", "v2", devices=device_set("d1"), created_at_ms=1)
    index = index_of(everyone, delta, listed)
    assert index.resolve("d1", "1.0") == "LISTED"
    assert index.resolve("d2", "1.0") == "DELTA"
    assert index.resolve("d2", "1.1") == "EVERYONE"
    assert [explanation.firmware_id for explanation in index.explain("d1", "1.0")] == ["LISTED", "DELTA", "EVERYONE"]


def test_a_higher_version_for_everyone_beats_a_listed_one() -> None:
    index = index_of(FirmwareEntry("A", "2.1"), FirmwareEntry("B", "2.0", devices=device_set("d1")))
    assert index.resolve("d1", "1.0") == "A"
    assert reasons_of(index, "d1", "1.0") == {"A": (), "B": ("outranked",)}


def test_of_two_listed_firmware_of_one_version_source_versions_say_nothing() -> None:
    devices = device_set("d1")
    delta = FirmwareEntry("DELTA", "2.0", devices=devices, source_versions=("1.0",), created_at_ms=1)
    full = FirmwareEntry("FULL", "2.0", devices=devices, created_at_ms=2)
    assert index_of(delta, full).resolve("d1", "1.0") == "FULL"
    assert index_of(delta._replace(created_at_ms=3), full).resolve("d1", "1.0") == "DELTA"


def test_the_newest_then_the_greatest_id_breaks_a_tie() -> None:
    older, newer = FirmwareEntry("Z", "2.0", created_at_ms=1), FirmwareEntry("A", "2.0", created_at_ms=2)
    assert index_of(older, newer).resolve("d1", "1.0") == "A"
    twin = FirmwareEntry("B", "2.0", created_at_ms=2)
    assert index_of(twin, newer).resolve("d1", "1.0") == index_of(newer, twin).resolve("d1", "1.0") == "B"


@pytest.mark.parametrize("current", ["", "factory", "\ud800", "9" * 129, "1.0\udfff"], ids=ascii)
def test_a_current_text_that_is_no_version_gets_nothing(current: str) -> None:
    index = index_of(
        FirmwareEntry("A", "2.0"), FirmwareEntry("B", "3.0", source_versions=(current, "1.0"), allow_downgrade=True)
    )
    assert index.resolve("d1", current) is None
    assert reasons_of(index, "d1", current) == {
        "A": ("current_version_unknown",),
        "B": ("current_version_unknown",),
    }


def test_no_stored_version_is_said_and_nothing_is_chosen() -> None:
    index = index_of(FirmwareEntry("A", "2.0"), FirmwareEntry("B", "1.0", enabled=False, source_versions=("0.9",)))
    assert index.explain("d1", None) == [
        Explanation("A", chosen=False, reasons=("current_version_unknown",)),
        Explanation("B", chosen=False, reasons=("disabled", "current_version_unknown")),
    ]


def test_every_obstacle_is_said_always_in_the_same_order() -> None:
    index = index_of(
        FirmwareEntry("A", "1.0", enabled=False, devices=device_set("d2"), source_versions=("0.9",)),
    )
    assert reasons_of(index, "d1", "2.0") == {"A": ("disabled", "not_selected", "source_version_differs", "not_newer")}


def test_semver_is_strict_with_devices_too() -> None:
    index = index_of(FirmwareEntry("A", "1.0.1"), scheme="semver")
    assert index.resolve("d1", "1.0.0") == "A"
    assert index.resolve("d1", "1.0.1+build") is None
    assert index.resolve("d1", "v1.0.0") is None
    assert reasons_of(index, "d1", "1.0") == {"A": ("current_version_unknown",)}


@pytest.mark.parametrize(
    ("scheme", "entry"),
    [
        ("auto", FirmwareEntry("01JABC", "stable")),
        ("auto", FirmwareEntry("01JABC", "1" * 129, enabled=False)),
        ("semver", FirmwareEntry("01JABC", "1.0")),
        ("auto", FirmwareEntry("01JABC", "1.0", basis_points=-1)),
        ("auto", FirmwareEntry("01JABC", "1.0", basis_points=10_001)),
        ("pep440", FirmwareEntry("01JABC", "1.0-hotfix")),
        ("debian", FirmwareEntry("01JABC", "v1.0")),
        ("auto", FirmwareEntry("01JABC", "1.0", allow_downgrade=True)),
        ("auto", FirmwareEntry("01JABC", "1.0", allow_downgrade=True, enabled=False, devices=device_set())),
    ],
)
def test_a_firmware_that_can_not_be_matched_is_refused_by_its_id(scheme: str, entry: FirmwareEntry) -> None:
    with pytest.raises(ValueError, match="01JABC"):
        index_of(FirmwareEntry("FINE", "1.0.0"), entry, scheme=scheme)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("'calver'")):
        FirmwareIndex("calver", [])


def test_identifiers_and_versions_may_be_any_text() -> None:
    index = FirmwareIndex(VersionScheme.AUTO, iter([FirmwareEntry("A", "2.0", devices=device_set("\ud800", ""))]))
    assert index.resolve("\ud800", "1.0") == "A"
    assert index.resolve("", "1.0") == "A"
    assert index.resolve("x" * 100_000, "1" * 100_000) is None
    assert index.resolve(VersionScheme.AUTO, VersionScheme.SEMVER) is None


def test_a_device_on_many_overlapping_lists_gets_the_best_of_them() -> None:
    """Lists overlap in every way here, which the groups behind the index must keep apart."""
    dice = random.Random(20240808)
    identifiers = [f"d{number}" for number in range(40)]
    catalogue = [
        oracle.Firmware(
            id=f"F{number:03}",
            version=f"1.{dice.randrange(30)}",
            enabled=dice.random() < 0.9,
            devices=frozenset(dice.sample(identifiers, dice.randrange(0, 20))),
            source_versions=tuple(f"1.{minor}" for minor in dice.sample(range(30), dice.choice([0, 0, 3]))),
            created_at_ms=dice.randrange(3),
        )
        for number in range(60)
    ]
    catalogue = [replace(f, allow_downgrade=bool(f.source_versions) and dice.random() < 0.5) for f in catalogue]
    index = index_of(*oracle.compiled_entries(catalogue))
    ranked = oracle.best_first("auto", catalogue)
    for identifier in [*identifiers, "stranger"]:
        device = oracle.Device(identifier)
        for minor in range(0, 30, 4):
            current = f"1.{minor}"
            expected = next((f.id for f in ranked if not oracle.obstacles("auto", f, device, current)), None)
            assert index.resolve(identifier, current) == expected


def test_ten_thousand_firmware_on_one_list_each_are_told_apart() -> None:
    entries = [
        FirmwareEntry(f"F{number:05}", f"1.{number}", devices=device_set(f"d{number}", "everywhere"))
        for number in range(1, 10_001)
    ]
    index = index_of(*entries)
    assert len(index) == 10_000
    assert index.resolve("d77", "1.0") == "F00077"
    assert index.resolve("d77", "1.77") is None
    assert index.resolve("everywhere", "1.77") == "F10000"
    assert index.resolve("nowhere", "1.0") is None
