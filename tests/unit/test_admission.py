"""What may enter the catalogue: each refusal, and what stands beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from ota_hook.admission.device_types import admit_type, remove_type
from ota_hook.admission.firmware import admit_firmware, check_firmware_version, find_firmware, remove_firmware
from ota_hook.admission.rules import admit_rule, find_identical_rule
from ota_hook.admission.texts import (
    check_attribute,
    check_event,
    check_identifier,
    check_key,
    check_name,
    check_tag,
    check_ulid,
    check_version,
)
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.model import (
    CatalogueChange,
    DeviceType,
    DocumentKind,
    Firmware,
    Package,
    Rule,
    VersionScheme,
)
from ota_hook.snapshot import Snapshot
from tests.device_sets import device_set

PACKAGE = Package(filename="a.bin", size_bytes=1, md5="0" * 32, sha256="0" * 64, crc32="0" * 8)
LISTS = {name: device_set(*name) for name in ("abc", "xyz", "cde")}


def firmware(name: str, version: str, *, sources: Iterable[str] = (), **fields: object) -> Firmware:
    base = Firmware(id=name, name=name, device_type="DU", version=version, package=PACKAGE, created_at_ms=1)
    return replace(base, source_versions=tuple(sources), **fields)  # type: ignore[arg-type]


def changes_of(documents: Iterable[DeviceType | Rule | Firmware]) -> list[CatalogueChange]:
    kinds = {DeviceType: DocumentKind.DEVICE_TYPE, Rule: DocumentKind.RULE, Firmware: DocumentKind.FIRMWARE}
    return [CatalogueChange(kinds[type(d)], d.key if isinstance(d, DeviceType) else d.id, d) for d in documents]


def catalogue(*documents: DeviceType | Rule | Firmware) -> Snapshot:
    """A catalogue with the device type DU and these."""
    known = any(isinstance(d, DeviceType) and d.key == "DU" for d in documents)
    everything = [*(() if known else (DeviceType(key="DU", name="DU"),)), *documents]
    snapshot, refused = Snapshot().with_changes(changes_of(everything), revision=1, device_lists=LISTS)
    assert not refused
    return snapshot


# ---- texts


@pytest.mark.parametrize("text", ["DU", "a", "du-2_x.y", "9", "a" * 64])
def test_a_plain_key_is_taken(text: str) -> None:
    assert check_key(text) == text


@pytest.mark.parametrize("text", ["", "-a", ".a", "a/b", "a+b", "a#", "a%", "a b", "ä", "a" * 65, "a\n"])
def test_a_key_that_would_not_fit_a_topic_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_key(text)


@pytest.mark.parametrize(
    ("text", "shown"), [("坏", "'坏'"), ("a\nb", r"'a\nb'"), ("\u202e", r"'\u202e'"), ("\ud800", r"'\ud800'")]
)
def test_a_refused_text_is_shown_with_what_is_not_printable_spelled_out(text: str, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        check_key(text)
    assert caught.value.detail.startswith(f"{shown} must be")


@pytest.mark.parametrize("text", ["固件 1", "x", "n" * 128, " trimmed "])
def test_a_name_may_be_any_text(text: str) -> None:
    assert check_name(text) == text.strip()


@pytest.mark.parametrize("check", [check_name, check_event])
@pytest.mark.parametrize("text", ["", "n" * 129, "a\x00b", "a\nb", "a\x7fb", "a\x85b", "\ud800"])
def test_a_line_with_control_characters_or_too_long_is_refused(check: object, text: str) -> None:
    with pytest.raises(InputError):
        check(text)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["1.0", " V2.0.0_B03 ", "7"])
def test_a_version_is_trimmed(text: str) -> None:
    assert check_version(text) == text.strip()


@pytest.mark.parametrize("text", ["", "new", "1" * 129, "1.0\n2", "1\ud800"])
def test_a_version_without_a_digit_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_version(text)


@pytest.mark.parametrize("text", ["", "ä" * 65, "\ud800"])
def test_a_bad_attribute_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_attribute(text)


@pytest.mark.parametrize("text", ["DU_1", "GW/ADDR", "GW/a%2Fb/100%25", "采集器/仪表 1/+#"])
def test_a_direct_device_and_a_child_have_identifiers(text: str) -> None:
    assert check_identifier(text) == text


@pytest.mark.parametrize("text", ["", "a+b", "a#", "a%", "a\x01", "d" * 129])
def test_a_bad_identifier_is_refused_and_both_kinds_are_told(text: str) -> None:
    with pytest.raises(InputError, match=r"without / \+ # % .* a gateway's child is GATEWAY/ADDRESS"):
        check_identifier(text)


@pytest.mark.parametrize(
    "text", ["/a", "GW/", "GW//a", "G+/a", "GW/a%", "GW/a%2fb", "GW/ a", "GW/a\x01", "GW" + "/a" * 9]
)
def test_a_bad_identifier_of_a_child_is_refused_with_how_one_is_spelled(text: str) -> None:
    with pytest.raises(InputError, match=r"GATEWAY/ADDRESS.*`/` written %2F and `%` written %25"):
        check_identifier(text)


@pytest.mark.parametrize("text", ["", "01arz3ndektsv4rrffq69g5fav", "81ARZ3NDEKTSV4RRFFQ69G5FAV", "0" * 25])
def test_what_is_no_ulid_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_ulid(text)


# ---- device types


def test_a_new_type_comes_with_its_default_rule() -> None:
    changes = admit_type(Snapshot(), DeviceType(key="DU", name="DU", created_at_ms=5), default_rule_id="R1")
    rule = next(c.document for c in changes if isinstance(c.document, Rule))
    assert (rule.id, rule.device_type, rule.event, rule.version_attribute, rule.module, rule.enabled) == (
        "R1",
        "DU",
        "otaCheck",
        "version",
        "main",
        True,
    )


def test_the_default_rule_reads_the_first_attribute_of_a_new_type() -> None:
    proposed = DeviceType(key="DU", name="DU", version_attributes=("fw_version", "mcu"))
    documents = [change.document for change in admit_type(Snapshot(), proposed, default_rule_id="R1")]
    assert documents[0] == proposed
    assert [d.version_attribute for d in documents if isinstance(d, Rule)] == ["fw_version"]


def test_an_edit_counts_the_revision_and_keeps_the_age() -> None:
    snapshot = catalogue(DeviceType(key="DU", name="DU", created_at_ms=7, revision=3))
    (change,) = admit_type(snapshot, DeviceType(key="DU", name="new", created_at_ms=99), default_rule_id="R1")
    assert change.document == DeviceType(key="DU", name="new", created_at_ms=7, revision=4)


def test_an_attribute_that_a_rule_uses_can_not_be_taken_away() -> None:
    snapshot = catalogue(Rule(id="R1", name="mine", device_type="DU", version_attribute="version"))
    with pytest.raises(ConflictError, match=r"'mine'.*R1"):
        admit_type(snapshot, DeviceType(key="DU", name="DU", version_attributes=("mcu",)), default_rule_id="R2")


def test_a_scheme_that_refuses_a_stored_version_is_refused() -> None:
    snapshot = catalogue(firmware("F1", "V100R001"))
    with pytest.raises(ConflictError, match=r"Of 1 firmware .*V100R001.*F1"):
        admit_type(snapshot, DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER), default_rule_id="R2")


def test_a_scheme_that_refuses_many_stored_versions_counts_them_and_names_some() -> None:
    snapshot = catalogue(*(firmware(f"F{n}", f"V10{n}") for n in range(4)), firmware("GOOD", "1.0.0"))
    with pytest.raises(
        ConflictError, match=r"Of 4 firmware .*'V100' \(F0 F0\), .*, …\. Delete those first\."
    ) as raised:
        admit_type(snapshot, DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER), default_rule_id="R2")
    assert "GOOD" not in str(raised.value)


def test_a_scheme_that_makes_two_firmware_equal_is_refused() -> None:
    semver = DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER)
    # SemVer does not fold case in pre-releases; `auto` does.
    snapshot = catalogue(semver, firmware("F1", "1.0.0-RC.1"), firmware("F2", "1.0.0-rc.1"))
    with pytest.raises(ConflictError, match=r"F[12]"):
        admit_type(snapshot, DeviceType(key="DU", name="DU"), default_rule_id="R2")


def test_a_scheme_may_change_beside_a_downgrade_and_the_version_that_mended_it() -> None:
    down = firmware("DOWN", "1.0.0", sources=["2.0.0"], allow_downgrade=True)
    snapshot = catalogue(down, firmware("UP", "2.0.1"))
    semver = DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER)
    assert admit_type(snapshot, semver, default_rule_id="R2")


def test_a_scheme_that_sends_devices_in_circles_is_refused() -> None:
    semver = DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER)
    down = firmware("DOWN", "1.0.0-a", sources=["2.0.0-RC.1"], allow_downgrade=True)
    # To SemVer these are two versions; to `auto` the upgrade leads back to what the downgrade leads away from.
    snapshot = catalogue(semver, down, firmware("UP", "2.0.0-rc.1", device_list="abc"))
    with pytest.raises(ConflictError, match="undo each other"):
        admit_type(snapshot, DeviceType(key="DU", name="DU"), default_rule_id="R2")


def test_a_scheme_is_changed_quickly_among_ten_thousand_firmware() -> None:
    many = [firmware(f"F{n}", f"1.{n}.0", module=f"m{n % 3}") for n in range(10_000)]
    began = time.process_time()
    semver = DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER)
    assert admit_type(catalogue(*many), semver, default_rule_id="R2")
    assert time.process_time() - began < 5


def test_a_type_in_use_can_not_be_deleted_and_the_users_are_named() -> None:
    snapshot = catalogue(*(firmware(f"F{n}", f"1.{n}") for n in range(5)))
    with pytest.raises(ConflictError, match=r"5 firmware \(.*F0.*…\) and by devices \(d1, d2\)"):
        remove_type(snapshot, "DU", devices=["d1", "d2"])


def test_a_type_goes_with_its_rules_once_its_firmware_is_deleted() -> None:
    snapshot = catalogue(
        Rule(id="R1", name="r", device_type="DU"), firmware("F1", "1.0", deleted_at_ms=5), DeviceType(key="B", name="B")
    )
    changes = remove_type(snapshot, "DU", devices=[])
    assert [(c.kind, c.key, c.document) for c in changes] == [
        (DocumentKind.RULE, "R1", None),
        (DocumentKind.DEVICE_TYPE, "DU", None),
    ]


def test_a_type_does_not_go_under_firmware_that_can_not_be_used_now() -> None:
    """Made anew with another scheme, the type would bring it into force."""
    lost = firmware("F", "2.0", device_list="lost")
    snapshot, _ = catalogue().with_changes(changes_of([lost]), revision=2, device_lists={})
    with pytest.raises(ConflictError, match="F F"):
        remove_type(snapshot, "DU", devices=())


def test_a_type_that_is_created_over_a_refused_one_keeps_its_rules_and_gets_no_second_default() -> None:
    rule = Rule(id="R", name="r", device_type="DU", version_attribute="mcu", enabled=False)
    known = catalogue(rule, DeviceType(key="DU", name="DU", version_attributes=("version", "mcu")))
    snapshot = replace(known, types={})
    (written,) = admit_type(snapshot, DeviceType(key="DU", name="DU"), default_rule_id="D")
    assert written.document == DeviceType(key="DU", name="DU", version_attributes=("version", "mcu"))


def test_deleting_an_unknown_type_is_not_found() -> None:
    with pytest.raises(NotFound):
        remove_type(Snapshot(), "DU", devices=[])


# ---- rules


def test_a_rule_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(InputError, match="no device type"):
        admit_rule(Snapshot(), Rule(id="R1", name="r", device_type="DU"))


def test_a_rule_that_names_a_new_attribute_widens_the_type() -> None:
    changes = admit_rule(catalogue(), Rule(id="R1", name="r", device_type="DU", version_attribute="mcu"))
    widened = next(c.document for c in changes if isinstance(c.document, DeviceType))
    assert (widened.version_attributes, widened.revision) == (("version", "mcu"), 2)


def test_a_second_rule_for_the_same_question_is_refused_even_if_disabled() -> None:
    snapshot = catalogue(Rule(id="R1", name="first", device_type="DU", enabled=False))
    with pytest.raises(ConflictError, match=r"'first'.*R1"):
        admit_rule(snapshot, Rule(id="R2", name="second", device_type="DU"))


def test_rules_for_two_modules_of_one_event_stand_side_by_side() -> None:
    snapshot = catalogue(Rule(id="R1", name="r", device_type="DU"))
    assert len(admit_rule(snapshot, Rule(id="R2", name="r", device_type="DU", module="mcu"))) == 1


def test_a_rule_can_not_move_to_another_type() -> None:
    snapshot = catalogue(Rule(id="R1", name="r", device_type="DU"), DeviceType(key="B", name="B"))
    with pytest.raises(InputError, match="another device type"):
        admit_rule(snapshot, Rule(id="R1", name="r", device_type="B"))


def test_an_identical_rule_is_found_whatever_its_id_and_age() -> None:
    stored = Rule(id="R1", name="r", device_type="DU", created_at_ms=3, revision=7)
    snapshot = catalogue(stored)
    asked = Rule(id="R2", name="r", device_type="DU", created_at_ms=9)
    assert find_identical_rule(snapshot, asked) == stored
    assert find_identical_rule(snapshot, replace(asked, name="other")) is None


# ---- firmware


def test_a_firmware_with_a_version_that_the_scheme_refuses_is_refused() -> None:
    semver = DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER)
    with pytest.raises(InputError, match="scheme 'semver'"):
        check_firmware_version(catalogue(semver), "DU", "1.0")


def test_a_downgrade_needs_source_versions() -> None:
    with pytest.raises(InputError, match="from which versions"):
        admit_firmware(catalogue(), firmware("F1", "1.0", allow_downgrade=True), None)


@pytest.mark.parametrize(
    ("stored", "proposed"),
    [
        (firmware("F1", "1.0"), firmware("F2", "1.0")),
        (firmware("F1", "1.0"), firmware("F2", "v1.0.0")),
        (firmware("F1", "1.0", enabled=False), firmware("F2", "1.0")),
        (firmware("F1", "2.0", sources=["1.0", "1.1"]), firmware("F2", "2.0", sources=["1.1", "1.2"])),
    ],
    ids=["equal text", "equal key", "disabled", "shared source"],
)
def test_a_duplicate_is_refused_and_the_first_named(stored: Firmware, proposed: Firmware) -> None:
    with pytest.raises(ConflictError, match="F1"):
        admit_firmware(catalogue(stored), proposed, None)


@pytest.mark.parametrize(
    ("stored", "proposed"),
    [
        (firmware("F1", "1.0"), firmware("F2", "1.0.1")),
        (firmware("F1", "1.0"), firmware("F2", "1.0", module="mcu")),
        (firmware("F1", "1.0", deleted_at_ms=9), firmware("F2", "1.0")),
        (firmware("F1", "1.0"), firmware("F2", "1.0", sources=["0.9"])),
        (firmware("F1", "2.0", sources=["1.0"]), firmware("F2", "2.0", sources=["1.1"])),
        (firmware("F1", "1.0", device_list="abc"), firmware("F2", "1.0")),
        (firmware("F1", "1.0"), firmware("F2", "1.0", device_list="")),
        # Source versions are texts: a delta for 1.0 is none for 1.0.0.
        (firmware("F1", "2.0", sources=["1.0"]), firmware("F2", "2.0", sources=["1.0.0"])),
    ],
    ids=["version", "module", "deleted", "one full", "sources apart", "stored listed", "nobody", "other text"],
)
def test_what_differs_in_one_of_these_is_no_duplicate(stored: Firmware, proposed: Firmware) -> None:
    (change,) = admit_firmware(catalogue(stored), proposed, None)
    assert change.document == proposed


def test_a_duplicate_by_another_text_says_that_the_two_are_equal() -> None:
    snapshot = catalogue(
        DeviceType(key="DU", name="DU", version_scheme=VersionScheme.SEMVER), firmware("F1", "1.0.0+5")
    )
    with pytest.raises(ConflictError, match=r"version '1\.0\.0\+5', which is equal to '1\.0\.0' in its scheme"):
        admit_firmware(snapshot, firmware("F2", "1.0.0"), None)
    with pytest.raises(ConflictError, match=r"version '1\.0\.0\+5' for the same"):
        admit_firmware(snapshot, firmware("F2", "1.0.0+5"), None)


@pytest.mark.parametrize("scheme", VersionScheme)
def test_a_version_that_is_none_says_what_would_be_one(scheme: VersionScheme) -> None:
    snapshot = catalogue(DeviceType(key="DU", name="DU", version_scheme=scheme))
    with pytest.raises(InputError, match=r"'nightly' is not a version in the scheme .* which takes .*\."):
        check_firmware_version(snapshot, "DU", "nightly")


@pytest.mark.parametrize("text", ["a b", "a,b", "tab\t", ""])
def test_what_is_no_tag_is_quoted(text: str) -> None:
    with pytest.raises(InputError) as raised:
        check_tag(text)
    assert raised.value.detail.startswith(f"{text!r} is no tag: 1 to 64 bytes")


def test_taking_the_list_away_may_make_a_duplicate() -> None:
    listed = firmware("F2", "1.0", device_list="abc")
    with pytest.raises(ConflictError, match="F1"):
        admit_firmware(catalogue(firmware("F1", "1.0"), listed), replace(listed, device_list=None), None)


DOWNGRADE = firmware("DOWN", "1.0", sources=["2.0"], allow_downgrade=True)


@pytest.mark.parametrize(
    "enabled",
    [
        firmware("UP", "2.0"),
        firmware("UP", "3.0"),
        firmware("UP", "2.0", sources=["1.0"]),
        firmware("UP", "2.0", device_list="abc"),
        firmware("UP", "0.9", sources=["1.0"], allow_downgrade=True),
    ],
    ids=["back", "past it", "delta from it", "for some", "further down"],
)
def test_a_downgrade_that_an_enabled_firmware_would_undo_is_refused(enabled: Firmware) -> None:
    with pytest.raises(ConflictError, match="undo each other") as caught:
        admit_firmware(catalogue(enabled), DOWNGRADE, None)
    assert caught.value.field == "allow_downgrade"


@pytest.mark.parametrize(
    "other",
    [
        firmware("UP", "2.0", enabled=False),
        firmware("UP", "2.0", deleted_at_ms=4),
        firmware("UP", "2.0", module="mcu"),
        firmware("UP", "2.0", sources=["1.1"]),
        firmware("UP", "0.9"),
        firmware("UP", "2.0", device_list=""),
    ],
    ids=["disabled", "deleted", "other module", "not from there", "older", "for nobody"],
)
def test_a_downgrade_that_nothing_undoes_is_taken(other: Firmware) -> None:
    assert admit_firmware(catalogue(other), DOWNGRADE, None)[0].document == DOWNGRADE


@pytest.mark.parametrize(
    ("devices", "refused"), [("abc", True), ("cde", True), ("xyz", False)], ids=["same", "overlap", "apart"]
)
def test_a_downgrade_and_an_upgrade_for_different_devices_stand_side_by_side(devices: str, refused: bool) -> None:
    snapshot = catalogue(firmware("UP", "2.0", device_list="abc"))
    proposed = replace(DOWNGRADE, device_list="staged")
    if refused:
        with pytest.raises(ConflictError):
            admit_firmware(snapshot, proposed, LISTS[devices])
    else:
        assert admit_firmware(snapshot, proposed, LISTS[devices])


def test_a_list_that_is_not_known_counts_as_one_that_overlaps() -> None:
    with pytest.raises(ConflictError):
        admit_firmware(
            catalogue(firmware("UP", "2.0", device_list="abc")), replace(DOWNGRADE, device_list="staged"), None
        )


def test_an_upgrade_back_to_what_a_downgrade_leads_away_from_is_refused() -> None:
    with pytest.raises(ConflictError, match="undo each other") as caught:
        admit_firmware(catalogue(DOWNGRADE), firmware("UP", "2.0.0"), None)
    assert caught.value.field == "version"


def test_three_firmware_that_lead_a_device_round_are_refused() -> None:
    back = firmware("DOWN", "1.0", sources=["3.0"], allow_downgrade=True)
    on = firmware("UP", "2.0", sources=["1.0"])
    with pytest.raises(ConflictError, match="undo each other"):
        admit_firmware(catalogue(back, on), firmware("CLOSE", "3.0", sources=["2.0"]), None)
    with pytest.raises(ConflictError, match="undo each other"):
        admit_firmware(catalogue(back, firmware("CLOSE", "3.0", sources=["2.0"])), replace(on, id="UP2"), None)
    assert admit_firmware(catalogue(back, on), firmware("ASIDE", "2.5", sources=["2.0"]), None)


@pytest.mark.parametrize("source", ["1.0.0", "v1.0"])
def test_a_round_is_found_however_the_versions_are_spelled(source: str) -> None:
    back = firmware("DOWN", "1.0", sources=["3.0"], allow_downgrade=True)
    with pytest.raises(ConflictError, match="undo each other"):
        admit_firmware(catalogue(back), firmware("UP", "3.0.0", sources=[source]), None)


def test_a_mended_version_after_a_downgrade_is_taken() -> None:
    assert admit_firmware(catalogue(DOWNGRADE), firmware("UP", "2.0.1"), None)


def test_enabling_is_held_to_the_same_rules() -> None:
    off = firmware("UP", "2.0", enabled=False)
    with pytest.raises(ConflictError):
        admit_firmware(catalogue(DOWNGRADE, off), replace(off, enabled=True), None)


def test_an_edit_that_does_not_change_who_gets_it_is_not_held_to_what_came_after() -> None:
    snapshot = catalogue(DOWNGRADE, firmware("UP", "2.0.1"))
    (change,) = admit_firmware(snapshot, replace(DOWNGRADE, name="renamed"), None)
    assert change.document == replace(DOWNGRADE, name="renamed", revision=2)


def test_what_may_lead_down_but_leads_up_is_no_downgrade() -> None:
    upwards = firmware("F2", "2.0", sources=["1.0"], allow_downgrade=True)
    assert admit_firmware(catalogue(firmware("F1", "3.0")), upwards, None)


def test_a_deleted_firmware_is_gone_and_an_unknown_one_not_found() -> None:
    snapshot = catalogue(firmware("F1", "1.0", deleted_at_ms=3))
    with pytest.raises(NotFound) as gone:
        find_firmware(snapshot, "F1")
    with pytest.raises(NotFound) as unknown:
        find_firmware(snapshot, "F2")
    assert (gone.value.gone, unknown.value.gone) == (True, False)


def test_deleting_a_firmware_leaves_a_tombstone() -> None:
    (change,) = remove_firmware(catalogue(firmware("F1", "1.0")), "F1", now_ms=9)
    assert change.document == firmware("F1", "1.0", deleted_at_ms=9, revision=2)
