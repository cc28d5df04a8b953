"""The operator's commands against a real `ota-hook serve`.

Where signals, terminals, pipes, memory or the process itself matter, and along the main road, the command is a process
of its own; the rest runs in this one, through the same entry point, because starting Python takes longer than they do.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from ota_hook import cli
from tests.e2e.operator import SECONDS, Operator
from tests.e2e.service import Emqx, Service, running, until

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(Service(tmp_path_factory.mktemp("cli") / "data")) as started:
        yield started


@pytest.fixture
def operator(service: Service, tmp_path: Path) -> Operator:
    return Operator(service, tmp_path)


@pytest.fixture
def outside(service: Service, tmp_path: Path) -> Operator:
    """An operator whose every command is a process of its own."""
    return Operator(service, tmp_path, in_process=False)


def test_a_firmware_goes_to_one_device_then_to_all_then_to_none(outside: Operator) -> None:
    outside.run("types", "put", "tracker", "--name", "追踪器 GPS")
    fleet = "".join(
        f'{{"identifier": "t{n}", "type": "tracker", "versions": {{"version": "1.0.0"}}}}\n' for n in (1, 2)
    )
    assert outside.run("devices", "import", "-", stdin=fleet).stdout == "2 created, 0 replaced, 0 failed.\n"
    package = outside.file("tracker-1.1.0.bin", b"firmware")
    upload = ("firmware", "upload", package, "--type", "tracker", "--version", "1.1.0", "--name", "冬季版本")
    shown = outside.run(*upload, "--device", "t1").stdout
    firmware = ULID.search(shown)
    assert firmware is not None
    assert "冬季版本" in shown
    assert "tracker-1.1.0.bin, 8 bytes\n" in shown

    assert outside.ask("check", "t1")["offer"]["firmware_id"] == firmware[0]
    assert outside.ask("check", "t2")["offer"] is None
    why = outside.run("check", "t2").stdout
    assert "This device is not among the devices that it is for." in why
    assert why.splitlines()[-1].startswith("t2, of type tracker, runs 1.0.0 (version)")
    assert "It would get none" in why

    released = outside.ask("firmware", "release", firmware[0], "--yes")
    assert released["devices"] is None
    assert "It would get 1.1.0 (冬季版本)." in outside.run("check", "t2").stdout

    outside.run("firmware", "disable", firmware[0])
    assert outside.ask("check", "t2")["firmware"][0]["reasons"] == ["disabled"]
    assert "for everyone" in outside.run("firmware", "enable", firmware[0]).stdout
    assert outside.ask("check", "t2")["offer"] is not None

    assert outside.ask("firmware", "delete", firmware[0], "--yes") == {"deleted": firmware[0]}
    assert "was deleted" in outside.refused("firmware", "show", firmware[0])
    assert outside.ask("check", "t2")["reason"] == "no_firmware"


def test_what_a_device_reported_and_what_became_of_its_offers_is_shown(operator: Operator, service: Service) -> None:
    operator.run("types", "put", "reporter")
    operator.run("devices", "put", "r1", "--type", "reporter")
    assert "not reported" in operator.run("devices", "show", "r1").stdout
    package = operator.file("r.bin", b"firmware")
    firmware = operator.ask("firmware", "upload", package, "--type", "reporter", "--version", "2.0")
    broker = Emqx(service.hook_port)
    until(
        lambda: broker.report("r1", "1.0") and b'"upgrade":true' in getattr(broker.check("r1"), "payload", b""),
        seconds=5,
    )
    broker.report("r1", "2.0")
    broker.close()
    device = operator.ask("devices", "show", "r1")
    assert device["versions"] == {"version": "2.0"}
    assert device["versions_reported_at"]["version"].endswith("Z")
    assert [(offer["firmware_id"], offer["outcome"]) for offer in device["offers"]] == [(firmware["id"], "succeeded")]
    shown = operator.run("devices", "show", "r1").stdout
    assert re.search(r"2\.0 +\(reported \d{4}-\d\d-\d\d \d\d:\d\d:\d\d CST\)", shown)
    assert "succeeded" in shown
    assert operator.ask("firmware", "show", firmware["id"])["counters"]["succeeded"] == 1


def test_put_changes_only_what_is_given(operator: Operator) -> None:
    operator.run("types", "put", "kept", "--name", "Kept", "--scheme", "semver", "--extra", "sha256", "--auto-register")
    changed = operator.ask("types", "put", "kept", "--version-attribute", "version", "--version-attribute", "mcu")
    assert (changed["name"], changed["version_scheme"], changed["command_extras"]) == ("Kept", "semver", ["sha256"])
    assert (changed["auto_register"], changed["version_attributes"]) == (True, ["version", "mcu"])
    changed = operator.ask("types", "put", "kept", "--extra", "", "--no-auto-register")
    assert (changed["command_extras"], changed["auto_register"]) == ([], False)
    assert operator.ask("types", "put", "kept")["revision"] == changed["revision"]

    put = ("devices", "put", "k1", "--type", "kept", "--version", "version=1.0.0", "--version", "mcu=7.0.0")
    assert operator.run(*put).stdout == "The device 'k1' is created.\n"
    assert operator.run(*put).stdout == "The device 'k1' is as it was.\n"
    assert operator.run(*put, "--tag", "a").stdout == "The device 'k1' is changed.\n"
    assert operator.run("types", "put", "kept").stdout == "The device type 'kept' is as it was.\n"
    assert operator.run("types", "put", "kept", "--name", "Kept").stdout == "The device type 'kept' is as it was.\n"
    assert operator.run("types", "put", "kept", "--name", "New").stdout == "The device type 'kept' is changed.\n"
    assert operator.ask("devices", "put", "k1", "--type", "kept", "--version", "mcu=")["versions"] == {
        "version": "1.0.0"
    }
    assert operator.refused("devices", "put", "k1", "--type", "kept", "--version", "1.0.0").startswith(
        "--version '1.0.0'"
    )


def test_rules_are_added_once_and_switched(operator: Operator) -> None:
    operator.run("types", "put", "ruled")
    add = ("rules", "add", "--type", "ruled", "--event", "gpsCheck", "--version-attribute", "gps", "--module", "gps")
    first = operator.run(*add)
    assert "must report once more" in first.stderr
    again = operator.run(*add)
    rule = ULID.search(first.stdout)
    assert rule is not None
    assert again.stdout == f"The rule {rule[0]} is there already.\n"
    assert operator.ask("rules", "disable", rule[0])["enabled"] is False
    assert operator.ask("rules", "enable", rule[0])["enabled"] is True
    assert {entry["event"] for entry in operator.ask("rules", "list", "--type", "ruled")} == {"otaCheck", "gpsCheck"}
    operator.run("rules", "delete", rule[0])
    assert [entry["event"] for entry in operator.ask("rules", "list", "--type", "ruled")] == ["otaCheck"]


def test_a_bad_line_of_an_import_is_told_and_does_not_stop_the_others(operator: Operator) -> None:
    operator.run("types", "put", "imported")
    lines = '{"identifier": "i1", "type": "imported"}\nnonsense\n{"identifier": "i2", "type": "nope"}\n'
    done = operator.run("devices", "import", operator.file("bad.ndjson", lines), status=1)
    assert done.stdout == "1 created, 0 replaced, 2 failed.\n"
    assert done.stderr.splitlines() == [
        "line 2: The line is not JSON.",
        "line 3: There is no device type 'nope'. Create it first.",
    ]
    dry = operator.ask("devices", "import", "-", "--dry-run", stdin='{"identifier": "i3", "type": "imported"}')
    assert (dry["created"], dry["dry_run"]) == (1, True)
    assert "There is no device 'i3'." in operator.refused("devices", "show", "i3")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "identifier,type\nd,imported\n", "looks like CSV: its first line names columns. Give --format csv."),
        ("-", "identifier,type\nd,imported\n", "Standard input looks like CSV"),
        ("a.csv", "id,type\nd,imported\n", "'id' is no column."),
        ("a.csv", "Identifier,type\nd,imported\n", "'Identifier' is no column. Did you mean `identifier`?"),
        ("a.csv", "identifier,type,version\n", "'version' is no column. Did you mean `versions.version`?"),
        ("a.csv", "identifier;type\n", "Separate them by commas."),
        ("a.csv", "identifier,type,type\n", "names the column 'type' twice."),
        ("a.csv", '"identifier,type\n', "A quoted value does not end on its line"),
        ("a.csv", "identifier,type\n".encode("utf-16"), "is in UTF-16. Save it as UTF-8 (in Excel: CSV UTF-8)."),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", "Unpack it first."),
    ],
)
def test_a_file_that_can_not_be_imported_says_what_to_do(
    operator: Operator, name: str, content: bytes | str, said: str
) -> None:
    operator.run("types", "put", "imported")
    if name == "-":
        assert said in operator.refused("devices", "import", name, stdin=str(content))
    else:
        assert said in operator.refused("devices", "import", operator.file(name, content))


def test_a_bad_line_of_csv_says_what_to_do(operator: Operator) -> None:
    operator.run("types", "put", "imported")
    lines = b"identifier,type\nd\n" + "设,imported\n".encode("gbk")
    done = operator.run("devices", "import", operator.file("a.csv", lines), status=1)
    assert done.stderr.splitlines() == [
        "line 2: The line has 1 value, and the header names 2.",
        "line 3: The line is not UTF-8. Save the file as UTF-8 (in Excel: CSV UTF-8).",
    ]


def test_children_are_listed_shown_and_deleted_with_their_gateway(operator: Operator) -> None:
    children = ["gw1/1", "gw1/a%2Fb", "gw1/仪表/#1"]
    operator.run("types", "put", "sited")
    for device in ("gw1", *children):
        operator.run("devices", "put", device, "--type", "sited")
    assert [entry["identifier"] for entry in operator.ask("devices", "list", "--gateway", "gw1")] == children
    assert operator.ask("devices", "list", "--gateway", "gw2") == []
    shown = [line.split() for line in operator.run("devices", "show", "gw1").stdout.splitlines()]
    assert ["children", "3"] in shown
    shown = [line.split() for line in operator.run("devices", "show", "gw1/a%2Fb").stdout.splitlines()]
    assert ["gateway", "gw1"] in shown
    assert operator.ask("devices", "show", "gw1/a%2Fb")["gateway"] == "gw1"
    assert "written %2F" in operator.refused("devices", "put", "gw1/50%", "--type", "sited")
    assert "direct device" in operator.refused("devices", "list", "--gateway", "gw1/1")
    operator.run("devices", "delete", "gw1")
    assert len(operator.ask("devices", "list", "--gateway", "gw1")) == 3
    done = operator.run("devices", "delete", "gw1", "--children")
    assert done.stdout == "The device 'gw1' and all behind it are deleted.\n"
    assert operator.ask("devices", "list", "--gateway", "gw1") == []
    assert "There is no device 'gw1'." in operator.refused("devices", "delete", "gw1", "--children")


def test_tags_are_given_shown_and_taken_away(operator: Operator) -> None:
    operator.run("types", "put", "tagged")
    operator.run("devices", "put", "g1", "--type", "tagged", "--tag", "trial", "--tag", "上海")
    operator.run("devices", "put", "g2", "--type", "tagged", "--version", "version=1.0")
    assert "trial, 上海" in operator.run("devices", "show", "g1").stdout
    assert "trial, 上海" in operator.run("devices", "list", "--type", "tagged").stdout
    assert [entry["identifier"] for entry in operator.ask("devices", "list", "--tag", "上海")] == ["g1"]
    assert operator.ask("devices", "put", "g1", "--type", "tagged")["tags"] == ["trial", "上海"]
    assert operator.ask("devices", "put", "g1", "--type", "tagged", "--tag", "b")["tags"] == ["b"]
    assert operator.ask("devices", "put", "g1", "--type", "tagged", "--tag", "")["tags"] == []
    assert "white space" in operator.refused("devices", "put", "g1", "--type", "tagged", "--tag", "a b")


def test_versions_are_counted_in_a_table_with_bars(operator: Operator) -> None:
    operator.run("types", "put", "counted")
    lines = [f"counted {n},counted,{'2.0' if n < 30 else f'1.{n}'}\n" for n in range(40)]
    fleet = "identifier,type,versions.version\n" + "".join(lines)
    operator.run("devices", "import", "-", "--format", "csv", stdin=fleet)
    operator.run("devices", "put", "silent", "--type", "counted")
    done = operator.run("types", "versions", "counted", "--limit", "2")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows == [
        ["version", "devices", "share"],
        ["2.0", "30", "73.2%", "█" * 15],
        ["1.30", "1", "2.4%", "█"],
        ["(other", "versions)", "9", "22.0%", "█" * 4],
        ["(not", "reported)", "1", "2.4%", "█"],
    ]
    assert done.stderr == "41 devices of the type 'counted'.\n"
    more = "".join(f"counted more {n},counted,2.0\n" for n in range(2_000))
    operator.run("devices", "import", "-", "--format", "csv", stdin=f"identifier,type,versions.version\n{more}")
    assert operator.run("types", "versions", "counted", "--limit", "2").stdout.splitlines()[2].split()[2] == "<0.1%"
    document = operator.ask("types", "versions", "counted", "--attribute", "version")
    assert (document["devices"], len(document["versions"])) == (2_041, 11)
    assert "not a version attribute" in operator.refused("types", "versions", "counted", "--attribute", "gps")


def test_an_export_is_an_import(operator: Operator) -> None:
    operator.run("types", "put", "moved")
    lines = "".join(
        f'{{"identifier":"moved {n}","type":"moved","versions":{{"version":"1.{n}"}},"tags":["t"]}}\n'
        for n in range(1500)
    )
    operator.run("devices", "import", "-", stdin=lines)
    summary = operator.ask("devices", "export", "fleet.ndjson", "--type", "moved")
    exported = (operator.folder / "fleet.ndjson").read_text()
    assert sorted(exported.splitlines()) == sorted(lines.splitlines())
    assert summary == {"file": "fleet.ndjson", "devices": 1500, "bytes": len(exported)}
    assert [path.name for path in operator.folder.iterdir()] == ["fleet.ndjson"]
    assert operator.run("devices", "export", "--type", "moved").stdout == exported
    again = operator.ask("devices", "import", "fleet.ndjson")
    assert (again["created"], again["replaced"], again["failed"]) == (0, 1500, 0)

    summary = operator.ask("devices", "export", "fleet.csv", "--tag", "t", "--type", "moved")
    text = (operator.folder / "fleet.csv").read_bytes()
    assert summary == {"file": "fleet.csv", "devices": 1500, "bytes": len(text)}
    assert text.startswith(b"identifier,type,tags,versions.version\r\n")
    piped = operator.run("devices", "export", "--type", "moved", "--format", "csv").stdout
    assert piped.splitlines() == text.decode().splitlines()
    again = operator.ask("devices", "import", "fleet.csv")
    assert (again["created"], again["replaced"], again["failed"]) == (0, 1500, 0)
    assert operator.run("devices", "export", "--type", "moved").stdout == exported

    assert len(operator.ask("devices", "list", "--type", "moved")) == 1500
    table = operator.run("devices", "list", "--type", "moved")
    assert len(table.stdout.splitlines()) == 1001
    assert "--limit 0 shows all" in table.stderr
    assert len(operator.run("devices", "list", "--type", "moved", "--limit", "0").stdout.splitlines()) == 1501
    assert len(operator.ask("devices", "list", "--limit", "3")) == 3


def test_a_list_that_is_longer_than_an_upload_takes_follows_it(operator: Operator) -> None:
    operator.run("types", "put", "listed")
    names = [f"listed-{number}" for number in range(10_001)]
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "listed", "--version")
    trial = operator.file("trial.txt", "# the trial\n\n" + "\n".join(names) + "\n")
    firmware = operator.ask(*upload, "1.0", "--devices-file", trial, "--device", "one-more")
    assert firmware["devices_count"] == 10_002
    assert set(operator.run("firmware", "devices", firmware["id"]).stdout.splitlines()) == {*names, "one-more"}
    (listed,) = operator.ask("firmware", "list", "--type", "listed")
    for shown in (firmware, listed, operator.ask("firmware", "show", firmware["id"])):
        assert (len(shown["devices"]), shown["devices_truncated"]) == (1000, True)

    bad = operator.file("bad.txt", "\n".join(names) + "\na//b\n")
    said = operator.refused(*upload, "2.0", "--devices-file", bad)
    left = ULID.search(said)
    assert left is not None
    assert f"ota-hook firmware devices {left[0]} --add" in said
    assert operator.ask("firmware", "devices", left[0]) == []


def test_the_devices_of_a_firmware_are_set_and_added_to(operator: Operator) -> None:
    operator.run("types", "put", "chosen")
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "chosen", "--version", "1.0")
    firmware = operator.ask(*upload)["id"]
    assert operator.ask("firmware", "devices", firmware) is None
    done = operator.run("firmware", "devices", firmware, "--set", "-", stdin="c1\nc2\nc3\n")
    assert done.stdout == f"The firmware {firmware} is for 3 devices, 3 of those sent not registered.\n"
    assert operator.ask("firmware", "devices", firmware, "--add", operator.file("more.txt", "c3\nc4"))["count"] == 4
    assert sorted(operator.ask("firmware", "devices", firmware)) == ["c1", "c2", "c3", "c4"]
    operator.run("firmware", "devices", firmware, "--set", operator.file("empty.txt", ""))
    done = operator.run("firmware", "devices", firmware)
    assert done.stdout == ""
    assert "for nobody" in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "identifier,type,tags\nm1,tracker,\nm2,tracker,a b\n"),
        ("l.CSV", '\ufefftype,identifier\r\ntracker,"m1"\r\ntracker,m2\r\n'),
        ("l.ndjson", '{"identifier": "m1", "type": "tracker", "tags": []}\n"m2"\n'),
        ("l.jsonl", '"m1"\n"m2"'),
        ("l.txt", "# the trial\n\nm1\n  m2\r\n"),
        ("l", "m1\nm2"),
    ],
)
def test_a_list_of_devices_is_read_as_its_name_says(operator: Operator, name: str, content: str) -> None:
    operator.run("types", "put", "lists")
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "lists", "--version", "1.0")
    firmware = operator.ask(*upload, "--devices-file", operator.file(name, content), "--device", "m0")
    assert firmware["devices"] == ["m0", "m1", "m2"]
    assert operator.ask("firmware", "devices", firmware["id"], "--set", name)["count"] == 2
    assert sorted(operator.ask("firmware", "devices", firmware["id"])) == ["m1", "m2"]
    kind = {"csv": "csv", "txt": "text", "l": "text"}.get(name.lower().rpartition(".")[2], "ndjson")
    set_from_input = ("firmware", "devices", firmware["id"], "--add", "-", "--format", kind)
    assert operator.ask(*set_from_input, stdin=content)["count"] == 2


def test_a_list_that_is_not_what_its_name_says_is_refused_with_what_to_do(operator: Operator) -> None:
    operator.run("types", "put", "misnamed")
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "misnamed", "--version", "1.0")
    firmware = operator.ask(*upload, "--device", "kept")["id"]
    for name, content, said in (
        ("a.txt", "identifier,type\nm1,tracker\n", "--format csv"),
        ("b.txt", "m1,tracker\n", "--format csv"),
        ("c.txt", '{"identifier": "m1"}\n', "--format ndjson"),
        ("d.txt", 'm1\n"m2"\n', "Line 2 of the list looks like JSON. Give --format ndjson."),
        ("e.txt", "m1\n设备\n".encode("gbk"), "Line 2 of the list is not UTF-8. Save the file as UTF-8."),
        ("f.csv", "identifier\nm1\n".encode("utf-16"), "in UTF-16. Save it as UTF-8 (in Excel: CSV UTF-8)."),
        ("g.csv", "identifier\n设备\n".encode("gbk"), "Line 2: The line is not UTF-8. Save the file as UTF-8"),
        ("h.csv.gz", b"\x1f\x8b\x08\x00", "compressed (gzip). Unpack it first."),
        ("i.csv", b"PK\x03\x04", "a spreadsheet. Unpack it first, or save the table as CSV UTF-8."),
        ("j.ndjson", "identifier\nm1\n", "--format csv"),
        ("k.ndjson", '"m1"\nfoo\n', "Line 2: The line is not JSON."),
        ("l.ndjson", '"m1"\n[]\n', "Line 2: The line must be"),
        ("m.csv", '{"identifier": "m1"}\n', "--format ndjson"),
        ("n.csv", "Identifier\nm1\n", "Did you mean `identifier`?"),
        ("o.txt", "m1\nm1//2\n", "Line 2 of the list: 'm1//2' is no child's identifier"),
    ):
        refused = operator.refused("firmware", "devices", firmware, "--set", operator.file(name, content))
        assert said in refused, name
    assert operator.ask("firmware", "devices", firmware) == ["kept"]
    assert "--set or --add" in operator.refused("firmware", "devices", firmware, "--format", "csv")
    assert "--devices-file" in operator.refused(*upload, "--format", "csv")


def test_an_upload_that_its_devices_can_not_get_says_so(operator: Operator) -> None:
    operator.run("types", "put", "noted")
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "noted", "--version", "1.0")
    assert "`ota-hook rules add`" in operator.run(*upload, "--module", "gps").stderr
    assert operator.run(*upload, "--device", "nobody99").stderr == "Not registered: 1 of the 1 listed.\n"
    listed = operator.file("l.csv", "identifier\nnobody98\n")
    assert operator.run(*upload, "--devices-file", listed).stderr == "Not registered: 1 of those in the list.\n"


@pytest.mark.parametrize("command", ["devices list", "devices export", "firmware list", "rules list", "types versions"])
def test_a_type_that_there_is_none_of_is_not_found(operator: Operator, command: str) -> None:
    option = [] if command == "types versions" else ["--type"]
    assert operator.refused(*command.split(), *option, "nix") == "There is no device type 'nix'."


def test_a_version_that_its_scheme_can_not_compare_is_told(operator: Operator) -> None:
    operator.run("types", "put", "threes", "--scheme", "semver")
    put = ("devices", "put", "s1", "--type", "threes", "--version")
    assert operator.run(*put, "version=1.0.0").stderr == ""
    assert "'1.0' is not a version in the scheme semver" in operator.run(*put, "version=1.0").stderr
    operator.run("firmware", "upload", operator.file("a.bin", b"x"), "--type", "threes", "--version", "2.0.0")
    assert "The device's version 1.0 is not a version in the scheme semver" in operator.run("check", "s1").stdout


def test_what_is_refused_is_quoted_without_the_names_of_fields(operator: Operator) -> None:
    operator.run("types", "put", "quoted")
    put = ("devices", "put", "q1", "--type", "quoted")
    assert operator.refused(*put, "--tag", "ok", "--tag", "a b").startswith("'a b' is no tag: 1 to 64 bytes")
    assert operator.refused(*put, "--tag", "x", "--tag", "x") == "'x' is there twice."
    assert operator.refused(*put, "--version", "version=１.０").startswith("'１.０' is not a version: it needs one of")
    for key in ("bad key", "中文"):
        assert operator.refused("types", "put", key).startswith(f"'{key}' must be 1 to 64 letters")


@pytest.mark.parametrize("key", ["", "DU_7/x"])
@pytest.mark.parametrize("command", ["put", "show", "versions", "delete"])
def test_a_key_that_no_type_can_have_is_refused_before_it_is_asked_for(
    operator: Operator, command: str, key: str
) -> None:
    assert operator.refused("types", command, key).startswith(f"'{key}' must be 1 to 64 letters, digits")


def test_two_versions_are_compared_without_a_service(operator: Operator) -> None:
    compare = ("versions", "compare")
    alone = {"OTA_HOOK_ADMIN_LISTEN": "127.0.0.1:1", "OTA_HOOK_DATA_DIR": "nowhere"}
    for first, word, second in (
        ("1.0.0-rc1", "older than", "1.0"),
        ("v1", "equal to", "1.0.0"),
        ("10", "newer than", "9"),
    ):
        said = operator.run(*compare, first, second, environ=alone).stdout
        assert said == f"{first} is {word} {second} in the scheme auto.\n"
    semver = operator.ask(*compare, "1.0.0+4", "1.0.0+5", "--scheme", "semver")
    assert semver == {"scheme": "semver", "a": "1.0.0+4", "b": "1.0.0+5", "order": 0}
    assert "which takes three numbers" in operator.refused(*compare, "1.0", "1.0.0", "--scheme", "semver")


def test_a_new_type_reads_the_attributes_that_are_named(operator: Operator) -> None:
    created = operator.ask("types", "put", "wheel", "--version-attribute", "fw_version")
    assert created["version_attributes"] == ["fw_version"]
    (rule,) = operator.ask("rules", "list", "--type", "wheel")
    assert (rule["event"], rule["version_attribute"]) == ("otaCheck", "fw_version")


def test_an_upload_whose_list_is_not_taken_is_for_those_named_beside_it(operator: Operator) -> None:
    operator.run("types", "put", "listless")
    operator.run("devices", "put", "d1", "--type", "listless")
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "listless", "--version", "1.0")
    bad = operator.file("bad.csv", "identifier\na//b\n")
    said = operator.refused(*upload, "--devices-file", bad, "--device", "d1")
    assert "is uploaded, for 1 device, but its list of devices was not taken: Line 2: 'a//b'" in said
    assert "--format ndjson" in operator.refused(*upload, "--devices-file", operator.file("bad.txt", '"a"\n'))
    assert [entry["devices"] for entry in operator.ask("firmware", "list", "--type", "listless")] == [["d1"]]


def test_an_upload_whose_connection_is_cut_is_there_once(outside: Operator) -> None:
    outside.run("types", "put", "cut")
    package = outside.file("a.bin", os.urandom(2_000_000))
    with CuttingProxy(outside.service.admin_port) as proxy:
        for version, cut_bytes in (("1.0", 500_000), ("2.0", None)):
            proxy.cut_after(cut_bytes)
            uploaded = outside.ask(
                "firmware",
                "upload",
                package,
                "--type",
                "cut",
                "--version",
                version,
                "--device",
                "c",
                "--api",
                proxy.url,
            )
            assert uploaded["version"] == version
            assert proxy.connections == 2
    assert [entry["version"] for entry in outside.ask("firmware", "list", "--type", "cut")] == ["1.0", "2.0"]


class CuttingProxy:
    """Passes bytes on to the service, but cuts the first connection: under way, or (None) instead of its answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for thread in self._threads:
            thread.join(SECONDS)

    def cut_after(self, cut_bytes: int | None) -> None:
        self.connections = 0
        thread = threading.Thread(target=self._serve_two, args=(cut_bytes,))
        self._threads.append(thread)
        thread.start()

    def _serve_two(self, cut_bytes: int | None) -> None:
        for cut in (True, False):
            client, _ = self._listener.accept()
            self.connections += 1
            with client, socket.create_connection(("127.0.0.1", self._port)) as service:
                self._pass_on(client, service, cut_bytes if cut else -1)

    def _pass_on(self, client: socket.socket, service: socket.socket, cut_bytes: int | None) -> None:
        back = threading.Thread(target=self._answer, args=(service, client, cut_bytes is None))
        back.start()
        passed = 0
        while (data := client.recv(65536)) and (cut_bytes in (-1, None) or passed < (cut_bytes or 0)):
            service.sendall(data)
            passed += len(data)
            if not back.is_alive():
                break
        for end in (client, service):
            with contextlib.suppress(OSError):  # the other thread cut it already
                end.shutdown(socket.SHUT_RDWR)
        back.join(SECONDS)

    @staticmethod
    def _answer(service: socket.socket, client: socket.socket, cut: bool) -> None:
        with contextlib.suppress(OSError):
            while data := service.recv(65536):
                if cut:
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)


