"""Lines of an import: the quick look and the close one agree, and what is written is read back."""

from __future__ import annotations

import string

import orjson
from hypothesis import given
from hypothesis import strategies as st

from admin_api.bodies import CSV, NDJSON
from admin_api.device_lines import CsvOutput, DeviceLines, NdjsonOutput
from ota_hook.errors import InputError
from ota_hook.identifiers import is_direct_identifier, is_identifier
from ota_hook.model import DeviceState, DeviceType, ReportedVersion, is_tag
from ota_hook.ports.devices import DeviceEntry
from tests.doubles import FixedSnapshot, make_snapshot

CATALOGUE = FixedSnapshot(
    make_snapshot(DeviceType(key="tracker", name="t", version_attributes=("version", "a,b", "é")))
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
gateways = st.text(min_size=1, max_size=130).filter(is_direct_identifier)
children = st.builds("{}/{}".format, gateways, st.text(min_size=1, max_size=130)).filter(is_identifier)
identifiers = gateways | children
texts = (
    st.text(string.printable + "é设", min_size=1, max_size=8)
    .map(lambda text: f"1{text}1".strip())
    .filter(lambda text: text.isprintable())
)
attributes = st.sampled_from(["version", "a,b", "é"])
tags = st.lists(st.text(min_size=1, max_size=8).filter(is_tag), unique=True, max_size=5)
documents = anything | st.fixed_dictionaries(
    {},
    optional={
        "identifier": identifiers | st.sampled_from(["", "a//b", "a/%", "x" * 129]) | anything,
        "type": st.sampled_from(["tracker", "tracker", "other"]) | anything,
        "versions": st.dictionaries(attributes | st.text(max_size=3), texts | st.sampled_from([" 1 ", "x"]) | anything)
        | anything,
        "tags": tags | st.lists(st.sampled_from(["a", "b", "", "a b", 1, None]), max_size=4) | anything,
        "colour": st.none(),
    },
)
devices = st.builds(
    DeviceState,
    identifiers,
    st.just("tracker"),
    st.dictionaries(attributes, st.builds(ReportedVersion, texts, st.just(0))),
    st.just(()),
    tags.map(sorted).map(tuple),
)


def read(lines: DeviceLines, line: bytes) -> DeviceEntry | str:
    try:
        return lines.read(line)
    except InputError as exc:
        return exc.detail or "silent"


class CloseLines(DeviceLines):
    """Never takes the quick look."""

    def _read_plain(self, document: object) -> None:
        return None


@given(st.lists(documents, min_size=1, max_size=3))
def test_the_quick_look_at_a_line_finds_what_the_close_one_does(given_documents: list[object]) -> None:
    quick, close = DeviceLines(CATALOGUE, NDJSON), CloseLines(CATALOGUE, NDJSON)
    for document in given_documents:
        line = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
        found = read(quick, line)
        assert found == read(close, line)
        assert found != "silent"


def test_most_lines_need_no_close_look() -> None:
    lines = DeviceLines(CATALOGUE, NDJSON)
    document = {"identifier": "d", "type": "tracker", "versions": {"version": "1.0"}, "tags": ["b", "a"]}
    assert lines._read_plain(document) == DeviceEntry("d", "tracker", {"version": "1.0"}, ("a", "b"))


@given(st.lists(devices, max_size=5))
def test_a_device_is_read_back_as_it_was_written(written: list[DeviceState]) -> None:
    expected = [
        DeviceEntry(
            device.identifier,
            device.device_type,
            {attribute: version.text for attribute, version in device.versions.items()},
            device.tags,
        )
        for device in written
    ]
    as_json, as_csv = NdjsonOutput(), CsvOutput(["version", "a,b", "é"])
    for device in written:
        as_json.add(device)
        as_csv.add(device)
    lines = DeviceLines(CATALOGUE, NDJSON)
    assert [lines.read(line) for line in as_json.take().split(b"\n") if line] == expected
    lines = DeviceLines(CATALOGUE, CSV)
    header, *rest = as_csv.take().split(b"\r\n")
    lines.take_header(header)
    assert [lines.read(line) for line in rest if line] == expected
    assert as_json.take() == as_csv.take() == b""
