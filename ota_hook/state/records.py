"""How a device's state and its offers are packed in Redis: MessagePack arrays, read and written by the scripts too.

Pure: no I/O. An array may grow at its end; a reader ignores what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgpack

from ota_hook.model import ChildForm, DeviceState, Family, OpenOffer, Outcome, ReportedVersion, SettledOffer

COMPACT_MAX_BYTES: Final = 64
"""Redis's `hash-max-ziplist-value`: one longer field or value would unpack its whole bucket."""

TAGS_ATTRIBUTE: Final = ""
"""Tags stand where a version would, under the name that no attribute has: `"", 0, "tag tag"`; only where there are."""

EXHAUSTED_MARK: Final = ";"
"""Behind the tags stands, so marked, each firmware that the device has tried too often: `"tag tag ;ID ;ID"`. A check
then needs no second read, and no tag can be one of them.
"""

FORM_MARK: Final = ";>"
"""Behind all others stands how its gateway spoke of a child last: `"tag tag ;ID ;>gl"`. Nothing stands there where that
is the default, as for nearly every child.
"""

_MARK_BY_FORM: Final = {
    ChildForm(Family.GATEWAY, as_list=False): FORM_MARK + "gs",
    ChildForm(Family.GATEWAY, as_list=True): FORM_MARK + "gl",
    ChildForm(Family.SUB, as_list=False): FORM_MARK + "ss",
    ChildForm(Family.SUB, as_list=True): FORM_MARK + "sl",
}
_FORM_BY_MARK: Final = {mark: form for form, mark in _MARK_BY_FORM.items()}

UNREADABLE_BUCKET: Final = b"\xc1"
"""What stands for a bucket whose keys hold something else; no MessagePack begins so."""

_HAS_TRIED: Final = 1

_packer = msgpack.Packer(unicode_errors="surrogatepass")


def _unpack(packed: bytes) -> list[Any]:
    unpacked: list[Any] = msgpack.unpackb(packed, unicode_errors="surrogatepass")
    return unpacked


def pack_device(device_type: str, versions: Mapping[str, ReportedVersion], tags: tuple[str, ...] = ()) -> bytes:
    """`[type, attribute, reported_at_ms, version, attribute, …]`: 1 byte of array, 9 of time, the rest text."""
    flat: list[str | int] = [device_type]
    for attribute, version in versions.items():
        flat += (attribute, version.reported_at_ms, version.text)
    if tags:
        flat += (TAGS_ATTRIBUTE, 0, pack_tags(tags))
    packed: bytes = _packer.pack(flat)
    return packed


def pack_tags(tags: tuple[str, ...]) -> str:
    """The tags as they stand in a packed device; empty for none."""
    return " ".join(tags)


def form_mark(identifier: str, form: ChildForm) -> str:
    """How a child was spoken of, as it stands in its record; empty where that is the default for its depth."""
    remembered = form.unless_default(identifier.count("/"))
    return _MARK_BY_FORM.get(remembered, "") if remembered is not None else ""


def unpack_device(identifier: str, packed: bytes, offers: bytes | None = None) -> DeviceState:
    """The state of one device, with its open offers where `offers` is given. Raises anything for what is no record."""
    flat = _unpack(packed)
    open_offers = read_offers(offers) if offers else ()
    if len(flat) == 4 and flat[1]:  # nearly every device has one version and no tags
        return DeviceState(identifier, flat[0], {flat[1]: ReportedVersion(flat[3], int(flat[2]))}, open_offers)
    versions = {
        attribute: ReportedVersion(text, int(reported_at_ms))
        for attribute, reported_at_ms, text in zip(flat[1::3], flat[2::3], flat[3::3], strict=True)
    }
    marked = versions.pop(TAGS_ATTRIBUTE, None)
    if marked is None:
        return DeviceState(identifier, flat[0], versions, open_offers)
    words = marked.text.split(" ")
    form = None
    if words[-1].startswith(FORM_MARK):
        form = _FORM_BY_MARK.get(words.pop())
    tags = tuple(word for word in words if not word.startswith(EXHAUSTED_MARK))
    exhausted = tuple(word[1:] for word in words if word.startswith(EXHAUSTED_MARK))
    return DeviceState(identifier, flat[0], versions, open_offers, tags, exhausted, form)