def test_an_upload_takes_no_more_memory_for_a_larger_package(outside: Operator) -> None:
    outside.run("types", "put", "large")
    peaks = []
    for version, size_bytes in (("1.0", 1000), ("2.0", 96 * 1024**2)):
        with (outside.folder / "large.bin").open("wb") as package:
            package.truncate(size_bytes)
        process = outside.start("firmware", "upload", "large.bin", "--type", "large", "--version", version, "--json")
        assert process.stdout is not None
        assert process.stderr is not None
        uploaded = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        process.stderr.close()
        assert (process.returncode, uploaded["size"]) == (0, size_bytes)
        peaks.append(usage.ru_maxrss)
    assert peaks[1] - peaks[0] < 16 * 1024, peaks


@pytest.mark.parametrize(
    ("arguments", "environ", "status", "said"),
    [
        (("--api", "http://127.0.0.1:1"), {}, 1, r"can't be reached .* `ota-hook serve`"),
        (("--api", "nonsense"), {}, 2, "no address"),
        (("--data-dir", "elsewhere"), {}, 2, r"no admin token: .*elsewhere/admin-token.*--data-dir"),
        ((), {"OTA_HOOK_ADMIN_TOKEN": "not-the-services-token"}, 2, "does not accept .* OTA_HOOK_ADMIN_TOKEN"),
        ((), {"OTA_HOOK_ADMIN_TOKEN": "not a token"}, 2, "no admin token"),
        ((), {"OTA_HOOK_ADMIN_LISTN": "1"}, 2, "OTA_HOOK_ADMIN_LISTEN"),
        ((), {"OTA_HOOK_ADMIN_LISTEN": "127.0.0.1:0"}, 2, "--api"),
        (("--config", "missing.toml"), {}, 2, r"missing\.toml"),
    ],
)
def test_who_can_not_be_asked_says_what_to_do(
    operator: Operator, arguments: tuple[str, ...], environ: dict[str, str], status: int, said: str
) -> None:
    assert re.search(said, operator.refused("types", "list", *arguments, status=status, environ=environ))


