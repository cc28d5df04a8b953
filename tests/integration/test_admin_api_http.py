"""What holds for every route: the token, problem JSON, bounded bodies, idempotency, health."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from admin_api.bodies import JSON_BODY_MAX_BYTES
from admin_api.documents.firmware import FirmwareFields
from ota_hook.errors import DependencyError
from tests.integration.admin_service import TOKEN, Admin, admin_role, checked, problem

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
    ],
)
async def test_without_the_token_nothing_is_told(admin: Admin, headers: dict[str, str]) -> None:
    for path in ("/api/v1", "/api/v1/", "/api/v1/device-types", "/api/v1/nothing-here", "/api/v1/openapi.json"):
        refused = await admin.open.get(path, headers=headers)
        problem(refused, 401)
        assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_the_word_bearer_is_read_in_any_case(admin: Admin) -> None:
    answer = await admin.open.get("/api/v1/rules", headers={"Authorization": f"bearer {TOKEN}"})
    assert answer.status_code == 200


async def test_two_authorizations_are_none(admin: Admin) -> None:
    twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
    problem(await admin.open.get("/api/v1/rules", headers=twice), 401)


async def exchange(admin: Admin, request: bytes) -> bytes:
    """Send these bytes on a connection of their own and read until the server ends it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(request)
    await writer.drain()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_an_upload_without_a_token_is_refused_before_its_body_comes(admin: Admin) -> None:
    answer = await exchange(
        admin,
        b"POST /api/v1/firmware HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 1000000\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()
    assert admin.files() == set()


async def test_a_body_that_is_not_read_ends_the_connection(admin: Admin) -> None:
    answer = await exchange(
        admin,
        b"POST /api/v1/device-types HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: 100000000\r\n\r\n" % TOKEN.encode(),
    )
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("path", "media_type"), [("devices-import", b"application/x-ndjson"), ("device-types", b"application/json")]
)
async def test_a_body_that_comes_in_drops_is_given_up(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, path: str, media_type: bytes
) -> None:
    monkeypatch.setattr("admin_api.bodies.STALL_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(
        b"POST /api/v1/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" % (path.encode(), TOKEN.encode(), media_type)
    )

    async def drip() -> None:
        while True:
            writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()
    writer.close()


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_a_compressed_body_is_refused(admin: Admin, encoding: str) -> None:
    for method, path, media_type in (
        ("POST", "/devices-import", "application/x-ndjson"),
        ("POST", "/device-types", "application/json"),
        ("POST", "/firmware", "multipart/form-data; boundary=b"),
    ):
        headers = {"Content-Type": media_type, "Content-Encoding": encoding}
        refused = await admin.api.request(method, path, content=gzip.compress(b"{}\n"), headers=headers)
        problem(refused, 415)
        assert refused.headers["accept-encoding"] == "identity"
    plain = {"Content-Type": "application/x-ndjson", "Content-Encoding": "identity"}
    checked(await admin.api.post("/devices-import", content=b"", headers=plain), 200)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/devices/a%FF"),
        ("GET", "/devices/%C3"),
        ("GET", "/check?device=a%FF"),
        ("GET", "/devices?tag=%ED%A0%80"),
        ("GET", "/devices?cursor=%ff"),
        ("DELETE", "/device-types/%80"),
    ],
)
async def test_an_address_that_is_not_utf8_is_refused(admin: Admin, method: str, path: str) -> None:
    body = {"type": "DU"} if method == "PUT" else None
    await admin.create_type()
    problem(await admin.api.request(method, httpx.URL(admin.url + "/api/v1" + path), json=body), 400)
    problem(await admin.open.request(method, httpx.URL(admin.url + "/api/v1" + path), json=body), 401)
    assert checked(await admin.api.get("/devices"), 200)["items"] == []


async def test_a_replacement_character_that_was_meant_is_one(admin: Admin) -> None:
    await admin.create_type()
    checked(await admin.api.put("/devices/a%EF%BF%BD", json={"type": "DU"}), 201)
    assert checked(await admin.api.get("/check?device=a%EF%BF%BD"), 200)["device"] == "a\ufffd"


