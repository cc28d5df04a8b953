"""How devices and offers are packed, keys are spelled and documents are written: the pure parts of the state."""

from __future__ import annotations

import dataclasses

import msgpack
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ota_hook.errors import ConfigurationError, InputError
from ota_hook.model import (
    CatalogueChange,
    CommandExtra,
    DeviceState,
    DeviceType,
    DocumentKind,
    Firmware,
    OpenOffer,
    Outcome,
    Package,
    ReportedVersion,
    Rule,
    SettledOffer,
    is_tag,
)
from ota_hook.state.documents import decode_document, encode_document
from ota_hook.state.keys import Keys, as_bytes, as_text, checked_prefix
from ota_hook.state.records import (
    COMPACT_MAX_BYTES,
    UNREADABLE_BUCKET,
    may_be_of_type,
    pack_device,
    pack_offer,
    read_device,
    read_offers,
    read_settled,
    type_prefix,
    unpack_bucket,
    unpack_device,
)

any_text = st.text(st.characters(), max_size=40)  # lone surrogates too
attributes = st.text(st.characters(), min_size=1, max_size=40)
versions = st.dictionaries(attributes, st.builds(ReportedVersion, any_text, st.integers(0, 2**53 - 1)), max_size=6)
tags = st.lists(st.text(max_size=70).filter(is_tag), max_size=32, unique=True).map(sorted).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
unicode_text = st.text(max_size=40)
offers = st.builds(
    OpenOffer,
    module=unicode_text,
    firmware_id=unicode_text,
    version_attribute=unicode_text,
    version=unicode_text,
    from_version=unicode_text,
    command_ids=st.lists(st.integers(1, 2**53 - 1), max_size=4).map(tuple),
    offered_at_ms=st.integers(0, 2**53 - 1),
)


@given(any_text, versions, tags)
def test_a_device_comes_back_as_it_was_packed(
    device_type: str, reported: dict[str, ReportedVersion], tagged: tuple[str, ...]
) -> None:
    state = DeviceState(identifier="d", device_type=device_type, versions=reported, tags=tagged)
    assert unpack_device("d", pack_device(device_type, reported, tagged)) == state


@given(any_text, versions, tags)
def test_a_packed_device_is_never_skipped_when_its_type_is_looked_for(
    device_type: str, reported: dict[str, ReportedVersion], tagged: tuple[str, ...]
) -> None:
    assert may_be_of_type(pack_device(device_type, reported, tagged), type_prefix(device_type))


def test_a_device_without_tags_takes_no_room_for_them() -> None:
    assert pack_device("tracker", {}) == msgpack.packb(["tracker"])
    assert pack_device("tracker", {}, ("a", "b")) == msgpack.packb(["tracker", "", 0, "a b"])


def test_an_empty_state_in_the_compact_half_of_a_bucket_is_read_from_the_long_half() -> None:
    compact = msgpack.packb([b"a", b"1", b"long", b"", b"vanished", b""])
    long = msgpack.packb([b"long", b"2", b"i" * 65, b"3"])
    assert dict(unpack_bucket(compact + long)) == {b"a": b"1", b"long": b"2", b"i" * 65: b"3"}
    assert list(unpack_bucket(msgpack.packb([]) + msgpack.packb([]))) == []


def test_a_packed_device_of_another_type_is_skipped() -> None:
    packed = pack_device("gateway", {"version": ReportedVersion("1.0", 1)})
    assert not may_be_of_type(packed, type_prefix("gate"))
    assert not may_be_of_type(packed, type_prefix("tracker"))


@given(st.lists(offers, max_size=3))
def test_offers_come_back_as_they_were_packed(wanted: list[OpenOffer]) -> None:
    packed = msgpack.packb([msgpack.unpackb(pack_offer(offer)) for offer in wanted])
    assert read_offers(packed) == tuple(wanted)


@given(offers, st.sampled_from(Outcome), st.integers(0, 2**53 - 1), unicode_text)
def test_a_settled_offer_ignores_what_a_newer_release_added(
    offer: OpenOffer, outcome: Outcome, settled_at_ms: int, code: str
) -> None:
    fields = msgpack.unpackb(pack_offer(offer))
    more = (offer.run_id, offer.chunk, "of a newer release")
    packed = msgpack.packb([*fields[:7], outcome.value, settled_at_ms, code, *more])
    expected = SettledOffer(offer=offer, outcome=outcome, settled_at_ms=settled_at_ms, code=code)
    assert read_settled(packed) == expected


@example(bytes(msgpack.packb(["", "version", 0, ""])))
@given(st.binary(max_size=40) | json_values.map(lambda value: bytes(msgpack.packb(value, default=str))))
def test_whatever_is_stored_reading_it_for_people_raises_nothing(stored: bytes) -> None:
    for device in (read_device(b"d", stored), read_device(stored, pack_device("tracker", {}), stored)):
        if device is not None:
            versions = {attribute: tuple(version) for attribute, version in device.versions.items()}
            assert orjson.dumps([device.device_type, versions, device.tags])
    assert all(orjson.dumps(offer.version) for offer in read_offers(stored))
    read_settled(stored)


@pytest.mark.parametrize("text", [1, None, b"1.0", "1.0\ud800"], ids=ascii)
def test_a_record_with_what_is_no_text_is_not_shown(text: object) -> None:
    pack = msgpack.Packer(unicode_errors="surrogatepass").pack
    assert read_device(b"d", pack(["tracker", "version", 0, text])) is None
    assert read_offers(pack([["main", "F", "version", "2.0", text, 0, [1]]])) == ()
    assert read_settled(pack(["main", "F", "version", "2.0", text, 0, [1], "failed", 0, ""])) is None


