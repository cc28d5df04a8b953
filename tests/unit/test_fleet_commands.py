"""The device's strict reading of commands: the bytes of the protocol pass, and nothing that differs from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ota_hook.standin.commands import (
    ChildCommand,
    NoUpgradeCommand,
    UpgradeCommand,
    WireViolationError,
    read_child_command,
    read_command,
)

MD5 = "481701fa4093499eacd05b57bebc7ffc"
UPGRADE = (
    '{"method":"otaUpgrade","params":{"module":"main","upgrade":true,"version":"1.1.5",'
    '"url":"http://xxx.com/xxx/xxx.bin","size":1363713,"md5":"481701fa4093499eacd05b57bebc7ffc"},'
    '"command_name":"OTA升级","id":98310}'
)
NO_UPGRADE = '{"method":"otaUpgrade","params":{"module":"main","upgrade":false},"command_name":"OTA升级","id":98311}'


def test_the_protocols_upgrade_command_is_read() -> None:
    assert read_command(UPGRADE.encode()) == UpgradeCommand(
        id=98310, module="main", version="1.1.5", url="http://xxx.com/xxx/xxx.bin", size_bytes=1363713, md5=MD5
    )


def test_the_protocols_answer_without_an_upgrade_is_read() -> None:
    assert read_command(NO_UPGRADE.encode()) == NoUpgradeCommand(id=98311, module="main")


def test_extra_digests_are_read_where_they_follow_md5() -> None:
    extended = UPGRADE.replace(f'"{MD5}"', f'"{MD5}","sha256":"{"a" * 64}","crc32":"0123abcd"')
    command = read_command(extended.encode())
    assert isinstance(command, UpgradeCommand)
    assert command.extras == {"sha256": "a" * 64, "crc32": "0123abcd"}


def test_another_method_is_not_ours() -> None:
    assert read_command(b'{"method": "reboot"}') is None


ENVELOPE = f'{{"device":["A","B"],"command":{UPGRADE},"id":98310}}'


def test_a_childs_command_is_read_in_its_envelope() -> None:
    sent = read_child_command(ENVELOPE.encode())
    assert sent == ChildCommand(["A", "B"], read_command(UPGRADE.encode()))  # type: ignore[arg-type]
    named = read_child_command(ENVELOPE.replace('["A","B"]', '"A"').encode())
    assert named is not None
    assert named.device == "A"
    assert read_child_command(b'{"device":"A","command":{"method":"reboot"},"id":1}') is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["A","B"]', '["A", "B"]'),
        ('["A","B"]', "[]"),
        ('["A","B"]', '["A",1]'),
        ('["A","B"]', "7"),
        ('["A","B"]', '""'),
        ('"id":98310}', '"id":98311}'),
        ('},"id":98310}', "}}"),
        ('"device":["A","B"],"command"', '"command"'),
        ('"upgrade":true', '"upgrade":1'),
    ],
)
def test_an_envelope_that_differs_is_against_the_protocol(old: str, new: str) -> None:
    assert old in ENVELOPE
    with pytest.raises(WireViolationError):
        read_child_command(ENVELOPE.replace(old, new, 1).encode())


def changed(text: str, old: str, new: str) -> bytes:
    assert old in text
    return text.replace(old, new).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        changed(UPGRADE, ",", ", "),
        UPGRADE.encode() + b"\n",
        json.dumps(json.loads(UPGRADE), separators=(",", ":")).encode(),  # escapes 升级
        changed(UPGRADE, "OTA升级", "OTA"),
        changed(UPGRADE, '"id":98310', '"id":"98310"'),
        changed(UPGRADE, '"id":98310', '"id":0'),
        changed(UPGRADE, '"id":98310', '"id":true'),
        changed(UPGRADE, '"id":98310', '"id":9007199254740992'),
        changed(UPGRADE, '"id":98310', '"id":98310,"ts":1'),
        changed(UPGRADE, '"upgrade":true', '"upgrade":1'),
        changed(UPGRADE, '"upgrade":true,"version":"1.1.5"', '"version":"1.1.5","upgrade":true'),
        changed(UPGRADE, '"size":1363713,', ""),
        changed(UPGRADE, '"size":1363713', '"size":"1363713"'),
        changed(UPGRADE, '"size":1363713', '"size":0'),
        changed(UPGRADE, '"module":"main"', '"module":""'),
        changed(UPGRADE, '"http:', '"ftp:'),
        changed(UPGRADE, MD5, MD5.upper()),
        changed(UPGRADE, f'"{MD5}"', f'"{MD5}","sha1":"00"'),
        changed(UPGRADE, f'"{MD5}"', f'"{MD5}","crc32":"123"'),
        changed(NO_UPGRADE, '"upgrade":false', '"upgrade":false,"version":"1.1.5"'),
        changed(NO_UPGRADE, '{"module":"main","upgrade":false}', "null"),
    ],
)
def test_what_differs_from_the_protocol_is_a_violation(payload: bytes) -> None:
    with pytest.raises(WireViolationError):
        read_command(payload)


@pytest.mark.parametrize(
    "keys",
    [
        ["params", "method", "command_name", "id"],
        ["method", "params", "id", "command_name"],
        ["method", "command_name", "id"],
        ["method", "params", "id"],
        ["method", "params", "command_name"],
    ],
)
def test_a_missing_or_moved_key_is_a_violation(keys: list[str]) -> None:
    document: dict[str, Any] = json.loads(UPGRADE)
    wrong = json.dumps({key: document[key] for key in keys}, ensure_ascii=False, separators=(",", ":"))
    with pytest.raises(WireViolationError, match="keys"):
        read_command(wrong.encode())