async def test_a_chunked_body_is_bounded_too_and_the_client_hears_of_it(admin: Admin) -> None:
    async def four_mebibytes() -> Any:
        for _ in range(64):
            yield b" " * 65_536

    headers = {"Content-Type": "application/json"}
    answer = await admin.api.post("/device-types", content=four_mebibytes(), headers=headers)
    assert str(JSON_BODY_MAX_BYTES) in problem(answer, 413)["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/device-types/", 404),
        ("DELETE", "/device-types", 405),
        ("PUT", "/firmware/01ARZ3NDEKTSV4RRFFQ69G5FAV", 405),
        ("PATCH", "/devices-import", 405),
        ("GET", "/device-types/none", 404),
        ("GET", f"/rules/{ULID}", 404),
        ("GET", f"/firmware/{ULID}", 404),
        ("GET", f"/firmware/{ULID}/devices", 404),
        ("GET", "/devices/none", 404),
        ("GET", "/devices/GW/ADDR", 404),
        ("GET", "/offers?device=none", 404),
        ("GET", "/offers", 422),
        ("GET", "/check", 422),
        ("GET", "/check?device=none", 404),
        ("GET", "/check?device=a&module=%2F", 422),
        ("DELETE", "/device-types/none", 404),
        ("DELETE", f"/rules/{ULID}", 404),
        ("DELETE", f"/firmware/{ULID}", 404),
        ("DELETE", "/devices/none", 404),
    ],
)
async def test_every_error_is_a_problem(admin: Admin, method: str, path: str, status: int) -> None:
    problem(await admin.api.request(method, path), status)


async def test_a_405_says_which_methods_there_are(admin: Admin) -> None:
    assert (await admin.api.delete("/device-types")).headers["allow"] == "GET, POST"
    assert (await admin.api.post("/devices/GW/ADDR")).headers["allow"] == "GET, PUT, PATCH, DELETE"


LISTS = ("/device-types", "/rules", "/devices", "/firmware")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "unknown=1", "cursor=%21%21", "limit=-1"])
async def test_a_bad_query_of_a_list_is_refused(admin: Admin, query: str) -> None:
    for path in LISTS:
        problem(await admin.api.get(f"{path}?{query}"), 422)


async def test_an_empty_list_is_a_page(admin: Admin) -> None:
    for path in LISTS:
        assert checked(await admin.api.get(path), 200) == {"items": [], "next_cursor": None}
        assert (await admin.api.get(f"{path}?limit=1000")).status_code == 200


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"", {422}),
        (b"{", {422}),
        (b"[]", {422}),
        (b"null", {422}),
        (b'"x"', {422}),
        (b'{"key": NaN}', {422}),
        (b'{"key": "\xff"}', {400, 422}),
        (b'{"key": "\\ud800"}', {422}),
        (b'{"key": "DU", "name": "\\ud800"}', {422}),
        (b'{"key": ' + b"9" * 10_000 + b"}", {400, 422}),
        (b'{"key":' * 100_000, {400, 422}),
        (b"[" * 100_000, {400, 422}),
        (b'{"key": "DU", "x": ' + b"[" * 400 + b"]" * 400 + b"}", {400, 422}),
    ],
    ids=[
        "empty",
        "half",
        "list",
        "null",
        "text",
        "NaN",
        "bad utf-8",
        "surrogate key",
        "surrogate name",
        "huge number",
        "deep objects",
        "deep lists",
        "deep field",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/device-types"), ("PATCH", "/device-types/DU")])
async def test_a_bad_body_is_refused_and_changes_nothing(
    admin: Admin, method: str, path: str, body: bytes, statuses: set[int]
) -> None:
    before = await admin.create_type() if method == "PATCH" else None
    answer = await admin.api.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in statuses, answer.text
    problem(answer, answer.status_code)
    items = checked(await admin.api.get("/device-types"), 200)["items"]
    assert items == ([before] if before else [])


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/xml"])
async def test_a_body_that_is_not_json_is_refused(admin: Admin, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    problem(await admin.api.post("/device-types", content=b'{"key": "DU"}', headers=headers), 415)


async def test_json_is_read_whatever_parameters_its_type_has(admin: Admin) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    checked(await admin.api.post("/device-types", content=b'{"key": "DU"}', headers=headers), 201)


async def test_a_422_names_each_field(admin: Admin) -> None:
    body = {"key": "a/b", "name": "", "colour": 1, "auto_register": "yes", "version_attributes": []}
    document = problem(await admin.api.post("/device-types", json=body), 422)
    assert {error["field"] for error in document["errors"]} == set(body)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"name": "x"}, "`key` is missing."),
        ({"key": 5}, "`key` must be text."),
        ({"key": "DU", "colour": 1}, "`colour`: there is no such field."),
        ({"key": "DU", "auto_register": 1}, "`auto_register` must be true or false."),
        ({"key": "DU", "version_scheme": "x"}, "`version_scheme` must be 'auto', 'semver', 'pep440' or 'debian'."),
        ({"key": "DU", "version_attributes": "x"}, "`version_attributes` must be a list."),
        ({"key": "DU", "version_attributes": []}, "`version_attributes` must have 1 or more entries."),
        ({"key": "DU", "version_attributes": ["x"] * 17}, "`version_attributes` must have at most 16 entries."),
        ([], "The body must be an object."),
        ("{", "The body is not JSON."),
        ("", "The body is missing."),
    ],
    ids=str,
)
async def test_what_is_wrong_with_a_body_is_said_in_plain_words(admin: Admin, body: object, detail: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    document = problem(await admin.api.post("/device-types", content=content, headers=headers), 422)
    assert document["detail"] == document["errors"][0]["detail"] == detail


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("limit=x", "`limit` must be a whole number."),
        ("limit=0", "`limit` must be at least 1."),
        ("limit=1001", "`limit` must be at most 1000."),
        ("colour=1", "`colour`: there is no such parameter."),
        ("enabled=maybe", "`enabled` must be true or false."),
        ("cursor=" + "x" * 1025, "`cursor` must have at most 1024 characters."),
    ],
)
async def test_what_is_wrong_with_a_query_is_said_in_plain_words(admin: Admin, query: str, detail: str) -> None:
    assert problem(await admin.api.get(f"/rules?{query}"), 422)["detail"] == detail


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/devices?device_type=DU", "type"),
        ("/devices-export?device_type=DU", "type"),
        ("/rules?type=DU", "device_type"),
        ("/firmware?type=DU", "device_type"),
        ("/firmware?versions=1", "version"),
    ],
)
async def test_a_parameter_that_is_nearly_right_names_the_right_one(admin: Admin, path: str, near: str) -> None:
    assert problem(await admin.api.get(path), 422)["detail"].endswith(
        f"there is no such parameter. Did you mean `{near}`?"
    )


