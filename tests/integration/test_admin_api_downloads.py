"""`GET|HEAD /firmware/{id}/{filename}`: what devices download."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator
from email.message import Message
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.admin_service import Admin, admin_role, problem
from tests.integration.waiting import eventually

CONTENT = bytes(range(256)) * 4


@pytest.fixture
async def firmware(admin: Admin) -> dict[str, Any]:
    await admin.create_type()
    return await admin.create_firmware("1.1", CONTENT, filename="fw v1.bin")


async def test_a_whole_package_comes_with_its_digests(admin: Admin, firmware: dict[str, Any]) -> None:
    answer = await admin.open.get(firmware["url"])
    assert (answer.status_code, answer.content) == (200, CONTENT)
    sha256 = hashlib.sha256(CONTENT)
    headers = answer.headers
    assert headers["etag"] == f'"{sha256.hexdigest()}"'
    assert headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
    assert headers["content-length"] == "1024"
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''fw%20v1.bin"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "public, max-age=300"  # caches give up what is deleted
    assert headers["last-modified"].endswith(" GMT")


async def test_head_tells_the_same_without_the_bytes(admin: Admin, firmware: dict[str, Any]) -> None:
    whole, head = await admin.open.get(firmware["url"]), await admin.open.head(firmware["url"])
    assert (head.status_code, head.content) == (200, b"")
    assert {k: v for k, v in head.headers.items() if k != "date"} == {
        k: v for k, v in whole.headers.items() if k != "date"
    }
    ranged = await admin.open.head(firmware["url"], headers={"Range": "bytes=0-9"})
    assert (ranged.status_code, ranged.headers["content-length"]) == (200, "1024")


async def test_a_method_that_downloads_do_not_take_names_those_they_do(admin: Admin, firmware: dict[str, Any]) -> None:
    refused = await admin.open.post(firmware["url"])
    problem(refused, 405)
    assert refused.headers["allow"] == "GET, HEAD"
    schema = (await admin.api.get("/openapi.json")).json()
    assert set(schema["paths"]["/firmware/{firmware_id}/{filename}"]) == {"get", "head"}


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=1000-", 1000, 1024),
        ("bytes=1000-9999", 1000, 1024),
        ("bytes=-24", 1000, 1024),
        ("bytes=-9999", 0, 1024),
        ("bytes=0-9,5-20", 0, 21),
    ],
)
async def test_a_range_resumes_a_download(
    admin: Admin, firmware: dict[str, Any], asked: str, start: int, end: int
) -> None:
    answer = await admin.open.get(firmware["url"], headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1024"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["etag"]


async def test_several_ranges_come_as_parts(admin: Admin, firmware: dict[str, Any]) -> None:
    answer = await admin.open.get(firmware["url"], headers={"Range": "bytes=0-9, 500-509 ,-10"})
    assert answer.status_code == 206
    assert int(answer.headers["content-length"]) == len(answer.content)
    content_type = Message()
    content_type["content-type"] = answer.headers["content-type"]
    assert content_type.get_content_type() == "multipart/byteranges"
    boundary = f"\r\n--{content_type.get_param('boundary')}".encode()
    lead, *parts, end = answer.content.split(boundary)
    assert (lead, end) == (b"", b"--\r\n")
    for part, (start, stop) in zip(parts, [(0, 10), (500, 510), (1014, 1024)], strict=True):
        head, _, body = part.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {start}-{stop - 1}/1024".encode() in head
        assert body == CONTENT[start:stop]


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=2000-3000", "bytes=-0"])
async def test_a_range_outside_the_file_is_416(admin: Admin, firmware: dict[str, Any], asked: str) -> None:
    answer = await admin.open.get(firmware["url"], headers={"Range": asked})
    problem(answer, 416)
    assert answer.headers["content-range"] == "bytes */1024"


@pytest.mark.parametrize("asked", ["bytes=5-2", "lines=0-1", "bytes=x-", "bytes", "bytes=" + "0-0," * 17 + "1-1"])
async def test_a_range_that_is_none_is_ignored(admin: Admin, firmware: dict[str, Any], asked: str) -> None:
    answer = await admin.open.get(firmware["url"], headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)


async def test_if_range_resumes_the_same_bytes_alone(admin: Admin, firmware: dict[str, Any]) -> None:
    headers = (await admin.open.head(firmware["url"])).headers
    expected = {
        headers["etag"]: 206,
        headers["last-modified"]: 206,
        '"other"': 200,
        f"W/{headers['etag']}": 200,
        "Mon, 01 Jan 2001 00:00:00 GMT": 200,
        "x": 200,
    }
    for value, status in expected.items():
        answer = await admin.open.get(firmware["url"], headers={"Range": "bytes=0-9", "If-Range": value})
        assert answer.status_code == status, value
        assert answer.content == (CONTENT[:10] if status == 206 else CONTENT)


async def test_conditions_are_answered_in_order(admin: Admin, firmware: dict[str, Any]) -> None:
    known = (await admin.open.head(firmware["url"])).headers
    etag, modified = known["etag"], known["last-modified"]
    past, future = "Mon, 01 Jan 2001 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    table: list[tuple[dict[str, str], int]] = [
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'"x", W/{etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-None-Match": '"x"', "If-Modified-Since": future}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": past}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Match": etag}, 200),
        ({"If-Match": f"W/{etag}"}, 412),
        ({"If-Match": '"x"'}, 412),
        ({"If-Unmodified-Since": past}, 412),
        ({"If-Unmodified-Since": future}, 200),
        ({"If-None-Match": etag, "Range": "bytes=0-9"}, 304),
    ]
    for headers, status in table:
        answer = await admin.open.get(firmware["url"], headers=headers)
        assert answer.status_code == status, headers
        if status == 304:
            assert answer.content == b""
            assert answer.headers["etag"] == etag


@pytest.mark.parametrize(
    "filename", ["固件 (1).bin", "a?b#c%2Fd&e=f+g.bin", "..bin.bin", "'quoted\\\".tar.gz", "%.zip"]
)
async def test_any_name_is_reached_by_the_address_that_devices_get(admin: Admin, filename: str) -> None:
    await admin.create_type()
    boundary = "b"
    escaped = filename.replace("\\", "\\\\").replace('"', '\\"')
    body = (
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="{escaped}"\r\n\r\nX\r\n'
        f'--b\r\nContent-Disposition: form-data; name="device_type"\r\n\r\nDU\r\n'
        f'--b\r\nContent-Disposition: form-data; name="version"\r\n\r\n1.1\r\n--b--\r\n'
    ).encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    created = (await admin.api.post("/firmware", content=body, headers=headers)).json()
    expected = filename.replace("\\", "/").rpartition("/")[2]
    assert created["filename"] == expected
    answer = await admin.open.get(created["url"])
    assert (answer.status_code, answer.content) == (200, b"X")


async def test_only_the_very_address_is_answered(admin: Admin, firmware: dict[str, Any]) -> None:
    for path in (
        f"/firmware/{firmware['id']}/other.bin",
        f"/firmware/{firmware['id']}/",
        f"/firmware/{firmware['id']}",
        f"/firmware/{firmware['id']}/..%2F..%2Fetc%2Fpasswd",
        f"/firmware/{firmware['id']}/fw%20v1.bin/x",
        "/firmware/01ARZ3NDEKTSV4RRFFQ69G5FAV/fw%20v1.bin",
        "/firmware/..%2Fadmin-token/fw%20v1.bin",
    ):
        problem(await admin.open.get(path), 404)
    problem(await admin.open.post(firmware["url"]), 405)
    with_query = await admin.open.get(firmware["url"] + "?token=1")
    assert with_query.status_code == 200


async def test_a_disabled_firmware_is_still_served_to_who_is_half_way(admin: Admin, firmware: dict[str, Any]) -> None:
    await admin.api.patch(f"/firmware/{firmware['id']}", json={"enabled": False})
    assert (await admin.open.get(firmware["url"])).status_code == 200


async def test_a_package_whose_bytes_are_lost_is_a_503(admin: Admin, firmware: dict[str, Any]) -> None:
    (admin.packages / firmware["id"]).unlink()
    problem(await admin.open.get(firmware["url"]), 503)


def open_packages(folder: Path) -> list[str]:
    """The packages that this process holds open."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    names = []
    for link in links:
        try:
            target = os.readlink(link)  # noqa: PTH115
        except FileNotFoundError:
            continue
        if target.startswith(str(folder)):
            names.append(target)
    return names


