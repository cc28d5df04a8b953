"""Topics and payloads of direct devices: WIRE.md's text, held byte for byte."""

from __future__ import annotations

import json

import pytest

from ota_hook.dialect import (
    BUILT_IN_DIALECTS,
    BadMessage,
    Channel,
    Dialect,
    is_publishable,
    no_upgrade_command,
    parse_attributes,
    parse_dialect,
    parse_event,
    upgrade_command,
)
from ota_hook.errors import InputError
from ota_hook.model import CommandExtra, Firmware, Package

FIRMWARE = Firmware(
    id="01J0000000000000000000000A",
    name="tracker 1.1.5",
    device_type="tracker",
    version="1.1.5",
    package=Package(
        filename="固件.bin",
        size_bytes=1363713,
        md5="481701fa4093499eacd05b57bebc7ffc",
        sha256="aa" * 32,
        crc32="0badcafe",
    ),
)


def built_in(name: str) -> Dialect:
    return parse_dialect(name, BUILT_IN_DIALECTS[name])


def test_the_hook_asks_for_reports_and_events_and_nothing_else() -> None:
    assert built_in("eztcloud").topic_filters == ("attributes/+", "event_report/+", "command_reply/+")
    assert built_in("typed").topic_filters == ("+/+/attributes", "+/+/event_report", "+/+/command_reply")
    assert built_in("eztcloud").command_filter == "command_send/+"


def test_a_dialect_without_a_reply_topic_hears_no_replies() -> None:
    dialect = parse_dialect("some", MOUNTED)
    assert dialect.topic_filters == ("dev/+/attributes/+", "dev/+/event_report/+")


@pytest.mark.parametrize(
    ("topic", "clientid", "device"),
    [
        ("dev/c1/command_send/d1", "c1", "d1"),
        ("dev/c1/command_send/d1", "c2", None),
        ("dev/c1/event_report/d1", "c1", None),
        ("command_send/d1", "c1", None),
    ],
)
def test_a_command_topic_tells_whose_it_is(topic: str, clientid: str, device: str | None) -> None:
    assert parse_dialect("some", MOUNTED).commanded_device(topic, clientid=clientid, username="u") == device


def test_a_push_needs_no_more_than_the_device_the_type_and_its_identity() -> None:
    assert built_in("eztcloud").push_topic("d1", "tracker", identity="username") == "command_send/d1"
    assert built_in("typed").push_topic("d1", "tracker", identity="username") == "tracker/d1/command_send"
    mounted = parse_dialect("some", MOUNTED)
    assert mounted.push_topic("c1", "tracker", identity="clientid") == "dev/c1/command_send/c1"
    with pytest.raises(BadMessage, match="topic_unusable"):
        mounted.push_topic("d1", "tracker", identity="username")


MOUNTED = {
    "attributes": "dev/{clientid}/attributes/{u}",
    "event_report": "dev/{clientid}/event_report/{u}",
    "command_send": "dev/{clientid}/command_send/{u}",
}


@pytest.mark.parametrize(
    ("templates", "leads"),
    [
        (BUILT_IN_DIALECTS["eztcloud"], ("attributes/", "event_report/", "command_reply/")),
        (BUILT_IN_DIALECTS["typed"], ("", "", "")),
        (MOUNTED, ("dev/", "dev/")),
        ({**MOUNTED, "attributes": "{u}/attributes"}, ("", "dev/")),
    ],
)
def test_a_lead_is_all_that_stands_before_the_first_placeholder(
    templates: dict[str, str], leads: tuple[str, ...]
) -> None:
    assert parse_dialect("some", templates).leads == leads


def test_a_topic_with_the_connections_identity_is_recognised() -> None:
    address = built_in("eztcloud").recognise(
        "event_report/DU_7VFGiJjjv8QoS", identity="DU_7VFGiJjjv8QoS", clientid="c", username="DU_7VFGiJjjv8QoS"
    )
    assert address is not None
    assert (address.channel, address.device, address.device_type) == (Channel.EVENT_REPORT, "DU_7VFGiJjjv8QoS", None)
    assert built_in("eztcloud").command_topic(address, "tracker") == "command_send/DU_7VFGiJjjv8QoS"


def test_the_typed_dialect_reads_the_type_from_the_topic() -> None:
    address = built_in("typed").recognise("tracker/d1/attributes", identity="d1", clientid="d1", username="d1")
    assert address is not None
    assert address.device_type == "tracker"
    assert built_in("typed").command_topic(address, "tracker") == "tracker/d1/command_send"


@pytest.mark.parametrize(
    "topic", ["", "attributes", "attributes/d1/more", "command_send/d1", "event_reports/d1", "x/y"]
)
def test_a_topic_that_is_not_ours_is_none(topic: str) -> None:
    assert built_in("eztcloud").recognise(topic, identity="d1", clientid="d1", username="d1") is None


@pytest.mark.parametrize("identity", ["", "d2", "D1", "d1 "])
def test_a_topic_of_another_identity_is_refused(identity: str) -> None:
    with pytest.raises(BadMessage, match="identity_differs"):
        built_in("eztcloud").recognise("attributes/d1", identity=identity, clientid="d1", username="d1")


@pytest.mark.parametrize("identity", ["a%b", "a#b", "a+b", "tab\there", "\x85", "x" * 129, "号" * 43])
def test_an_identity_that_can_not_be_a_device_is_refused(identity: str) -> None:
    with pytest.raises(BadMessage, match="identity_differs"):
        built_in("eztcloud").recognise(f"attributes/{identity}", identity=identity, clientid="c", username="u")


