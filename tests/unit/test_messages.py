"""Payloads of direct devices: WIRE.md's text, held byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ota_hook import messages
from ota_hook.dialect import is_publishable
from ota_hook.messages import (
    BadMessage,
    no_upgrade_command,
    parse_attributes,
    parse_exactly,
    parse_json,
    read_events,
    upgrade_command,
)
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


def test_a_report_is_read_for_spelling_once_however_many_of_its_versions_are_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings: list[bytes] = []

    def read(payload: bytes) -> Any:
        readings.append(payload)
        return parse_exactly(payload)

    monkeypatch.setattr(messages, "parse_exactly", read)
    report = parse_attributes(b'{"a": 1.10, "b": 2, "c": "3", "d": 4.0}', ["a", "b", "c", "d"])
    assert report.versions == {"a": "1.10", "b": "2", "c": "3", "d": "4.0"}
    assert len(readings) == 1


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
        read_events(parse_json(payload))


@pytest.mark.parametrize("event_id", ["", ', "id": 1000', ', "id": "a"', ', "id": 1.5', ', "id": null'])
def test_an_event_is_named_by_its_method(event_id: str) -> None:
    assert read_events(parse_json(f'{{"method": "otaCheck", "params": {{}}{event_id}}}'.encode()))[0].name == "otaCheck"


@pytest.mark.parametrize(
    "payload",
    [b"{}", b'{"method": ""}', b'{"method": 1}', b'{"method": ["otaCheck"]}', b'{"method": "otaCheck", "id": {}}'],
)
def test_an_event_of_wrong_types_is_a_bad_message(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        read_events(parse_json(payload))


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
