"""docs/devices.md and docs/dialects.md say of the protocol what the code says."""

from __future__ import annotations

import json
import re
import struct
import tomllib
from pathlib import Path

import pytest

from ota_hook.child_messages import (
    ChildName,
    child_attributes_response,
    child_command,
    parse_child_events,
    parse_children,
)
from ota_hook.dialect import BUILT_IN_DIALECTS, TOPICS, parse_dialect
from ota_hook.identifiers import ADDRESS_MAX_BYTES, CHILD_MAX_BYTES, DEPTH_MAX
from ota_hook.messages import (
    CHUNK_MAX_BYTES,
    ELEMENTS_MAX,
    attributes_response,
    chunk_answer,
    no_upgrade_command,
    parse_attributes,
    parse_json,
    read_chunk_request,
    read_events,
    received_response,
)
from ota_hook.model import VERSION_MAX_BYTES, Family

DOCS = Path(__file__).parents[2] / "docs"
DEVICES = (DOCS / "devices.md").read_text("utf-8")
DIALECTS = (DOCS / "dialects.md").read_text("utf-8")
AT_MS = 1_750_234_507_181


def documents() -> list[str]:
    """The page's blocks of JSON."""
    return [block.strip() for block in re.findall(r"```json\n(.*?)```", DEVICES, re.DOTALL)]


def test_the_table_of_topics_is_that_of_the_default_dialect() -> None:
    table = DEVICES.partition("## Topics")[2].partition("## ")[0]
    assert set(re.findall(r"`(\w+)/\{u\}`", table)) == set(BUILT_IN_DIALECTS["eztcloud"]) == set(TOPICS)


def test_what_the_page_says_to_the_cloud_can_be_read() -> None:
    said = [json.loads(text) for text in documents()]
    assert parse_attributes(documents()[0].encode(), ["version"]).versions == {"version": "1.0.0"}
    assert read_events(parse_json(documents()[1].encode()))[0].name == "otaCheck"
    reports = [text for text in documents() if "ADDR1" in text and "version" in text and "otaUpgrade" not in text]
    families = (Family.GATEWAY, Family.SUB, Family.SUB)
    read = [parse_children(text.encode(), family, ["version"]) for text, family in zip(reports, families, strict=True)]
    assert read[0].children.keys() == {("ADDR1",), ("ADDR2",)}
    assert (
        read[1].children
        == read[2].children
        == {("ADDR1",): {"version": "1.0.0"}, ("ADDR1", "ADDR1_1"): {"version": "2.0"}}
    )
    (event,) = (text for text in documents() if '"event"' in text)
    assert parse_child_events(event.encode())[0].event.name == "otaCheck"
    (chunk,) = (document for document in said if isinstance(document, dict) and document.get("method") == "otaChunk")
    assert read_chunk_request(chunk).size_bytes == 16_384


@pytest.mark.parametrize(
    "payload",
    [
        no_upgrade_command("main", command_id=98311),
        received_response(at_ms=AT_MS),
        attributes_response({"version": "1.0.0"}, at_ms=AT_MS),
        child_attributes_response(ChildName(("ADDR1",), as_list=False), {"version": "1.0.0"}, at_ms=AT_MS),
    ],
)
def test_what_the_page_shows_from_the_cloud_is_what_is_sent(payload: bytes) -> None:
    assert payload.decode() in DEVICES


def test_the_commands_of_the_page_have_their_keys_in_order() -> None:
    direct, child = (text for text in documents() if '"upgrade":true' in text)
    for text in (direct, child):
        assert json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) == text
    command = json.dumps(json.loads(child)["command"], ensure_ascii=False, separators=(",", ":"))
    name = ChildName(("ADDR1",), as_list=False)
    assert child_command(name, command.encode(), command_id=98518).decode() == child


@pytest.mark.parametrize(
    "limit",
    [
        f"levels below a gateway | {DEPTH_MAX} |",
        f"{ADDRESS_MAX_BYTES} bytes of UTF-8",
        f"{CHILD_MAX_BYTES} bytes |",
        f"in one message | {ELEMENTS_MAX:,}, and 256 KiB |",
        f"from 1 to {CHUNK_MAX_BYTES:,}",
        f"up to {VERSION_MAX_BYTES} bytes",
    ],
)
def test_the_limits_of_the_page_are_those_of_the_code(limit: str) -> None:
    assert limit in DEVICES


def test_the_reasons_that_the_page_explains_are_those_of_the_code() -> None:
    table = DEVICES.partition("| you see | it is |")[2].partition("## ")[0]
    reasons = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) | set(re.findall(r"`(\w+_\w+)`", table))
    source = "".join(path.read_text("utf-8") for path in (DOCS.parent / "ota_hook").rglob("*.py"))
    assert reasons
    assert not {reason for reason in reasons if f'"{reason}"' not in source}


def test_the_header_of_a_piece_is_as_the_table_says() -> None:
    rows = re.findall(r"^\| (\d+) –(?: (\d+))? \| (.*) \|$", DEVICES, re.MULTILINE)
    piece = chunk_answer(b"abc", command_id=98310, offset=512)
    values = [int.from_bytes(piece[int(first) : int(last) + 1], "big") for first, last, _ in rows if last]
    assert values == list(struct.unpack(">QIII", piece[:20]))
    assert values[:3] == [98310, 512, 3]
    assert piece[int(rows[-1][0]) :] == b"abc"


def test_the_dialects_page_names_every_topic_and_its_dialect_can_be_used() -> None:
    table = DIALECTS.partition("These names")[2].partition("Yours")[0]
    assert set(re.findall(r"`(\w+)`", table)) == set(TOPICS)
    for row, is_needed in (("needed", True), ("as you like, heard", False), ("as you like, sent", False)):
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {row} |"))
        for name in re.findall(r"`(\w+)`", line):
            assert name.endswith(("attributes", "event_report", "command_send")) == is_needed
    (block,) = re.findall(r"```toml\n(.*?)```", DIALECTS, re.DOTALL)
    ((name, templates),) = tomllib.loads(block)["dialects"].items()
    assert parse_dialect(name, templates).command_filters == (
        "plant/+/down/command",
        "plant/+/down/children/command",
    )


def test_the_pages_links_lead_somewhere() -> None:
    for page in (DEVICES, DIALECTS, (DOCS.parent / "tests/wire/README.md").read_text("utf-8")):
        base = DOCS.parent / "tests/wire" if page not in (DEVICES, DIALECTS) else DOCS
        for link in re.findall(r"\]\(([^)]+)\)", page):
            path, _, anchor = link.partition("#")
            target = (base / path) if path else DOCS / "devices.md"
            assert target.exists(), link
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE) if anchor else []
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in anchors, link