def read_device(identifier: bytes, packed: bytes, offers: bytes | None = None) -> DeviceState | None:
    """`unpack_device`, for those who show what they find: None where that is no record, or has a text that is none."""
    try:
        device = unpack_device(identifier.decode(), packed, offers)
        texts = (version.text for version in device.versions.values())
        _check_texts(device.device_type, *device.versions, *texts)
    except Exception:  # noqa: BLE001 - msgpack has many, and any shape may come out of it
        return None
    return device


def _check_texts(*texts: str) -> None:
    """Raise TypeError for what is no text, UnicodeEncodeError for one with a lone surrogate."""
    "".join(texts).encode()


def unpack_bucket(blob: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each device of a bucket as (identifier, packed state), in no order.

    A bucket is two MessagePack arrays, one behind the other: identifier, packed state, …; an empty state in the first
    stands in the second. One that can't be read is a device without a name whose state can't be read.
    """
    if blob == UNREADABLE_BUCKET:
        yield b"", blob
        return
    arrays = msgpack.Unpacker(raw=True, max_buffer_size=len(blob))
    arrays.feed(blob)
    compact, long = arrays
    elsewhere = dict(zip(long[::2], long[1::2], strict=True))
    for identifier, packed in zip(compact[::2], compact[1::2], strict=True):
        found = packed or elsewhere.pop(identifier, b"")
        if found:
            yield identifier, found
    yield from elsewhere.items()


def type_prefix(device_type: str) -> bytes:
    """What follows the array's header in the packed state of a device of this type: lets a scan skip the others."""
    packed: bytes = _packer.pack(device_type)
    return packed


def may_be_of_type(packed: bytes, prefix: bytes) -> bool:
    """Whether a packed state can be of the type of `type_prefix`; the header is 1 byte, 3 with 16 elements or more."""
    return packed.startswith(prefix, 1) or packed.startswith(prefix, 3)


def pack_offer(offer: OpenOffer) -> bytes:
    """`[module, firmware, attribute, version, from version, offered_at_ms, [command id, …], run, chunk,
    outcome, note, tried]`. Note and tried are the scripts' to write (offer_scripts.py).
    """
    packed: bytes = _packer.pack(
        (
            offer.module,
            offer.firmware_id,
            offer.version_attribute,
            offer.version,
            offer.from_version,
            offer.offered_at_ms,
            offer.command_ids,
            offer.run_id,
            offer.chunk,
            offer.outcome.value,
        )
    )
    return packed


def read_offers(packed: bytes) -> tuple[OpenOffer, ...]:
    """The open offers of one device; none where they can't be read."""
    try:
        return tuple(_offer(fields, fields[7:]) for fields in _unpack(packed))
    except Exception:  # noqa: BLE001 - as above
        return ()


def read_settled(packed: bytes) -> SettledOffer | None:
    """One entry of a history, None where it can't be read."""
    try:
        return _settled(_unpack(packed))
    except Exception:  # noqa: BLE001 - as above
        return None


def _settled(fields: list[Any]) -> SettledOffer:
    """An offer's first seven fields, then outcome, settled_at_ms, code, and run and chunk."""
    outcome, settled_at_ms, code = fields[7:10]
    _check_texts(code)
    return SettledOffer(
        offer=_offer(fields, fields[10:12]), outcome=Outcome(outcome), settled_at_ms=int(settled_at_ms), code=code
    )


def _offer(fields: list[Any], more: list[Any]) -> OpenOffer:
    """`more`: run, chunk, outcome, note and tried, as many as are stored."""
    module, firmware_id, attribute, version, from_version, offered_at_ms, command_ids = fields[:7]
    _check_texts(module, firmware_id, attribute, version, from_version)
    return OpenOffer(
        module=module,
        firmware_id=firmware_id,
        version_attribute=attribute,
        version=version,
        from_version=from_version,
        command_ids=tuple(map(int, command_ids)),
        offered_at_ms=int(offered_at_ms),
        run_id=more[0] if more else "",
        chunk=int(more[1]) if more else 0,
        outcome=Outcome(more[2]) if len(more) > 2 else Outcome.OFFERED,
        has_tried=len(more) > 4 and more[4] == _HAS_TRIED,
    )