def test_the_connection_is_found_by_flag_then_environment_then_file(operator: Operator, service: Service) -> None:
    token = (service.data_dir / "admin-token").read_text().strip()
    config = operator.file("ota-hook.toml", f'admin_listen = "0.0.0.0:{service.admin_port}"\nadmin_token = "{token}"\n')
    nowhere = {"OTA_HOOK_ADMIN_LISTEN": "", "OTA_HOOK_DATA_DIR": str(operator.folder)}
    operator.run("types", "list", "--config", config, environ=nowhere)
    wrong = {**nowhere, "OTA_HOOK_ADMIN_LISTEN": "127.0.0.1:1"}
    operator.refused("types", "list", "--config", config, environ=wrong)
    address = f"http://localhost:{service.admin_port}/api/v1"
    operator.run("types", "list", "--config", config, "--api", address, environ=wrong)


def test_what_the_service_refuses_is_one_line_with_what_to_do(operator: Operator) -> None:
    operator.run("types", "put", "strict", "--scheme", "semver")
    package = operator.file("a.bin", b"firmware")
    upload = ("firmware", "upload", package, "--type", "strict", "--version")
    assert "OTA_HOOK_PUBLIC_URL_HTTPS" in operator.refused(*upload, "1.0.0", "--https")
    assert "'semver' of 'strict', which takes three numbers" in operator.refused(*upload, "1.0")
    assert "must say from which versions" in operator.refused(*upload, "1.0.0", "--allow-downgrade")
    assert "end in one of" in operator.refused("firmware", "upload", operator.file("a.txt", b"x"), *upload[3:], "1.0.0")
    assert "empty" in operator.refused("firmware", "upload", operator.file("b.bin", b""), *upload[3:], "1.0.0")
    assert "no file" in operator.refused("firmware", "upload", "c.bin", *upload[3:], "1.0.0")
    assert "'.' is a folder. Name the package in it." in operator.refused(
        "firmware", "upload", ".", *upload[3:], "1.0.0"
    )
    firmware = operator.ask(*upload, "1.0.0", "--disabled", "--source-version", "0.9.0")
    assert (firmware["enabled"], firmware["source_versions"]) == (False, ["0.9.0"])
    assert firmware["id"] in operator.refused("types", "delete", "strict")
    assert operator.refused("devices", "put", "a//b", "--type", "strict").startswith("'a//b' is no child's identifier")
    assert "'坏'" in operator.refused("types", "put", "坏")
    assert "'坏'" in operator.refused("types", "show", "坏")