def test_a_bucket_that_can_not_be_read_is_one_record_that_can_not() -> None:
    ((name, packed),) = unpack_bucket(UNREADABLE_BUCKET)
    assert read_device(name, packed) is None


def test_a_device_with_one_short_version_fits_the_compact_encoding() -> None:
    packed = pack_device("smart_meter_eu", {"version": ReportedVersion("V2.0.0_B12-hotfix", 1_750_234_507_181)})
    assert len(packed) <= COMPACT_MAX_BYTES


@given(any_text)
def test_texts_survive_redis(text: str) -> None:
    assert as_text(as_bytes(text)) == text


@given(any_text, st.integers(1, 2**24))
def test_every_identifier_has_a_bucket_that_its_keys_name(identifier: str, buckets: int) -> None:
    keys = Keys("ota", buckets)
    bucket = keys.bucket_of(identifier)
    assert 0 <= bucket < buckets
    for key in (keys.devices(bucket), keys.long_devices(bucket), keys.offers(bucket)):
        assert f"{{{bucket}}}" in key
        assert keys.bucket_in(key.encode()) == bucket
    assert keys.history(bucket, identifier).startswith(f"ota:{{{bucket}}}:".encode())


def test_a_device_stays_in_its_bucket_over_releases() -> None:
    # The number is in every deployment's data. XXH64 of "abc" is 44bc2cf5ad770999 by its specification.
    assert Keys("ota", 65_536).bucket_of("abc") == 0x0999


def test_a_key_of_the_catalogue_is_in_no_bucket() -> None:
    keys = Keys("ota", 16)
    assert keys.bucket_in(keys.meta.encode()) is None
    assert keys.bucket_in(b"ota:{16}:d") is None


@pytest.mark.parametrize("prefix", ["", "a b", "a{", "a*", "ä", "p" * 65])
def test_a_prefix_that_breaks_hash_tags_or_patterns_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError):
        checked_prefix(prefix)


DOCUMENTS = (
    DeviceType(key="tracker", name="追踪器", command_extras=(CommandExtra.SHA256,), created_at_ms=1),
    Rule(id="01JRULE", name="default", device_type="tracker", enabled=False),
    Firmware(
        id="01JFIRMWARE",
        name="fw",
        device_type="tracker",
        version="2.0",
        package=Package(filename="f.bin", size_bytes=3, md5="a", sha256="b", crc32="c"),
        source_versions=("1.0", " 1.1"),
        device_list="",
        deleted_at_ms=7,
    ),
)


@pytest.mark.parametrize(("kind", "document"), list(zip(DocumentKind, DOCUMENTS, strict=True)))
def test_a_document_comes_back_as_it_was_written(kind: DocumentKind, document: DeviceType | Rule | Firmware) -> None:
    key = document.key if isinstance(document, DeviceType) else document.id
    stored = encode_document(CatalogueChange(kind, key, document))
    assert decode_document(kind, key, stored) == document
    with pytest.raises(ValueError, match="another key"):
        decode_document(kind, "other", stored)


@pytest.mark.parametrize("document", DOCUMENTS[:2])
def test_a_field_of_a_newer_release_is_ignored_where_it_can_not_say_who_gets_what(document: DeviceType | Rule) -> None:
    kind, key = (
        (DocumentKind.DEVICE_TYPE, document.key)
        if isinstance(document, DeviceType)
        else (DocumentKind.RULE, document.id)
    )
    stored = encode_document(CatalogueChange(kind, key, document))
    newer = orjson.dumps({**orjson.loads(stored), "of_a_newer_release": 1})
    assert decode_document(kind, key, newer) == document


@pytest.mark.parametrize("lacks", [field.name for field in dataclasses.fields(Firmware)])
def test_a_firmware_that_leaves_a_field_out_is_refused(lacks: str) -> None:
    """Whatever would stand for it may be more devices than were meant."""
    stored = stored_firmware()
    del stored[lacks]
    with pytest.raises(ValueError, match=lacks):
        decode_document(DocumentKind.FIRMWARE, "01JFIRMWARE", orjson.dumps(stored))


@pytest.mark.parametrize(
    "change",
    [
        {"groups": ["of a newer release"]},
        {"tag": ["misspelt"]},
        {"tags": "x"},
        {"tags": [1]},
        {"enabled": "yes"},
        {"enabled": 1},
        {"basis_points": "100"},
        {"basis_points": 1.0},
        {"basis_points": 1.5},
        {"basis_points": True},
        {"device_list": 5},
        {"allow_downgrade": "no"},
        {"source_versions": None},
        {"deleted_at_ms": ""},
    ],
)
def test_a_firmware_that_may_mean_other_devices_than_it_seems_to_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        decode_document(DocumentKind.FIRMWARE, "01JFIRMWARE", orjson.dumps(stored_firmware() | change))


def stored_firmware() -> dict[str, object]:
    stored: dict[str, object] = orjson.loads(
        encode_document(CatalogueChange(DocumentKind.FIRMWARE, "01JFIRMWARE", DOCUMENTS[2]))
    )
    return stored


@pytest.mark.parametrize("kind", DocumentKind)
@given(raw=st.binary(max_size=60) | json_values.map(orjson.dumps))
def test_a_document_that_is_none_is_refused_in_one_line(kind: DocumentKind, raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        decode_document(kind, "key", raw)


def test_a_removed_document_is_empty_and_one_with_half_a_character_is_refused() -> None:
    assert encode_document(CatalogueChange(DocumentKind.RULE, "01JRULE", None)) == b""
    broken = dataclasses.replace(DOCUMENTS[1], name="\ud800")
    with pytest.raises(InputError, match="rule"):
        encode_document(CatalogueChange(DocumentKind.RULE, "01JRULE", broken))
