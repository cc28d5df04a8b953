"""The catalogue in force: what a change rebuilds, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ota_hook._device_set import DeviceSet
from ota_hook.model import CatalogueChange, DeviceType, DocumentKind, Firmware, Rule, VersionScheme
from ota_hook.snapshot import RefusedDocument, Snapshot
from tests.device_sets import device_set
from tests.doubles import make_firmware, make_snapshot


def change(
    snapshot: Snapshot, document: DeviceType | Rule | Firmware, lists: Mapping[str, DeviceSet] | None = None
) -> tuple[Snapshot, list[RefusedDocument]]:
    match document:
        case DeviceType():
            changed = CatalogueChange(DocumentKind.DEVICE_TYPE, document.key, document)
        case Rule():
            changed = CatalogueChange(DocumentKind.RULE, document.id, document)
        case _:
            changed = CatalogueChange(DocumentKind.FIRMWARE, document.id, document)
    return snapshot.with_changes([changed], revision=snapshot.revision + 1, device_lists=lists or {})


def resolve(snapshot: Snapshot, identifier: str = "d1", current: str = "1.0", module: str = "main") -> str | None:
    index = snapshot.index("tracker", module)
    return index.resolve(identifier, current) if index is not None else None


def test_a_change_leaves_the_old_snapshot_as_it_was() -> None:
    before = make_snapshot(make_firmware("F", "2.0"))
    after, _ = change(before, make_firmware("F", "2.0", enabled=False))
    assert (resolve(before), resolve(after)) == ("F", None)


def test_only_the_index_that_a_change_touches_is_made_anew() -> None:
    before = make_snapshot(make_firmware("F", "2.0"), make_firmware("G", "2.0", module="gps"))
    after, _ = change(before, make_firmware("H", "3.0"))
    assert after.index("tracker", "gps") is before.index("tracker", "gps")
    assert after.index("tracker", "main") is not before.index("tracker", "main")


def test_a_document_that_can_not_be_used_is_refused_and_the_last_good_one_stays() -> None:
    before = make_snapshot(make_firmware("F", "2.0"))
    for broken in (
        make_firmware("F", "no version"),
        make_firmware("F", "2.0", device_type="gone"),
        make_firmware("F", "2.0", allow_downgrade=True),
        make_firmware("F", "2.0", device_list="missing"),
    ):
        after, refused = change(before, broken)
        assert [document.key for document in refused] == ["F"]
        assert resolve(after) == "F"


def test_an_edited_scheme_takes_firmware_out_that_it_can_not_read() -> None:
    before = make_snapshot(make_firmware("F", "2.0"), make_firmware("G", "1.5.0"))
    after, refused = change(before, DeviceType(key="tracker", name="Tracker", version_scheme=VersionScheme.SEMVER))
    assert [document.key for document in refused] == ["F"]
    assert resolve(after, current="1.0.0") == "G"


def test_a_firmware_that_moves_leaves_the_index_that_it_was_in() -> None:
    before = make_snapshot(make_firmware("F", "2.0"), make_firmware("G", "1.5"))
    after, _ = change(before, make_firmware("F", "2.0", module="gps"))
    assert (resolve(after), resolve(after, module="gps")) == ("G", "F")
    alone, _ = change(after, make_firmware("G", "1.5", module="gps"))
    assert alone.index("tracker", "main") is None


def test_an_edited_type_that_keeps_its_scheme_keeps_its_indices() -> None:
    before = make_snapshot(make_firmware("F", "2.0"))
    after, _ = change(before, DeviceType(key="tracker", name="Renamed"))
    assert after.index("tracker", "main") is before.index("tracker", "main")


def test_firmware_that_a_scheme_refused_is_back_when_the_scheme_is() -> None:
    before = make_snapshot(make_firmware("F", "2.0"))
    tracker = before.types["tracker"]
    strict, _ = change(before, replace(tracker, version_scheme=VersionScheme.SEMVER))
    assert resolve(strict, current="1.0.0") is None
    edited, _ = change(strict, make_firmware("G", "1.5.0"))
    assert resolve(edited, current="1.0.0") == "G"
    lenient, refused = change(edited, tracker)
    assert (resolve(lenient, current="1.0.0"), refused) == ("F", [])


def test_a_type_that_comes_back_brings_its_firmware_back() -> None:
    before = make_snapshot(make_firmware("F", "2.0"))
    removal = CatalogueChange(DocumentKind.DEVICE_TYPE, "tracker", None)
    gone, _ = before.with_changes([removal], revision=2, device_lists={})
    back, _ = change(gone, before.types["tracker"])
    assert resolve(back) == "F"


def test_a_type_may_come_after_what_refers_to_it_in_one_batch() -> None:
    lamp = DeviceType(key="lamp", name="Lamp")
    firmware = replace(make_firmware("F", "2.0"), device_type="lamp")
    snapshot, refused = Snapshot().with_changes(
        [
            CatalogueChange(DocumentKind.FIRMWARE, "F", firmware),
            CatalogueChange(DocumentKind.DEVICE_TYPE, "lamp", lamp),
        ],
        revision=1,
        device_lists={},
    )
    assert refused == []
    assert snapshot.index("lamp", "main") is not None


def test_a_list_that_no_firmware_names_any_more_is_dropped() -> None:
    listed = make_snapshot(make_firmware("F", "2.0", device_list="L"), lists={"L": device_set("d1")})
    assert resolve(listed, "d1") == "F"
    assert resolve(listed, "d2") is None
    released, _ = change(listed, make_firmware("F", "2.0"))
    assert released.device_lists == {}
    assert resolve(released, "d2") == "F"


def test_a_tombstone_stays_known_and_is_in_no_index() -> None:
    snapshot, _ = change(make_snapshot(make_firmware("F", "2.0")), make_firmware("F", "2.0", deleted_at_ms=5))
    assert snapshot.firmware["F"].deleted_at_ms == 5
    assert resolve(snapshot) is None


def test_a_removed_type_takes_its_rules_and_indices_out_of_force() -> None:
    before = make_snapshot(make_firmware("F", "2.0"))
    removal = CatalogueChange(DocumentKind.DEVICE_TYPE, "tracker", None)
    after, _ = before.with_changes([removal], revision=2, device_lists={})
    assert after.rules_for("tracker", "otaCheck") == ()
    assert after.index("tracker", "main") is None
    assert after.kept_attributes == frozenset()
