"""`/firmware`: uploads, edits, deletion, device lists."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ota_hook.errors import DependencyError
from ota_hook.task import FirmwareStop
from tests.integration.admin_service import MAX_UPLOAD_BYTES, TOKEN, Admin, admin_role, checked, problem
from tests.integration.waiting import eventually

NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(autouse=True)
async def device_type(admin: Admin) -> None:
    await admin.create_type()


async def test_a_firmware_has_its_documented_defaults(admin: Admin) -> None:
    content = b"firmware" * 1000
    created = await admin.upload("1.1", content, filename="固件 v1.1.tar.gz")
    document = checked(created, 201)
    firmware_id = document["id"]
    assert created.headers["location"] == f"/api/v1/firmware/{firmware_id}"
    assert created.headers["etag"].startswith('"1-')
    assert document.pop("created_at").endswith("Z")
    assert document == {
        "id": firmware_id,
        "name": "固件 v1.1",
        "device_type": "DU",
        "version": "1.1",
        "module": "main",
        "enabled": True,
        "use_https": False,
        "allow_downgrade": False,
        "source_versions": [],
        "devices": None,
        "devices_count": None,
        "devices_truncated": False,
        "tags": None,
        "percentage": None,
        "filename": "固件 v1.1.tar.gz",
        "size": len(content),
        "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "crc32": f"{zlib.crc32(content):08x}",
        "url": f"{admin.url}/firmware/{firmware_id}/%E5%9B%BA%E4%BB%B6%20v1.1.tar.gz",
        "revision": 1,
        "notice": None,
    }
    assert (await admin.open.get(document["url"])).content == content
    read = checked(await admin.api.get(f"/firmware/{firmware_id}"), 200)
    assert (read.pop("counters"), read.pop("stopped")) == ({}, None)
    assert read == created.json()
    assert admin.files() == {firmware_id}


def multipart(
    parts: list[tuple[str, bytes]], *, file_at: int, boundary: str = "bOuNdArY"
) -> tuple[bytes, dict[str, str]]:
    """A body with the file at that place among the parts."""
    lines = []
    for name, value in parts:
        lines.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="fw.bin"\r\n\r\n'
    lines.insert(file_at, head.encode() + b"firmware")
    body = b"\r\n".join(lines) + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@pytest.mark.parametrize("file_at", [0, 3, 9])
async def test_fields_may_come_in_any_order_around_the_file(admin: Admin, file_at: int) -> None:
    parts = [
        ("devices", b"DU_2"),
        ("source_versions", b"1.0"),
        ("name", "名".encode()),
        ("device_type", b"DU"),
        ("version", b"1.1"),
        ("devices", b"DU_1"),
        ("source_versions", b" 1.0.0 "),
        ("module", b"mcu"),
        ("enabled", b"false"),
    ]
    body, headers = multipart(parts, file_at=file_at)
    document = checked(await admin.api.post("/firmware", content=body, headers=headers), 201)
    shown = {
        name: document[name] for name in ("devices", "devices_count", "source_versions", "name", "module", "enabled")
    }
    assert shown == {
        "devices": ["DU_1", "DU_2"],
        "devices_count": 2,
        "source_versions": ["1.0", "1.0.0"],
        "name": "名",
        "module": "mcu",
        "enabled": False,
    }


async def test_an_upload_that_no_rule_asks_for_says_so(admin: Admin) -> None:
    document = await admin.create_firmware(module="gps")
    assert "asks for the module 'gps', so no device gets it: add one" in document["notice"]
    assert checked(await admin.api.get(f"/firmware/{document['id']}"), 200)["notice"] is None
    body = {"device_type": "DU", "event": "gpsCheck", "module": "gps"}
    rule = checked(await admin.api.post("/rules", json=body), 201)
    assert (await admin.create_firmware("1.2", module="gps"))["notice"] is None
    checked(await admin.api.patch(f"/rules/{rule['id']}", json={"enabled": False}), 200)
    assert "No enabled rule" in (await admin.create_firmware("1.3", module="gps"))["notice"]


async def test_an_upload_for_devices_that_can_not_get_it_says_so(admin: Admin) -> None:
    await admin.create_type("lamp")
    await admin.create_device("good")
    for n in range(4):
        await admin.create_device(f"lamp {n}", "lamp")
    assert (await admin.create_firmware(devices=["good"]))["notice"] is None
    document = await admin.create_firmware(devices=["good", "nobody99", "nobody98", "nobody99"])
    assert document["notice"] == "Not registered: 2 of the 3 listed."
    document = await admin.create_firmware(devices=["good", *(f"lamp {n}" for n in range(4))])
    assert document["notice"] == ("Of another device type, and so never offered it: 'lamp 0', 'lamp 1', 'lamp 2', ….")


async def test_one_empty_devices_field_is_nobody(admin: Admin) -> None:
    document = await admin.create_firmware(devices=[""])
    assert (document["devices"], document["devices_count"]) == ([], 0)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"device_type": "none"}, "device_type"),
        ({"device_type": None}, "device_type"),
        ({"version": None}, "version"),
        ({"version": "new"}, "version"),
        ({"version": "1" * 129}, "version"),
        ({"module": "a/b"}, "module"),
        ({"name": "a\x01b"}, "name"),
        ({"devices": ["a//b"]}, "devices.0"),
        ({"devices": ["", "a"]}, "devices.0"),
        ({"source_versions": ["1.0", "1.0"]}, "source_versions"),
        ({"source_versions": ["x"]}, "source_versions.0"),
        ({"source_versions": [""]}, "source_versions.0"),
        ({"tags": ["a b"]}, "tags.0"),
        ({"tags": ["a", "a"]}, "tags"),
        ({"tags": ["", "a"]}, "tags.0"),
        ({"percentage": "a tenth"}, "percentage"),
        ({"percentage": "100.01"}, "percentage"),
        ({"percentage": "nan"}, "percentage"),
        ({"percentage": "1_0"}, "percentage"),
        ({"percentage": "١٠"}, "percentage"),
        ({"percentage": "-1"}, "percentage"),
        ({"percentage": ""}, "percentage"),
        ({"use_https": "maybe"}, "use_https"),
        ({"use_https": "true"}, "use_https"),
        ({"enabled": ""}, "enabled"),
        ({"allow_downgrade": "true"}, "source_versions"),
        ({"colour": "red"}, "colour"),
        ({"id": "x"}, "id"),
        ({"filename": "fw.exe"}, "file"),
        ({"content": b""}, "file"),
    ],
)
async def test_a_bad_upload_is_refused_by_field_and_leaves_nothing(
    admin: Admin, fields: dict[str, Any], field: str
) -> None:
    document = problem(await admin.upload(**fields), 422)
    assert [error["field"] for error in document["errors"]] == [field]
    assert field.partition(".")[0].replace("_", " ") in document["detail"].replace("_", " ")
    assert admin.files() == set()
    assert checked(await admin.api.get("/firmware"), 200)["items"] == []


async def test_https_without_a_base_names_the_setting(admin: Admin) -> None:
    document = problem(await admin.upload(use_https="true"), 422)
    assert "OTA_HOOK_PUBLIC_URL_HTTPS" in document["mend"]
    firmware = await admin.create_firmware()
    problem(await admin.api.patch(f"/firmware/{firmware['id']}", json={"use_https": True}), 422)


async def test_use_https_chooses_the_other_base(admin_redis: str, tmp_path: Path) -> None:
    async with admin_role(admin_redis, tmp_path / "https", public_url_https="https://fw.example") as admin:
        await admin.create_type()
        plain, secure = await admin.create_firmware("1.1"), await admin.create_firmware("1.2", use_https="true")
        assert plain["url"] == f"{admin.url}/firmware/{plain['id']}/fw.bin"
        assert secure["url"] == f"https://fw.example/firmware/{secure['id']}/fw.bin"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data", 422),
        (b"", "multipart/form-data; boundary=", 422),
        (b"x", "multipart/form-data; boundary=b", 422),
        (b"--b\r\n\r\n", "multipart/form-data; boundary=" + "b" * 71, 422),
        (
            b"--other\r\nContent-Disposition: form-data; name=x\r\n\r\n1\r\n--other--\r\n",
            "multipart/form-data; boundary=b",
            422,
        ),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422),
    ],
    ids=["json", "no boundary", "empty boundary", "no parts", "long boundary", "other boundary", "no file"],
)
async def test_a_body_that_is_no_upload_is_refused(admin: Admin, body: bytes, content_type: str, status: int) -> None:
    problem(await admin.api.post("/firmware", content=body, headers={"Content-Type": content_type}), status)
    assert admin.files() == set()


async def test_a_truncated_upload_leaves_nothing(admin: Admin) -> None:
    body, headers = multipart([("device_type", b"DU"), ("version", b"1.1")], file_at=2)
    for cut in (len(body) - 4, len(body) - 20, len(body) // 2):
        problem(await admin.api.post("/firmware", content=body[:cut], headers=headers), 422)
    assert admin.files() == set()


async def test_a_client_that_goes_away_leaves_nothing(admin: Admin) -> None:
    body, headers = multipart([("device_type", b"DU"), ("version", b"1.1")], file_at=2)
    head = (
        f"POST /api/v1/firmware HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: {headers['Content-Type']}\r\nContent-Length: {len(body) + 1_000_000}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(head.encode() + body[:-20])
    await writer.drain()
    await eventually(lambda: len(admin.files()) == 1)
    assert all(name.startswith(".incoming/") for name in admin.files())
    writer.close()
    await eventually(lambda: admin.files() == set())


async def test_a_file_over_the_limit_is_refused_however_it_is_sent(admin: Admin) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        body, _ = multipart([("device_type", b"DU"), ("version", b"1.1")], file_at=2)
        yield body[: body.index(b"firmware")]
        for _ in range(count):
            yield b"x" * 65_536
        yield b"\r\n--bOuNdArY--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=bOuNdArY"}
    blocks = MAX_UPLOAD_BYTES // 65_536
    problem(await admin.api.post("/firmware", content=pieces(blocks + 1), headers=headers), 413)
    assert admin.files() == set()
    document = checked(await admin.api.post("/firmware", content=pieces(blocks), headers=headers), 201)
    assert document["size"] == MAX_UPLOAD_BYTES


async def test_a_declared_length_over_the_limit_is_refused_before_the_body(admin: Admin) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(
        f"POST /api/v1/firmware HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {2**40}\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_what_is_refused_anyway_is_refused_before_the_file_comes(admin: Admin) -> None:
    body, headers = multipart([("device_type", b"none"), ("version", b"1.1")], file_at=2)
    head = (
        f"POST /api/v1/firmware HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: {headers['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(head.encode() + body[: body.index(b"firmware") + 1])
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 422 ")
    assert admin.files() == set()
    writer.close()


async def test_a_stalled_upload_is_given_up(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("admin_api.bodies.STALL_S", 0.1)
    body, headers = multipart([("device_type", b"DU"), ("version", b"1.1")], file_at=2)
    head = (
        f"POST /api/v1/firmware HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: {headers['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(head.encode() + body[:-10])
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    await eventually(lambda: admin.files() == set())


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
@pytest.mark.parametrize("maybe_written", [False, True])
async def test_a_failed_upload_leaves_its_package_only_where_the_firmware_may_exist(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], maybe_written: bool
) -> None:
    async def fail(_: object) -> None:
        raise DependencyError("Redis does not answer.", maybe_written=maybe_written)

    monkeypatch.setattr(admin.context.catalogue, "change", fail)
    form = {"device_type": "DU", "version": "1.1"}
    problem(await admin.api.post("/firmware", data=form, files={"file": ("fw.bin", b"one")}, headers=headers), 503)
    assert len(admin.files()) == maybe_written


# ---- duplicates and downgrades


async def test_a_duplicate_is_refused_and_its_package_removed(admin: Admin) -> None:
    first = await admin.create_firmware("1.1")
    document = problem(await admin.upload("v1.1.0"), 409)
    assert first["id"] in document["detail"]
    assert admin.files() == {first["id"]}


async def test_a_disabled_duplicate_counts_and_says_so(admin: Admin) -> None:
    await admin.create_firmware("1.1", enabled="false")
    assert "(disabled)" in problem(await admin.upload("1.1"), 409)["detail"]


async def test_of_two_equal_uploads_at_once_one_is_taken(admin: Admin) -> None:
    answers = await asyncio.gather(*(admin.upload("1.1") for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert len(admin.files()) == 1


async def test_a_deleted_firmware_makes_room(admin: Admin) -> None:
    first = await admin.create_firmware("1.1")
    await admin.api.delete(f"/firmware/{first['id']}")
    await admin.create_firmware("1.1")


async def test_taking_a_list_away_may_not_make_a_duplicate(admin: Admin) -> None:
    await admin.create_firmware("1.1")
    listed = await admin.create_firmware("1.1", devices=["DU_1"])
    problem(await admin.api.patch(f"/firmware/{listed['id']}", json={"devices": None}), 409)
    assert checked(await admin.api.get(f"/firmware/{listed['id']}"), 200)["devices"] == ["DU_1"]


async def test_a_downgrade_that_would_be_undone_is_refused_until_the_other_is_off(admin: Admin) -> None:
    up = await admin.create_firmware("2.0")
    fields: dict[str, Any] = {"allow_downgrade": "true", "source_versions": ["2.0"]}
    assert up["id"] in problem(await admin.upload("1.0", **fields), 409)["detail"]
    checked(await admin.api.patch(f"/firmware/{up['id']}", json={"enabled": False}), 200)
    await admin.create_firmware("1.0", **fields)
    problem(await admin.api.patch(f"/firmware/{up['id']}", json={"enabled": True}), 409)


async def test_lists_of_different_devices_keep_a_downgrade_apart(admin: Admin) -> None:
    up = await admin.create_firmware("2.0", devices=["a", "b"])
    down = await admin.create_firmware("1.0", allow_downgrade="true", source_versions=["2.0"], devices=["c"])
    path = f"/firmware/{up['id']}/devices"
    problem(await admin.api.put(path, content='"c"\n"d"', headers=NDJSON), 409)
    checked(await admin.api.put(path, content='"d"', headers=NDJSON), 200)
    problem(await admin.api.patch(f"/firmware/{down['id']}", json={"devices": ["c", "d"]}), 409)


# ---- edits


async def test_patch_changes_all_but_the_package_and_what_it_is_for(admin: Admin) -> None:
    path = f"/firmware/{(await admin.create_firmware(devices=['a']))['id']}"
    patched = await admin.api.patch(path, json={"name": "new", "enabled": False, "source_versions": ["1.0"]})
    document = checked(patched, 200)
    assert (document["name"], document["enabled"], document["source_versions"], document["devices"]) == (
        "new",
        False,
        ["1.0"],
        ["a"],
    )
    assert patched.headers["etag"].startswith('"2-')
    reset = checked(await admin.api.patch(path, json={"source_versions": [], "devices": None}), 200)
    assert (reset["name"], reset["source_versions"], reset["devices"]) == ("new", [], None)
    assert checked(await admin.api.patch(path, json={"devices": []}), 200)["devices"] == []
    assert checked(await admin.api.patch(path, json={"tags": None, "percentage": None}), 200)["revision"] == 5


async def test_tags_and_a_percentage_select_devices_and_can_be_changed(admin: Admin) -> None:
    created = checked(await admin.upload("1.1", tags=["beta", "北京"], percentage="12.5"), 201)
    assert (created["tags"], created["percentage"], created["devices"]) == (["beta", "北京"], 12.5, None)
    path = f"/firmware/{created['id']}"
    changed = checked(await admin.api.patch(path, json={"tags": [], "percentage": 100}), 200)
    assert (changed["tags"], changed["percentage"]) == ([], 100)
    kept = checked(await admin.api.patch(path, json={"name": "new"}), 200)
    assert (kept["tags"], kept["percentage"]) == ([], 100)
    released = checked(await admin.api.patch(path, json={"tags": None, "percentage": None}), 200)
    assert (released["tags"], released["percentage"]) == (None, None)


async def test_a_growing_percentage_keeps_the_devices_that_it_had(admin: Admin) -> None:
    names = [f"d{number}" for number in range(100)]
    for name in names:
        checked(await admin.api.put(f"/devices/{name}", json={"type": "DU", "versions": {"version": "1.0"}}), 201)
    path = f"/firmware/{(await admin.create_firmware(percentage='0'))['id']}"

    async def offered() -> set[str]:
        checks = [checked(await admin.api.get("/check", params={"device": name}), 200) for name in names]
        return {check["device"] for check in checks if check["offer"]}

    before: set[str] = set()
    for percentage in (0, 10, 50, 100):
        checked(await admin.api.patch(path, json={"percentage": percentage}), 200)
        now = await offered()
        assert before <= now
        assert abs(len(now) - percentage) <= 16  # of a hundred; three standard deviations
        before = now
    assert before == set(names)
    checked(await admin.api.patch(path, json={"percentage": 1.25}), 200)
    (refused,) = checked(await admin.api.get("/check", params={"device": max(set(names) - await offered())}), 200)[
        "firmware"
    ]
    assert refused["reasons"] == ["not_selected", "outside_percentage"]
    assert "1.25 %" in refused["explanations"][1]


@pytest.mark.parametrize(
    "patch",
    [
        {"version": "2.0"},
        {"device_type": "DU"},
        {"module": "main"},
        {"filename": "x.bin"},
        {"tags": ["a b"]},
        {"tags": "a"},
        {"percentage": "10"},
        {"percentage": True},
        {"percentage": -1},
        {"percentage": 0.001},
        {"enabled": "true"},
        {"allow_downgrade": True},
        {"devices": ["a//b"]},
        {"devices": "a"},
        {"devices": [str(n) for n in range(10_001)]},
        {"source_versions": [str(n) for n in range(101)]},
        {"colour": 1},
    ],
    ids=lambda patch: next(iter(patch)),
)
async def test_a_bad_patch_of_a_firmware_changes_nothing(admin: Admin, patch: dict[str, Any]) -> None:
    before = await admin.create_firmware()
    problem(await admin.api.patch(f"/firmware/{before['id']}", json=patch), 422)
    after = checked(await admin.api.get(f"/firmware/{before['id']}"), 200)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("name", ["name", "enabled", "source_versions", "use_https", "allow_downgrade"])
async def test_null_does_not_set_a_field_of_a_firmware_back(admin: Admin, name: str) -> None:
    before = await admin.create_firmware(enabled="false", source_versions=["1.0"], allow_downgrade="true", name="n")
    document = problem(await admin.api.patch(f"/firmware/{before['id']}", json={name: None}), 422)
    assert [error["field"] for error in document["errors"]] == [name]
    assert f"`{name}` can't be null" in document["detail"]
    assert ("[] for a firmware for every version" in document["mend"]) == (name == "source_versions")
    after = checked(await admin.api.get(f"/firmware/{before['id']}"), 200)
    assert {field: after[field] for field in before} == before


@pytest.mark.parametrize(
    "name", ["version", "device_type", "module", "filename", "sha256", "devices_count", "revision"]
)
async def test_what_is_shown_but_never_changes_says_so(admin: Admin, name: str) -> None:
    firmware = await admin.create_firmware()
    document = problem(await admin.api.patch(f"/firmware/{firmware['id']}", json={name: firmware[name]}), 422)
    assert document["detail"] == f"`{name}` can't be changed."


async def test_edits_of_a_firmware_are_held_to_if_match(admin: Admin) -> None:
    path = f"/firmware/{(await admin.create_firmware())['id']}"
    stale = {"If-Match": '"7"'}
    problem(await admin.api.patch(path, json={"name": "x"}, headers=stale), 412)
    problem(await admin.api.delete(path, headers=stale), 412)
    problem(await admin.api.put(f"{path}/devices", content='"a"', headers=stale | NDJSON), 412)
    assert checked(await admin.api.get(path), 200)["revision"] == 1


async def test_firmware_is_filtered(admin: Admin) -> None:
    await admin.create_type("B")
    first = await admin.create_firmware("1.1")
    second = await admin.create_firmware("1.2", module="mcu", enabled="false")
    third = await admin.create_firmware("1.1", device_type="B")

    async def ids(query: str) -> list[str]:
        return [item["id"] for item in checked(await admin.api.get(f"/firmware?{query}"), 200)["items"]]

    assert await ids("") == [first["id"], second["id"], third["id"]]
    assert await ids("device_type=DU") == [first["id"], second["id"]]
    assert await ids("module=mcu") == [second["id"]]
    assert await ids("enabled=false") == [second["id"]]
    assert await ids("version=1.1&device_type=B") == [third["id"]]


async def test_a_deleted_firmware_leaves_a_tombstone(admin: Admin) -> None:
    firmware = await admin.create_firmware()
    path = f"/firmware/{firmware['id']}"
    assert (await admin.api.delete(path)).status_code == 204
    problem(await admin.api.get(path), 410)
    problem(await admin.open.get(firmware["url"]), 410)
    problem(await admin.api.patch(path, json={"name": "x"}), 410)
    problem(await admin.api.get(f"{path}/devices"), 410)
    assert checked(await admin.api.get("/firmware"), 200)["items"] == []
    assert admin.files() == set()
    assert (await admin.api.delete(path)).status_code == 204


# ---- device lists


async def read_list(admin: Admin, firmware: dict[str, Any]) -> set[str]:
    answer = await admin.api.get(f"/firmware/{firmware['id']}/devices")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    identifiers = [json.loads(line)["identifier"] for line in answer.content.splitlines()]
    assert len(identifiers) == len(set(identifiers))
    return set(identifiers)


async def test_a_device_list_is_replaced_and_added_to(admin: Admin) -> None:
    await admin.create_device("a")
    firmware = await admin.create_firmware(devices=["x"])
    path = f"/firmware/{firmware['id']}/devices"
    body = '"a"\n{"identifier": "b"}\n\n"b"\n'
    assert checked(await admin.api.put(path, content=body, headers=NDJSON), 200) == {"count": 2, "unknown": 2}
    assert await read_list(admin, firmware) == {"a", "b"}
    assert checked(await admin.api.post(path, content='"c"\n"a"', headers=NDJSON), 200) == {"count": 3, "unknown": 1}
    assert await read_list(admin, firmware) == {"a", "b", "c"}
    shown = checked(await admin.api.get(f"/firmware/{firmware['id']}"), 200)
    assert (shown["devices"], shown["devices_count"], shown["revision"]) == (["a", "b", "c"], 3, 3)


async def test_an_empty_list_is_nobody_and_can_be_added_to(admin: Admin) -> None:
    firmware = await admin.create_firmware(devices=["x"])
    path = f"/firmware/{firmware['id']}/devices"
    assert checked(await admin.api.put(path, content=b"", headers=NDJSON), 200) == {"count": 0, "unknown": 0}
    assert await read_list(admin, firmware) == set()
    assert checked(await admin.api.get(f"/firmware/{firmware['id']}"), 200)["devices"] == []
    assert checked(await admin.api.post(path, content='"a"', headers=NDJSON), 200)["count"] == 1
    assert await read_list(admin, firmware) == {"a"}


async def test_a_firmware_for_everyone_has_no_list_to_read_or_add_to(admin: Admin) -> None:
    path = f"/firmware/{(await admin.create_firmware())['id']}/devices"
    problem(await admin.api.get(path), 404)
    problem(await admin.api.post(path, content='"a"', headers=NDJSON), 409)
    checked(await admin.api.put(path, content='"a"', headers=NDJSON), 200)


@pytest.mark.parametrize("line", ["x", "[]", "7", "null", '{"id": "a"}', '"a//b"', '""', '{"identifier": 1}'])
async def test_a_bad_line_refuses_the_whole_list(admin: Admin, line: str) -> None:
    firmware = await admin.create_firmware(devices=["x"])
    path = f"/firmware/{firmware['id']}/devices"
    document = problem(await admin.api.put(path, content=f'"a"\n{line}\n', headers=NDJSON), 422)
    assert "Line 2" in document["detail"]
    assert await read_list(admin, firmware) == {"x"}
    problem(await admin.api.put(path, content=b'"a"', headers={"Content-Type": "text/plain"}), 415)


async def test_an_export_of_devices_is_a_list(admin: Admin) -> None:
    path = f"/firmware/{(await admin.create_firmware())['id']}/devices"
    await admin.create_device("a", versions={"version": "1.0"}, tags=["t"])
    for accept in ("application/x-ndjson", "text/csv"):
        exported = await admin.api.get("/devices-export", headers={"Accept": accept})
        headers = {"Content-Type": accept}
        answer = checked(await admin.api.put(path, content=exported.content, headers=headers), 200)
        assert answer == {"count": 1, "unknown": 0}


async def test_a_list_comes_and_goes_as_csv(admin: Admin) -> None:
    path = f"/firmware/{(await admin.create_firmware())['id']}/devices"
    csv_type = {"Content-Type": "text/csv; charset=utf-8"}
    body = '\ufeffsite,identifier\r\nnorth,"a,1"\r\n"so ""uth""",设备\r\n'.encode()
    checked(await admin.api.put(path, content=body, headers=csv_type), 200)
    shown = await admin.api.get(path, headers={"Accept": "text/csv"})
    assert shown.headers["content-type"] == "text/csv; charset=utf-8"
    assert shown.content.decode() == 'identifier\r\n"a,1"\r\n设备\r\n'
    added = checked(await admin.api.post(path, content="identifier\nb\n", headers=csv_type), 200)
    assert added == {"count": 3, "unknown": 1}
    for broken, said in (
        (b"name\nc\n", "Line 1: The first line must name"),
        (b"identifier,identifier\nc,c\n", "Line 1: The first line must name"),
        (b"", "The CSV has no line"),
        (b"\n\n", "The CSV has no line"),
        ("\ufeff".encode(), "The CSV has no line"),
        (b"identifier\nc,d\n", "Line 2: The line has 2 values"),
        (b"identifier\n\xff\n", "Line 2: The line is not UTF-8"),
        (b"identifier\na//b\n", "Line 2: "),
        (b'identifier\n"a\nb\n"\n', "Line 2: A quoted value does not end"),
    ):
        refused = problem(await admin.api.put(path, content=broken, headers=csv_type), 422)
        assert refused["detail"].startswith(said)
    assert checked(await admin.api.post(path, content=b"identifier\n", headers=csv_type), 200)["count"] == 3