async def test_a_bad_cursor_is_told_alike_by_every_list(admin: Admin) -> None:
    for path in LISTS:
        document = problem(await admin.api.get(f"{path}?cursor=%21%21"), 422)
        assert (document["detail"], document["mend"]) == ("The cursor is not one of this list.", "Start without one.")


async def test_a_failure_of_redis_is_a_503_that_may_be_tried_again(admin_redis: str, tmp_path: Path) -> None:
    class Gone:
        async def load_stored(self, identifier: str) -> None:
            raise DependencyError("Redis does not answer.", mend="Try again.")

    async with admin_role(admin_redis, tmp_path, devices=Gone()) as admin:
        answer = await admin.api.get("/devices/DU_1")
        assert problem(answer, 503)["mend"] == "Try again."
        assert int(answer.headers["retry-after"]) > 0


async def test_a_bug_tells_nothing_of_the_inside(admin_redis: str, tmp_path: Path) -> None:
    class Broken:
        async def load_stored(self, identifier: str) -> None:
            raise ZeroDivisionError("secret")

    async with admin_role(admin_redis, tmp_path, devices=Broken()) as admin:
        answer = await admin.api.get("/devices/DU_1")
        problem(answer, 500)
        assert "secret" not in answer.text
        assert "Zero" not in answer.text


# ---- idempotency