def test_a_listeners_mountpoint_is_part_of_the_topic_and_of_the_answer() -> None:
    dialect = parse_dialect("mounted", MOUNTED)
    assert dialect.topic_filters[1] == "dev/+/event_report/+"
    address = dialect.recognise("dev/M/event_report/d1", identity="d1", clientid="M", username="d1")
    assert address is not None
    assert dialect.command_topic(address, "t") == "dev/M/command_send/d1"
    with pytest.raises(BadMessage):
        dialect.recognise("dev/N/event_report/d1", identity="d1", clientid="M", username="d1")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"attributes": "attributes/+"}, "whole level"),
        ({"attributes": "attributes/x-{device}"}, "whole level"),
        ({"attributes": "attributes"}, "does not name"),
        ({"attributes": "attributes/{device}/{colour}"}, "no placeholder"),
        ({"attributes": "event_report/{device}"}, "same topic"),
        ({"command_send": "{username}/{device}"}, "same topic"),
        ({"telemetry": "t/{device}"}, "no topic"),
    ],
)
def test_a_template_that_can_not_work_is_refused_with_the_reason(change: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_dialect("mine", {**BUILT_IN_DIALECTS["eztcloud"], **change})


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ('"1.0.0"', "1.0.0"),
        ('" 1.0.0\\n"', "1.0.0"),
        ("7", "7"),
        ("1.10", "1.10"),
        ("0", "0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ('"固件1"', "固件1"),
    ],
)
def test_a_version_is_the_text_that_the_device_sent(value: str, version: str) -> None:
    report = parse_attributes(b'{"temperature": 28.5, "version": %s}' % value.encode(), ["version"])
    assert report.versions == {"version": version}
    assert report.bad_values == 0


@pytest.mark.parametrize(
    "value",
    [
        "true",
        "false",
        "1e9",
        "1E9",
        "-1",
        "-0.5",
        "[]",
        "{}",
        '["1.0"]',
        '""',
        '"beta"',
        '"\\ud800 1"',
        '"1.0\\nvictim,DU,trial,1.0\\nx"',
        '"1.0\\u0000"',
        '"\\u007f1.0"',
        '"1\\u00850"',
        '"%s"' % ("1" * 129),
    ],
)
def test_a_bad_value_is_bad_for_its_key_alone(value: str) -> None:
    report = parse_attributes(b'{"version": %s, "mcu_version": "2.0"}' % value.encode(), ["version", "mcu_version"])
    assert report.versions == {"mcu_version": "2.0"}
    assert report.bad_values == 1


def test_null_says_nothing() -> None:
    report = parse_attributes(b'{"version": null}', ["version"])
    assert (dict(report.versions), report.bad_values) == ({}, 0)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"version": NaN}', "not_json"),
        (b'{"version": 01}', "not_json"),
        (b"\xff\xfe{}", "not_utf8"),
        ('{"version": "1"}'.encode("utf-16"), "not_utf8"),
        (b"[]", "not_an_object"),
        (b'"1.0"', "not_an_object"),
        (b"null", "not_an_object"),
        (b"[" * 10_000 + b"]" * 10_000, "too_deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too_deep"),
    ],
)
def test_a_payload_that_is_no_object_is_a_bad_message(payload: bytes, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        parse_attributes(payload, ["version"])
    with pytest.raises(BadMessage, match=reason):
        parse_event(payload)


@pytest.mark.parametrize("event_id", ["", ', "id": 1000', ', "id": "a"', ', "id": 1.5', ', "id": null'])
def test_an_event_is_named_by_its_method(event_id: str) -> None:
    assert parse_event(f'{{"method": "otaCheck", "params": {{}}{event_id}}}'.encode()) == "otaCheck"


@pytest.mark.parametrize(
    "payload",
    [b"{}", b'{"method": ""}', b'{"method": 1}', b'{"method": ["otaCheck"]}', b'{"method": "otaCheck", "id": {}}'],
)
def test_an_event_of_wrong_types_is_a_bad_message(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_event(payload)


def test_the_upgrade_command_has_exactly_the_documented_bytes() -> None:
    command = upgrade_command(FIRMWARE, url="http://xxx.com/xxx/xxx.bin", command_id=98310)
    assert (
        command
        == (
            '{"method":"otaUpgrade","params":{"module":"main","upgrade":true,"version":"1.1.5",'
            '"url":"http://xxx.com/xxx/xxx.bin","size":1363713,"md5":"481701fa4093499eacd05b57bebc7ffc"},'
            '"command_name":"OTA升级","id":98310}'
        ).encode()
    )


def test_extras_follow_the_md5_in_the_types_order() -> None:
    command = upgrade_command(
        FIRMWARE, url="http://h/f", command_id=1, extras=(CommandExtra.CRC32, CommandExtra.SHA256)
    )
    assert list(json.loads(command)["params"])[5:] == ["md5", "crc32", "sha256"]
    assert json.loads(command)["params"]["sha256"] == "aa" * 32


def test_the_answer_without_an_upgrade_has_exactly_the_documented_bytes() -> None:
    assert (
        no_upgrade_command("main", command_id=98311)
        == (
            '{"method":"otaUpgrade","params":{"module":"main","upgrade":false},"command_name":"OTA升级","id":98311}'
        ).encode()
    )


@pytest.mark.parametrize(
    ("topic", "usable"),
    [
        ("command_send/d", True),
        ("命令/d", True),
        ("", False),
        ("a/+", False),
        ("a/#", False),
        ("a\0b", False),
        ("x" * 65_535, True),
        ("x" * 65_536, False),
        ("号" * 21_846, False),
    ],
)
def test_a_topic_that_hurts_the_broker_is_never_publishable(topic: str, *, usable: bool) -> None:
    assert is_publishable(topic) is usable