async def test_a_firmware_with_tags_can_be_given_a_list_too(admin: Admin) -> None:
    path = f"/firmware/{(await admin.create_firmware(tags=['beta']))['id']}"
    problem(await admin.api.get(f"{path}/devices"), 404)
    assert checked(await admin.api.post(f"{path}/devices", content='"a"', headers=NDJSON), 200)["count"] == 1
    document = checked(await admin.api.get(path), 200)
    assert (document["tags"], document["devices"]) == (["beta"], ["a"])


async def test_of_a_long_list_the_first_thousand_are_shown(admin: Admin) -> None:
    firmware = await admin.create_firmware(devices=["x"])

    async def lines() -> AsyncIterator[bytes]:
        for n in range(20_000):
            yield b'"d%05d"\n' % (19_999 - n)

    path = f"/firmware/{firmware['id']}"
    assert checked(await admin.api.put(f"{path}/devices", content=lines(), headers=NDJSON), 200)["count"] == 20_000
    shown = checked(await admin.api.get(path), 200)
    (listed,) = checked(await admin.api.get("/firmware"), 200)["items"]
    for document in (shown, listed, checked(await admin.api.patch(path, json={"name": "new"}), 200)):
        assert (document["devices_count"], document["devices_truncated"]) == (20_000, True)
        assert document["devices"] == [f"d{n:05d}" for n in range(19_000, 20_000)]
    assert len(await read_list(admin, firmware)) == 20_000


