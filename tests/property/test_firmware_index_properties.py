"""The compiled firmware index against the oracle, one device and whole buckets, on catalogues made at random."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ota_hook._device_set import DeviceSet, DeviceSetBuilder
from ota_hook._matcher import FirmwareIndex, Match
from ota_hook._packed import VersionCounter
from ota_hook.model import ReportedVersion
from ota_hook.state.records import pack_device
from tests import oracle

SCHEMES = ("auto", "semver", "pep440", "debian")
KNOWN_VERSIONS = ("1.0.0", "1.0.0-rc.1", "1.0.1", "1.1.0", "1.1.0+4", "2.0.0")
VERSIONS = {
    "auto": (*KNOWN_VERSIONS, "1.0", "v1", " 1.0.1 ", "1.1.0-hotfix", "2"),
    "semver": KNOWN_VERSIONS,
    "pep440": (*KNOWN_VERSIONS, "1.0", "v1", " 1.0.1 ", "1.0rc1", "1.1.0.post1", "1!0.5"),
    "debian": (*KNOWN_VERSIONS, "1.0", "0:1.0", " 1.0.1 ", "1.0.0~rc1", "1.0.0-0", "1:0.5"),
}
EVERY_VERSION = sorted({version for versions in VERSIONS.values() for version in versions})
SOURCES = ("1.0.0", "1.0.1", " 1.0.1 ", "1.1.0", "2.0.0", "1.0", "none", "")
IDENTIFIERS = ("d1", "d2", "d3", "d4", "设备5")
TAGS = ("beta", "lab", "北京")
CURRENTS = st.sampled_from([*EVERY_VERSION, *SOURCES, "1.0.1\t"]) | st.text(max_size=20)

identifiers = st.sampled_from((*IDENTIFIERS, "elsewhere")) | st.text(min_size=1, max_size=8)
tags_of_device = st.lists(st.sampled_from(TAGS), unique=True).map(lambda tags: tuple(sorted(tags)))
devices = st.builds(oracle.Device, identifiers, tags_of_device)


@st.composite
def catalogues(draw: st.DrawFn, scheme: str) -> list[oracle.Firmware]:
    catalogue = []
    for place in range(draw(st.integers(0, 8))):
        sources = tuple(draw(st.lists(st.sampled_from(SOURCES), max_size=3)))
        catalogue.append(
            oracle.Firmware(
                id=f"F{place * 7 % 11:02}",  # no two alike, and not in the order of the list
                version=draw(st.sampled_from(VERSIONS[scheme])),
                enabled=draw(st.sampled_from([True, True, True, False])),
                devices=draw(st.none() | st.frozensets(st.sampled_from(IDENTIFIERS))),
                tags=draw(st.none() | st.lists(st.sampled_from(TAGS), max_size=2).map(tuple)),
                basis_points=draw(st.none() | st.sampled_from([0, 1, 3_000, 5_000, 9_999, 10_000])),
                percentage_seed=draw(st.sampled_from([0, 1, 2**64 - 1])),
                source_versions=sources,
                allow_downgrade=bool(sources) and draw(st.booleans()),
                created_at_ms=draw(st.integers(0, 2)),
            )
        )
    return catalogue


def compiled(scheme: str, catalogue: Sequence[oracle.Firmware]) -> FirmwareIndex:
    return FirmwareIndex(scheme, oracle.compiled_entries(catalogue))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_resolve_and_explain_agree_with_the_oracle(scheme: str, data: st.DataObject) -> None:
    catalogue = data.draw(catalogues(scheme))
    index = compiled(scheme, catalogue)
    current = data.draw(CURRENTS | st.none())
    assert len(index) == len(catalogue)
    for device in (*map(oracle.Device, IDENTIFIERS), *data.draw(st.lists(devices, max_size=4))):
        if current is not None:
            expected = oracle.resolve(scheme, catalogue, device, current)
            assert index.resolve(device.identifier, current, device.tags) == expected
            assert index.resolve(device.identifier, current, device.tags) == expected  # what it remembered
        assert index.explain(device.identifier, current, device.tags) == oracle.explain(
            scheme, catalogue, device, current
        )


@given(catalogues("auto"), devices, st.sampled_from(VERSIONS["auto"]), st.randoms())
@example([], oracle.Device("d1"), "1.0", None)
def test_the_order_of_entries_says_nothing(
    catalogue: list[oracle.Firmware], device: oracle.Device, current: str, random: object
) -> None:
    shuffled = list(catalogue)
    if random is not None:
        random.shuffle(shuffled)  # type: ignore[attr-defined]
    ours, theirs = compiled("auto", catalogue), compiled("auto", shuffled)
    assert ours.explain(device.identifier, current, device.tags) == theirs.explain(
        device.identifier, current, device.tags
    )


@given(catalogues("auto"), devices, st.sampled_from(VERSIONS["auto"]))
def test_upgrades_without_downgrades_end(catalogue: list[oracle.Firmware], device: oracle.Device, current: str) -> None:
    catalogue = [oracle.Firmware(**(vars(one) | {"allow_downgrade": False})) for one in catalogue]
    index = compiled("auto", catalogue)
    by_id = {one.id: one.version for one in catalogue}
    steps = 0
    while (chosen := index.resolve(device.identifier, current, device.tags)) is not None:
        assert oracle.compare("auto", current, by_id[chosen]) < 0
        current = by_id[chosen]
        steps += 1
    assert steps <= len(catalogue)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_an_index_after_changes_is_the_index_of_what_there_is_then(scheme: str, data: st.DataObject) -> None:
    catalogue = data.draw(catalogues(scheme))
    entries = {entry.id: entry for entry in oracle.compiled_entries(catalogue)}
    index = compiled(scheme, catalogue)
    asking = [*map(oracle.Device, IDENTIFIERS), *data.draw(st.lists(devices, max_size=3))]
    for _ in range(data.draw(st.integers(1, 3))):
        before, said_before = index, explanations(index, asking)
        edited = {e.id: e for e in oracle.compiled_entries(data.draw(catalogues(scheme)))}
        # Lists stay the objects that they are where an edit is about something else.
        kept_lists = {
            key: edited[key]._replace(devices=entries[key].devices)
            for key in edited.keys() & entries.keys()
            if data.draw(st.booleans())
        }
        removed = data.draw(st.lists(st.sampled_from([*entries, "UNKNOWN"]), unique=True))
        changed = edited | kept_lists
        entries = {key: entry for key, entry in entries.items() if key not in removed} | changed
        index = before.with_changes(changed.values(), removed)
        assert explanations(index, asking) == explanations(FirmwareIndex(scheme, entries.values()), asking)
        assert len(index) == len(entries)
        assert explanations(before, asking) == said_before


def explanations(index: FirmwareIndex, asking: Sequence[oracle.Device]) -> list[object]:
    return [
        (index.resolve(device.identifier, current, device.tags), index.explain(device.identifier, current, device.tags))
        for device in asking
        for current in ("1.0.0", "1.0.1", "none", "2.0.0")
    ]


# --- whole buckets ----------------------------------------------------------------------------------------------------


@st.composite
def stored_devices(draw: st.DrawFn) -> tuple[str, str, str | None, tuple[str, ...], bytes]:
    """Identifier, type, version, tags, and how that is packed."""
    device = draw(devices)
    device_type = draw(st.sampled_from(["tracker", "tracker", "meter", "设备" * 20]))
    version = draw(st.none() | CURRENTS)
    versions = {"battery_version": ReportedVersion("9.9", 2**53)} if draw(st.booleans()) else {}
    if version is not None:
        versions["version"] = ReportedVersion(version, draw(st.sampled_from([0, 1, 1_750_234_507_181])))
    packed = pack_device(device_type, versions)
    if device.tags:
        flat = [*msgpack.unpackb(packed, unicode_errors="surrogatepass"), "", 0, " ".join(device.tags)]
        packed = msgpack.packb(flat, unicode_errors="surrogatepass")
    return device.identifier, device_type, version, device.tags, packed


Stored = tuple[str, str, str | None, tuple[str, ...], bytes]
buckets = st.lists(stored_devices(), max_size=20, unique_by=lambda stored: stored[0])


def packed_bucket(stored: Sequence[Stored], split: int) -> bytes:
    """As Redis packs it: what is long stands in a second array, with an empty state in the first."""
    short: list[str | bytes] = []
    long: list[str | bytes] = []
    for place, (identifier, *_, packed) in enumerate(stored):
        short += [identifier, b"" if place % (split + 1) == 0 else packed]
        if place % (split + 1) == 0:
            long += [identifier, packed]
    pack = msgpack.Packer(use_bin_type=False, unicode_errors="surrogatepass").pack
    return bytes(pack(short) + pack(long))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_a_bucket_is_matched_as_its_devices_one_by_one(scheme: str, data: st.DataObject) -> None:
    catalogue = data.draw(catalogues(scheme))
    stored = data.draw(buckets)
    bucket = packed_bucket(stored, data.draw(st.integers(0, 2)))
    found = compiled(scheme, catalogue).resolve_many(bucket, "tracker", "version")
    expected = set()
    for identifier, device_type, version, tags, _ in stored:
        if device_type == "tracker" and version is not None:
            best = oracle.resolve(scheme, catalogue, oracle.Device(identifier, tags), version)
            if best is not None:
                expected.add(Match(identifier, best, version))
    assert set(found) == expected
    assert len(found) == len(expected)


@given(st.lists(buckets, max_size=3), st.sampled_from(["tracker", "meter", "no such type"]))
def test_versions_are_counted_as_one_by_one(several: list[Sequence[Stored]], device_type: str) -> None:
    counter = VersionCounter(device_type, "version")
    versions: list[str | None] = []
    for stored in several:
        counter.add(packed_bucket(stored, 1))
        versions += [version for _, its_type, version, _, _ in stored if its_type == device_type]
    expected = {text: versions.count(text) for text in versions if text is not None}
    assert counter.counts() == expected
    assert (counter.devices, counter.without, counter.other) == (len(versions), versions.count(None), 0)
    assert counter.unreadable == 0


@given(buckets, st.integers(0, 400), st.binary(max_size=8))
def test_a_mangled_bucket_never_raises_nor_invents_a_device(stored: Sequence[Stored], at: int, stray: bytes) -> None:
    bucket = packed_bucket(stored, 1)
    index = compiled("auto", [oracle.Firmware("F", "99")])
    for mangled in (bucket[:at], bucket[at:], bucket[:at] + stray + bucket[at:], stray * 3):
        counter = VersionCounter("tracker", "version")
        counter.add(mangled)
        assert counter.devices - counter.without >= len(index.resolve_many(mangled, "tracker", "version"))
    assert len(index.resolve_many(bucket[:at], "tracker", "version")) <= len(stored)


def test_a_counter_tells_only_so_many_texts_apart() -> None:
    counter = VersionCounter("t", "version", texts_max=100)
    pack = msgpack.Packer(use_bin_type=False).pack
    for number in range(250):
        packed = pack_device("t", {"version": ReportedVersion(f"1.{number % 125}", 0)})
        counter.add(pack([f"d{number}", packed]))
    assert counter.counts() == {f"1.{number}": 2 for number in range(100)}
    assert (counter.devices, counter.other) == (250, 50)


# --- sets of devices --------------------------------------------------------------------------------------------------

members = st.frozensets(st.text(max_size=12) | st.sampled_from(IDENTIFIERS), max_size=60)


@given(members, members, st.integers(0, 2**64 - 1))
def test_a_set_of_devices_behaves_as_a_set(ours: frozenset[str], theirs: frozenset[str], seed: int) -> None:
    left, right = DeviceSet.of(ours, seed=seed), DeviceSet.of(theirs, seed=seed)
    assert len(left) == len(ours)
    assert {member in left for member in ours} <= {True}
    assert [member in left for member in theirs] == [member in ours for member in theirs]
    assert left.isdisjoint(right) == ours.isdisjoint(theirs)
    assert (left == right) == (ours == theirs)
    assert DeviceSet(seed, left.digests()) == left


@given(st.lists(st.text(max_size=3), max_size=300))
def test_a_builder_tells_what_is_new(given_identifiers: list[str]) -> None:
    builder = DeviceSetBuilder(7)
    seen: set[str] = set()
    for identifier in given_identifiers:
        assert builder.add(identifier) == (identifier not in seen)
        seen.add(identifier)
        assert len(builder) == len(seen)
    assert builder.finish() == DeviceSet.of(seen, seed=7)


def test_a_large_list_has_exactly_its_members() -> None:
    listed = DeviceSet.of((f"DU_{number:09}" for number in range(0, 200_000, 2)), seed=1)
    index = FirmwareIndex("auto", [oracle.Firmware("F", "2").entry()._replace(devices=listed)])
    assert len(listed) == 100_000
    for number in range(0, 200_000, 7):
        assert (index.resolve(f"DU_{number:09}", "1") == "F") == (number % 2 == 0)


def test_digests_that_are_cut_off_or_of_another_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        DeviceSet(1, b"\0" * 17)
    one, other = DeviceSet.of(["a"], seed=1), DeviceSet.of(["a"], seed=2)
    with pytest.raises(ValueError, match="seeds"):
        one.isdisjoint(other)
    entries = [
        oracle.Firmware(name, "2").entry()._replace(devices=listed) for name, listed in (("F", one), ("G", other))
    ]
    with pytest.raises(ValueError, match="seed"):
        FirmwareIndex("auto", entries)