async def test_who_goes_away_half_way_leaves_no_open_file(admin_redis: str, tmp_path: Path) -> None:
    async with admin_role(admin_redis, tmp_path, max_upload_bytes=2**30) as admin:
        await admin.create_type()
        firmware = await admin.create_firmware("1.1", b"x" * (16 * 1024 * 1024))
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
        path = httpx.URL(firmware["url"]).raw_path
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await eventually(lambda: bool(open_packages(admin.packages)))
        writer.transport.abort()
        await eventually(lambda: not open_packages(admin.packages))


async def test_a_download_that_nobody_reads_is_given_up(
    admin_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admin_api.downloads.STALL_S", 0.2)
    async with admin_role(admin_redis, tmp_path, max_upload_bytes=2**30) as admin:
        await admin.create_type()
        firmware = await admin.create_firmware("1.1", b"x" * (16 * 1024 * 1024))
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.port, limit=4096)
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % httpx.URL(firmware["url"]).raw_path)
        await eventually(lambda: bool(open_packages(admin.packages)))
        await eventually(lambda: not open_packages(admin.packages))
        async with asyncio.timeout(10):
            assert len(await reader.read(-1)) < 16 * 1024 * 1024
        writer.close()


async def test_a_broken_off_download_resumes_where_it_was(admin_redis: str, tmp_path: Path) -> None:
    content = os.urandom(3 * 1024 * 1024 + 5)
    async with admin_role(admin_redis, tmp_path, max_upload_bytes=2**30) as admin:
        await admin.create_type()
        firmware = await admin.create_firmware("1.1", content)
        have = b""
        etag = ""
        while len(have) < len(content):
            headers = {"Range": f"bytes={len(have)}-", "If-Range": etag} if have else {}
            async with admin.open.stream("GET", firmware["url"], headers=headers) as answer:
                assert answer.status_code == (206 if have else 200)
                etag = answer.headers["etag"]
                have += await first_bytes(answer.aiter_bytes(), 1_000_000)
        assert have == content


async def first_bytes(chunks: AsyncIterator[bytes], most: int) -> bytes:
    taken = b""
    async for chunk in chunks:
        taken += chunk
        if len(taken) >= most:
            break
    return taken