def test_a_table_is_for_people_wherever_it_goes(outside: Operator) -> None:
    outside.run("types", "put", "a-wide-one", "--name", "很长的名字" * 20)
    outside.run("types", "put", "another")
    table = outside.run("types", "list", environ={"FORCE_COLOR": "1", "COLUMNS": "40"}).stdout
    assert "\x1b" not in table
    (wide,) = (line for line in table.splitlines() if line.startswith("a-wide-one "))
    assert "很长的名字" * 20 in wide
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d CST$", wide)
    ascii_only = outside.run("types", "list", environ={"PYTHONIOENCODING": "ascii"}).stdout
    assert "\\u5f88" in ascii_only
    entry = next(entry for entry in outside.ask("types", "list") if entry["key"] == "a-wide-one")
    assert entry["created_at"].endswith("Z")


def test_a_firmware_is_for_tags_and_a_percentage_until_it_is_released(operator: Operator) -> None:
    operator.run("types", "put", "gray")
    operator.run("devices", "put", "g1", "--type", "gray", "--version", "version=1.0", "--tag", "beta")
    operator.run("devices", "put", "g2", "--type", "gray", "--version", "version=1.0")
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "gray", "--version", "1.1")
    firmware = operator.ask(*upload, "--tag", "beta", "--tag", "北京", "--percentage", "100")["id"]

    def offered() -> list[bool]:
        return [operator.ask("check", device)["offer"] is not None for device in ("g1", "g2")]

    assert offered() == [True, False]
    assert "It has none of its tags (beta, 北京)." in operator.run("check", "g2").stdout
    assert (
        "for 0.5 % of those tagged beta"
        in operator.run("firmware", "select", firmware, "--percentage", "0.5", "--tag", "beta").stdout
    )
    assert "for nobody" in operator.run("firmware", "select", firmware, "--percentage", "0").stdout
    assert offered() == [False, False]
    assert (
        "for 100 % of everyone"
        in operator.run("firmware", "select", firmware, "--no-tags", "--percentage", "100").stdout
    )
    assert offered() == [True, True]
    assert "release" in operator.refused("firmware", "select", firmware, "--no-percentage")
    assert "Nothing is selected" in operator.refused("firmware", "select", firmware)
    assert "contradict" in operator.refused("firmware", "select", firmware, "--tag", "a", "--no-tags")
    assert operator.refused("firmware", "select", firmware, "--percentage", "101").endswith("must be at most 100.")
    released = operator.ask("firmware", "release", firmware, "--yes")
    assert (released["devices"], released["tags"], released["percentage"]) == (None, None, None)