async def test_a_repeated_post_is_answered_the_same_and_done_once(admin: Admin) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await admin.api.post("/device-types", json={"key": "DU"}, headers=headers)
    again = await admin.api.post("/device-types", json={"name": "DU", "key": "DU"} | {"name": None}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["etag"] == first.headers["etag"]


async def test_another_body_under_the_key_is_refused(admin: Admin) -> None:
    headers = {"Idempotency-Key": "k1"}
    checked(await admin.api.post("/device-types", json={"key": "A"}, headers=headers), 201)
    problem(await admin.api.post("/device-types", json={"key": "B"}, headers=headers), 422)


async def test_the_key_counts_per_route(admin: Admin) -> None:
    headers = {"Idempotency-Key": "k1"}
    checked(await admin.api.post("/device-types", json={"key": "DU"}, headers=headers), 201)
    checked(await admin.api.post("/devices", json={"identifier": "d", "type": "DU"}, headers=headers), 201)


async def test_a_refused_post_may_be_mended_and_sent_under_its_key(admin: Admin) -> None:
    headers = {"Idempotency-Key": "k1"}
    body = {"identifier": "d", "type": "DU"}
    problem(await admin.api.post("/devices", json=body, headers=headers), 422)
    await admin.create_type()
    checked(await admin.api.post("/devices", json=body, headers=headers), 201)


@pytest.mark.parametrize("key", ["", "k" * 256, "with space"])
async def test_a_bad_idempotency_key_is_refused(admin: Admin, key: str) -> None:
    problem(await admin.api.post("/device-types", json={"key": "DU"}, headers={"Idempotency-Key": key}), 422)


async def test_of_two_at_once_one_is_done(admin: Admin) -> None:
    headers = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(
        *(admin.api.post("/device-types", json={"key": "DU"}, headers=headers) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} <= {201, 409}
    fresh = [a for a in answers if a.status_code == 201 and "idempotency-replayed" not in a.headers]
    assert len(fresh) == 1


async def test_an_upload_is_the_same_if_its_fields_and_file_are(admin: Admin) -> None:
    await admin.create_type()
    headers = {"Idempotency-Key": "k1"}
    fields = {"device_type": "DU", "version": "1.1"}

    async def send(content: bytes, **more: str) -> Any:
        # Each has a boundary of its own, so that the bodies differ as bytes.
        return await admin.api.post(
            "/firmware", data={**more, **fields}, files={"file": ("fw.bin", content)}, headers=headers
        )

    first = await send(b"one")
    again = await send(b"one", module="main")
    assert checked(again, 201) == checked(first, 201)
    problem(await send(b"two"), 422)
    assert admin.files() == {first.json()["id"]}


async def test_an_upload_whose_answer_was_not_kept_is_not_done_twice(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.create_type()
    await admin.create_device("DU_1")
    store = admin.context.idempotency
    finish = store.finish

    async def fail_once(*_: object, **__: object) -> None:
        monkeypatch.setattr(store, "finish", finish)
        raise DependencyError("Redis does not answer.")

    monkeypatch.setattr(store, "finish", fail_once)

    async def send() -> httpx.Response:
        return await admin.api.post(
            "/firmware",
            data={"device_type": "DU", "version": "1.1", "devices": ["DU_1"]},
            files={"file": ("fw.bin", b"one")},
            headers={"Idempotency-Key": "k1"},
        )

    problem(await send(), 503)
    (created,) = checked(await admin.api.get("/firmware"), 200)["items"]
    for _ in range(2):
        again = await send()
        assert checked(again, 201) == created
        assert again.headers["idempotency-replayed"] == "true"
    assert checked(await admin.api.get("/firmware"), 200)["items"] == [created]
    assert admin.files() == {created["id"]}


# ---- health


async def test_health_needs_no_token(admin: Admin) -> None:
    assert (await admin.open.get("/livez")).status_code == 200
    assert (await admin.open.get("/readyz")).status_code == 200
    assert (await admin.open.get("/metrics")).status_code == 200


async def test_readiness_names_what_is_missing(admin: Admin) -> None:
    admin.not_ready.extend(["No hook process accepts calls.", "The catalogue is old."])
    answer = await admin.open.get("/readyz")
    document = problem(answer, 503)
    assert [error["detail"] for error in document["errors"]] == admin.not_ready
    assert (await admin.open.get("/livez")).status_code == 200
    admin.not_ready.clear()
    assert (await admin.open.get("/readyz")).status_code == 200


async def test_a_readiness_check_that_fails_or_hangs_is_not_ready(
    admin_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> list[str]:
        raise DependencyError("Redis does not answer.")

    async def hang() -> list[str]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr("admin_api.routes.health.CHECK_S", 0.05)
    async with admin_role(admin_redis, tmp_path, readiness_checks=(fail, hang)) as admin:
        details = [error["detail"] for error in problem(await admin.open.get("/readyz"), 503)["errors"]]
        assert details == ["Redis does not answer.", "A readiness check took longer than 0.05 s."]


async def test_metrics_are_those_of_the_registry(admin_redis: str, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    Counter("checks", "Checks.", registry=registry).inc(3)
    async with admin_role(admin_redis, tmp_path, metrics=registry) as admin:
        answer = await admin.open.get("/metrics")
        assert "checks_total 3.0" in answer.text
        assert answer.headers["content-type"].startswith("text/plain")


async def test_the_schema_describes_every_route(admin: Admin) -> None:
    schema = checked(await admin.api.get("/openapi.json"), 200)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["tags"], (method, path)
            if path.startswith("/api/"):
                assert "401" in operation["responses"], (method, path)
            if method in {"put", "patch", "post"} and not path.endswith(("/pause", "/resume", "/cancel")):
                assert operation["requestBody"]["content"], (method, path)
    upload = schema["paths"]["/api/v1/firmware"]["post"]["requestBody"]["content"]
    fields = upload["multipart/form-data"]["schema"]["properties"]
    assert fields.keys() == {"file", *FirmwareFields.model_fields}