@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_a_list_that_is_shown_whole_is_not_called_truncated(admin: Admin, count: int) -> None:
    document = await admin.create_firmware(devices=[f"d{n}" for n in range(count)] or [""])
    assert (len(document["devices"]), document["devices_truncated"]) == (count, False)


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_a_stream_refuses_a_parameter_that_it_does_not_read(admin: Admin, method: str) -> None:
    firmware = await admin.create_firmware(devices=["a", "b"])
    content = None if method == "GET" else b'"c"'
    path = f"/firmware/{firmware['id']}/devices?limit=1"
    answer = await admin.api.request(method, path, content=content, headers=NDJSON)
    assert problem(answer, 422)["detail"] == "`limit`: there is no such parameter."
    assert await read_list(admin, firmware) == {"a", "b"}


async def test_an_upload_refuses_a_parameter_before_the_file_is_kept(admin: Admin) -> None:
    form = {"device_type": "DU", "version": "1.1"}
    answer = await admin.api.post("/firmware?version=1.2", data=form, files={"file": ("fw.bin", b"firmware")})
    assert problem(answer, 422)["errors"][0]["field"] == "version"
    assert admin.files() == set()


async def test_ten_thousand_devices_fit_into_an_upload(admin: Admin) -> None:
    parts = [("device_type", b"DU"), ("version", b"1.1"), *(("devices", b"d%d" % n) for n in range(10_000))]
    body, headers = multipart(parts, file_at=2)
    document = checked(await admin.api.post("/firmware", content=body, headers=headers), 201)
    assert document["devices_count"] == 10_000
    body, headers = multipart([*parts, ("devices", b"one more")], file_at=2)
    too_many = await admin.api.post("/firmware", content=body, headers=headers)
    assert problem(too_many, 422)["errors"][0]["field"] == "devices"


async def test_a_firmware_that_stopped_itself_says_why_until_it_is_enabled_again(admin: Admin) -> None:
    path = f"/firmware/{(await admin.create_firmware())['id']}"
    stop = FirmwareStop(reason="20 of 20 devices failed.", at_ms=1_000, failed=20, finished=20)
    await admin.context.stops.put_stop(path.rpartition("/")[2], stop)
    assert checked(await admin.api.get(path), 200)["stopped"] is None
    await admin.api.patch(path, json={"enabled": False})
    shown = checked(await admin.api.get(path), 200)["stopped"]
    assert shown == {"at": "1970-01-01T00:00:01.000Z", "reason": "20 of 20 devices failed."}
    await admin.api.patch(path, json={"enabled": True})
    assert checked(await admin.api.get(path), 200)["stopped"] is None