def test_a_question_that_nobody_can_answer_is_refused(operator: Operator) -> None:
    operator.run("types", "put", "asked")
    operator.run("devices", "import", "-", stdin='{"identifier": "q1", "type": "asked"}\n')
    upload = ("firmware", "upload", operator.file("a.bin", b"firmware"), "--type", "asked", "--version", "1.0")
    firmware = operator.ask(*upload, "--device", "q1")["id"]
    assert "--yes" in operator.refused("firmware", "delete", firmware)
    assert "--yes" in operator.refused("firmware", "release", firmware)

    said, status = answer_on_terminal(operator, "n\n", "firmware", "release", firmware)
    assert status == 1
    assert "to the whole type 'asked' (1 device)?" in said
    more = "".join(f'{{"identifier": "q{n}", "type": "asked"}}\n' for n in range(2, 1002))
    operator.run("devices", "import", "-", stdin=more)
    said, _ = answer_on_terminal(operator, "n\n", "firmware", "release", firmware)
    assert "(more than 1,000 devices)?" in said
    assert "Nothing was changed." in said
    assert operator.ask("firmware", "show", firmware)["devices"] == ["q1"]
    _, status = answer_on_terminal(operator, "y\n", "firmware", "release", firmware)
    assert status == 0
    assert operator.ask("firmware", "show", firmware)["devices"] is None


def answer_on_terminal(operator: Operator, answer: str, *arguments: str) -> tuple[str, int]:
    """Run a command on a terminal and type `answer` when it asks; returns what it wrote, and its status."""
    master, slave = pty.openpty()
    process = operator.start(*arguments, stdin=slave, stderr=slave, stdout=slave)
    os.close(slave)
    written = b""
    try:
        while b"[y/N]" not in written:
            written += os.read(master, 4096)
        os.write(master, answer.encode())
        while True:
            written += os.read(master, 4096)
    except OSError:  # how a terminal says that nobody has it open any more
        pass
    finally:
        os.close(master)
    return written.decode().replace("\r\n", "\n"), process.wait(SECONDS)


def test_progress_is_shown_on_a_terminal_alone(outside: Operator) -> None:
    outside.run("types", "put", "slow")
    upload = (
        "firmware",
        "upload",
        outside.file("slow.bin", os.urandom(300_000)),
        "--type",
        "slow",
        "--json",
        "--version",
    )
    assert outside.run(*upload, "1.0").stderr == ""
    master, slave = pty.openpty()
    process = outside.start(*upload, "2.0", stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:
        pass
    os.close(master)
    output, _ = process.communicate(timeout=SECONDS)
    assert b"sending slow.bin" in shown
    assert json.loads(output)["version"] == "2.0"


def test_control_c_ends_a_command_without_a_traceback(outside: Operator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = outside.start("types", "list", "--api", address)
        silent.settimeout(SECONDS)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output, errors) == (130, b"", b"")


def test_a_reader_that_goes_away_ends_a_command_quietly(outside: Operator) -> None:
    outside.run("types", "put", "piped")
    for arguments in (("devices", "export"), ("types", "list"), ("types", "list", "--json")):
        process = outside.start(*arguments)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(SECONDS) == 141


def test_every_command_teaches_by_an_example() -> None:
    nouns = {
        group.name: group.typer_instance for group in cli.app.registered_groups if group.typer_instance is not None
    }
    assert nouns.keys() >= {"types", "devices", "firmware", "rules"}
    for noun, instance in nouns.items():
        for command in instance.registered_commands:
            assert command.callback is not None
            assert re.search(rf"Example: (.*\| )?ota-hook {noun} {command.name}\b", command.callback.__doc__ or "")
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert re.search(rf"Example: ota-hook {name}\b", command.callback.__doc__ or ""), name


def test_the_version_is_an_option_too(operator: Operator) -> None:
    said = operator.run("--version").stdout
    assert re.fullmatch(r"ota-hook \d+\.\d+.*\n", said)
    assert said == operator.run("version").stdout


@pytest.mark.parametrize(
    ("command", "usage"),
    [("check", "[OPTIONS] DEVICE"), ("devices export", "[OPTIONS] [FILE]"), ("types put", "[OPTIONS] KEY")],
)
def test_usage_shows_arguments_as_they_are_typed(operator: Operator, command: str, usage: str) -> None:
    shown = operator.run(*command.split(), "--help").stdout
    assert shown.splitlines()[0].endswith(f"{command} {usage}")
    assert "list[str]" not in shown


@pytest.mark.parametrize("command", ["types put", "firmware upload", "check"])
def test_help_says_where_the_service_is_sought(operator: Operator, command: str) -> None:
    shown = operator.run(*command.split(), "--help").stdout
    for said in ("--json", "--api URL", "--data-dir", "--config", f"Example: ota-hook {command} "):
        assert said in shown


def test_attempts_are_listed_and_reset(operator: Operator) -> None:
    assert "Whose attempts" in operator.refused("attempts", "list")
    assert "There is no device" in operator.refused("attempts", "reset", "--device", "nobody-of-that-name")
    operator.run("types", "put", "tried")
    operator.run("devices", "put", "tried-1", "--type", "tried", "--version", "version=1.0")
    assert operator.ask("attempts", "list", "--device", "tried-1") == []
    assert "are reset" in operator.run("attempts", "reset", "--device", "tried-1").stdout
    assert operator.ask("attempts", "reset", "--device", "tried-1")["device"] == "tried-1"
