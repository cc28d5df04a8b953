"""`/devices`, bulk import and export, `/offers`, `/check`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from admin_api.bodies import LINE_MAX_BYTES
from ota_hook.model import OpenOffer, Outcome
from ota_hook.ports.device_messages import Report
from ota_hook.progress import Said
from ota_hook.state.hot import HotPresence
from ota_hook.state.presence import RedisConnections
from tests.integration.admin_service import Admin, admin_role, checked, problem

NDJSON = {"Content-Type": "application/x-ndjson"}


def offer_of(firmware_id: str) -> OpenOffer:
    return OpenOffer(
        module="main",
        firmware_id=firmware_id,
        version_attribute="version",
        version="2.0",
        from_version="1.0",
        command_ids=(98_310,),
        offered_at_ms=1_700_000_000_000,
    )


async def report(admin: Admin, identifier: str, version: str, at_ms: int) -> None:
    said = Report(device=identifier, versions={"version": version}, reported_at_ms=at_ms)
    assert await admin.hook.stored(said, admin.context.catalogue.current.kept_by_type) is not None


async def test_a_device_reads_as_it_was_created(admin: Admin) -> None:
    await admin.create_type()
    created = await admin.api.post("/devices", json={"identifier": "DU_1", "type": "DU", "tags": []})
    assert checked(created, 201) == {
        "identifier": "DU_1",
        "type": "DU",
        "gateway": None,
        "versions": {},
        "versions_reported_at": {},
        "tags": [],
        "online": None,
        "exhausted_firmware": [],
    }
    assert created.headers["location"] == "/api/v1/devices/DU_1"
    read = await admin.api.get("/devices/DU_1")
    assert read.json() == created.json()
    assert read.headers["etag"] == created.headers["etag"]


@asynccontextmanager
async def told_admin(redis_url: str, folder: Path) -> AsyncIterator[tuple[Admin, HotPresence]]:
    """An admin role beside a hook that the broker tells who is connected."""
    async with admin_role(redis_url, folder) as role:
        connections = RedisConnections(role.redis, role.keys)
        prefix = role.keys.prefix
        async with admin_role(redis_url, folder, prefix=prefix, connections=connections) as told:
            yield told, HotPresence(told.hook.pipes, told.keys)


async def online_of(admin: Admin, identifier: str) -> object:
    await admin.hook.noted()
    return checked(await admin.api.get(f"/devices/{identifier}"), 200)["online"]


async def test_a_device_is_online_while_the_broker_says_so(admin_redis: str, tmp_path: Path) -> None:
    async with told_admin(admin_redis, tmp_path) as (admin, presence):
        await admin.create_type()
        assert (await admin.create_device("DU_1"))["online"] is False
        presence.come("DU_1", "c\0n1\x007", at_ms=admin.context.now_ms())
        assert await online_of(admin, "DU_1") is True
        put = await admin.api.put("/devices/DU_1", json={"type": "DU"})
        patched = await admin.api.patch("/devices/DU_1", json={"tags": ["trial"]})
        assert [checked(answer, 200)["online"] for answer in (put, patched)] == [True, True]
        etag = patched.headers["etag"]
        presence.go("DU_1", "c\0n1\x007")
        assert await online_of(admin, "DU_1") is False
        # The tag is that of what is stored: nobody is told that nothing changed.
        assert (await admin.api.get("/devices/DU_1", headers={"If-None-Match": etag})).status_code == 200
        checked(await admin.api.patch("/devices/DU_1", json={"tags": []}, headers={"If-Match": etag}), 200)


async def test_what_a_node_said_before_it_was_restarted_counts_only_for_who_reported_since(
    admin_redis: str, tmp_path: Path
) -> None:
    async with told_admin(admin_redis, tmp_path) as (admin, presence):
        await admin.create_type()
        now_ms = admin.context.now_ms()
        for name, node in (("gone", "n1"), ("there", "n1"), ("elsewhere", "n2")):
            await admin.create_device(name)
            presence.come(name, f"{name}\0{node}\x007", at_ms=now_ms - 60_000)
        assert [await online_of(admin, name) for name in ("gone", "there", "elsewhere")] == [True, True, True]
        presence.attach("n1", at_ms=now_ms)
        assert [await online_of(admin, name) for name in ("gone", "there", "elsewhere")] == [False, False, True]
        await report(admin, "there", "1.0", now_ms + 1)
        assert [await online_of(admin, name) for name in ("gone", "there", "elsewhere")] == [False, True, True]


async def test_devices_are_listed_by_whether_they_are_online(admin_redis: str, tmp_path: Path) -> None:
    async with told_admin(admin_redis, tmp_path) as (admin, presence):
        await admin.create_type()
        names = [f"DU_{number:02}" for number in range(12)]
        for name in names:
            await admin.create_device(name)
        for name in names[::3]:
            presence.come(name, "c\0n1\x007", at_ms=admin.context.now_ms())
        await admin.hook.noted()

        async def listed(query: str) -> dict[str, bool]:
            found: dict[str, bool] = {}
            cursor = ""
            while True:
                page = checked(await admin.api.get(f"/devices?{query}{cursor}"), 200)
                assert len(page["items"]) <= 2
                found |= {device["identifier"]: device["online"] for device in page["items"]}
                if page["next_cursor"] is None:
                    return found
                cursor = f"&cursor={page['next_cursor']}"

        assert await listed("limit=2") == {name: name in names[::3] for name in names}
        assert await listed("limit=2&online=true") == dict.fromkeys(names[::3], True)
        assert await listed("limit=2&online=false&type=DU") == dict.fromkeys(set(names) - set(names[::3]), False)


async def test_a_list_by_who_is_online_looks_through_a_bounded_number_of_others(
    admin_redis: str, tmp_path: Path
) -> None:
    async with told_admin(admin_redis, tmp_path) as (admin, _):
        await admin.create_type()
        for number in range(12):
            await admin.create_device(f"DU_{number}")
        page = checked(await admin.api.get("/devices?limit=1&online=true"), 200)
        assert page["items"] == []
        rest = checked(await admin.api.get(f"/devices?limit=1&online=true&cursor={page['next_cursor']}"), 200)
        assert rest == {"items": [], "next_cursor": None}


async def test_who_is_online_can_not_be_asked_for_where_the_broker_is_not(admin: Admin) -> None:
    refused = problem(await admin.api.get("/devices?online=true"), 422)
    assert "OTA_HOOK_PRESENCE" in str(refused)


@pytest.mark.parametrize("identifier", ["采集器 1", "a b&c=d?e", "x" * 128, "a:b@c", "..", "."])
async def test_any_identifier_is_reached_by_its_encoded_address(admin: Admin, identifier: str) -> None:
    await admin.create_type()
    created = await admin.api.post("/devices", json={"identifier": identifier, "type": "DU"})
    checked(created, 201)
    if set(identifier) != {"."}:  # clients resolve dot segments away before they ask
        assert (
            checked(await admin.open.get(created.headers["location"], headers=admin.api.headers), 200) == created.json()
        )
    (listed,) = checked(await admin.api.get("/devices"), 200)["items"]
    assert listed["identifier"] == identifier


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"identifier": "a//b"}, "identifier"),
        ({"identifier": "a+b"}, "identifier"),
        ({"identifier": ""}, "identifier"),
        ({"identifier": "x" * 129}, "identifier"),
        ({"identifier": None}, "identifier"),
        ({"type": "none"}, "type"),
        ({"type": None}, "type"),
        ({"tags": ["a b"]}, "tags.0"),
        ({"tags": ["a", "a"]}, "tags"),
        ({"tags": [""]}, "tags.0"),
        ({"tags": ["é" * 33]}, "tags.0"),
        ({"tags": [f"t{n}" for n in range(33)]}, "tags"),
        ({"tags": "a"}, "tags"),
        ({"online": True}, "online"),
        ({"versions": {"version": "x"}}, "versions.version"),
        ({"versions": {"version": 7}}, "versions.version"),
        ({"versions": {"version": "1" * 129}}, "versions.version"),
        ({"versions": {"other": "1.0"}}, "versions.other"),
        ({"versions": []}, "versions"),
        ({"versions_reported_at": {}}, "versions_reported_at"),
    ],
)
async def test_a_bad_field_of_a_device_is_refused_by_name(admin: Admin, fields: dict[str, Any], field: str) -> None:
    await admin.create_type()
    body = {"identifier": "DU_1", "type": "DU"} | fields
    document = problem(await admin.api.post("/devices", json=body), 422)
    assert [error["field"] for error in document["errors"]] == [field]
    assert checked(await admin.api.get("/devices"), 200)["items"] == []


async def test_a_device_is_created_once(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"})
    problem(await admin.api.post("/devices", json={"identifier": "DU_1", "type": "DU"}), 409)
    assert checked(await admin.api.get("/devices/DU_1"), 200)["versions"] == {"version": "1.0"}


async def test_put_creates_then_replaces_and_keeps_what_was_reported_unless_told(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("B")
    created = await admin.api.put("/devices/DU_1", json={"type": "DU", "versions": {"version": "1.0"}})
    checked(created, 201)
    assert created.headers["location"] == "/api/v1/devices/DU_1"
    moved = checked(await admin.api.put("/devices/DU_1", json={"identifier": "DU_1", "type": "B"}), 200)
    assert (moved["type"], moved["versions"]) == ("B", {"version": "1.0"})
    emptied = checked(await admin.api.put("/devices/DU_1", json={"type": "B", "versions": {}}), 200)
    assert emptied["versions"] == {}
    problem(await admin.api.put("/devices/DU_1", json={"identifier": "DU_2", "type": "B"}), 422)


async def test_patch_merges_versions(admin: Admin) -> None:
    await admin.create_type(version_attributes=["version", "mcu", "gps"])
    await admin.create_device("DU_1", versions={"version": "1.0", "mcu": "2.0"})
    await report(admin, "DU_1", "1.1", at_ms=1_700_000_000_123)
    patched = checked(await admin.api.patch("/devices/DU_1", json={"versions": {"mcu": None, "gps": "3.0"}}), 200)
    assert patched["versions"] == {"version": "1.1", "gps": "3.0"}
    assert patched["versions_reported_at"] == {"version": "2023-11-14T22:13:20.123Z", "gps": None}
    cleared = checked(await admin.api.patch("/devices/DU_1", json={"versions": None}), 200)
    assert (cleared["type"], cleared["versions"]) == ("DU", {})


@pytest.mark.parametrize(
    "patch",
    [
        {"type": None},
        {"identifier": None},
        {"tags": "x"},
        {"online": None},
        {"type": "none"},
        {"identifier": "DU_2"},
        {"tags": ["x", "x"]},
        {"versions": {"x": "1"}},
        {"colour": 1},
    ],
)
async def test_a_bad_patch_of_a_device_changes_nothing(admin: Admin, patch: dict[str, Any]) -> None:
    await admin.create_type()
    before = await admin.create_device("DU_1", versions={"version": "1.0"})
    problem(await admin.api.patch("/devices/DU_1", json=patch), 422)
    assert checked(await admin.api.get("/devices/DU_1"), 200) == before


async def test_of_many_changes_under_one_etag_one_is_made(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"})
    etag = (await admin.api.get("/devices/DU_1")).headers["etag"]
    answers = await asyncio.gather(
        *(
            admin.api.patch("/devices/DU_1", json={"versions": {"version": f"2.{n}"}}, headers={"If-Match": etag})
            for n in range(16)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 15
    (changed,) = (answer for answer in answers if answer.status_code == 200)
    read = await admin.api.get("/devices/DU_1")
    assert (read.json(), read.headers["etag"]) == (changed.json(), changed.headers["etag"])


async def test_of_many_registrations_of_a_device_that_must_be_new_one_is_made(admin: Admin) -> None:
    await admin.create_type()
    answers = await asyncio.gather(
        *(
            admin.api.put(
                "/devices/DU_1", json={"type": "DU", "versions": {"version": f"1.{n}"}}, headers={"If-None-Match": "*"}
            )
            for n in range(20)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [412] * 19
    (created,) = (answer for answer in answers if answer.status_code == 201)
    assert (await admin.api.get("/devices/DU_1")).json() == created.json()


async def test_one_of_several_etags_is_enough_and_a_weak_one_is_none(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1")
    etag = (await admin.api.get("/devices/DU_1")).headers["etag"]
    body = {"type": "DU", "versions": {"version": "1.0"}}
    problem(await admin.api.put("/devices/DU_1", json=body, headers={"If-Match": f"W/{etag}"}), 412)
    problem(await admin.api.put("/devices/DU_1", json=body, headers={"If-Match": ""}), 412)
    problem(await admin.api.put("/devices/DU_1", json=body, headers={"If-Match": '"*"'}), 412)
    problem(await admin.api.put("/devices/DU_1", json=body, headers={"If-None-Match": f"W/{etag}"}), 412)
    problem(await admin.api.put("/devices/nobody", json=body, headers={"If-Match": "*"}), 412)
    checked(await admin.api.put("/devices/DU_1", json=body, headers={"If-Match": f'"other", {etag}'}), 200)
    problem(await admin.api.delete("/devices/DU_1", headers={"If-Match": etag}), 412)
    assert (await admin.api.delete("/devices/DU_1", headers={"If-Match": "*"})).status_code == 204


async def test_a_devices_etag_follows_what_it_reports(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"})
    etag = (await admin.api.get("/devices/DU_1")).headers["etag"]
    assert (await admin.api.get("/devices/DU_1", headers={"If-None-Match": etag})).status_code == 304
    await report(admin, "DU_1", "1.1", at_ms=1_700_000_000_000)
    for method, body in (("PUT", {"type": "DU"}), ("PATCH", {"type": "DU"}), ("DELETE", None)):
        problem(await admin.api.request(method, "/devices/DU_1", json=body, headers={"If-Match": etag}), 412)
    etag = (await admin.api.get("/devices/DU_1")).headers["etag"]
    assert (await admin.api.delete("/devices/DU_1", headers={"If-Match": etag})).status_code == 204
    problem(await admin.api.get("/devices/DU_1"), 404)


async def test_devices_are_listed_in_pages_and_by_type(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("B")
    lines = [{"identifier": f"d{n}", "type": "DU" if n % 3 else "B"} for n in range(30)]
    body = "\n".join(json.dumps(line) for line in lines)
    checked(await admin.api.post("/devices-import", content=body, headers=NDJSON), 200)
    for query, expected in (("", {f"d{n}" for n in range(30)}), ("type=B&", {f"d{n}" for n in range(0, 30, 3)})):
        seen: list[str] = []
        cursor = ""
        while True:
            page = checked(await admin.api.get(f"/devices?{query}limit=7{cursor}"), 200)
            seen += [item["identifier"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert len(seen) == len(set(seen))
        assert set(seen) == expected


# ---- tags


async def test_tags_are_kept_sorted_and_stay_until_they_are_set_anew(admin: Admin) -> None:
    await admin.create_type()
    created = await admin.create_device("DU_1", versions={"version": "1.0"}, tags=["trial", "上海", "*"])
    assert created["tags"] == ["*", "trial", "上海"]
    await report(admin, "DU_1", "1.1", at_ms=1_700_000_000_123)
    kept = checked(await admin.api.put("/devices/DU_1", json={"type": "DU", "versions": {}}), 200)
    assert (kept["versions"], kept["tags"]) == ({}, created["tags"])
    kept = checked(await admin.api.patch("/devices/DU_1", json={"versions": {"version": "2.0"}}), 200)
    assert (kept["versions"], kept["tags"]) == ({"version": "2.0"}, created["tags"])
    replaced = checked(await admin.api.patch("/devices/DU_1", json={"tags": ["b", "a"]}), 200)
    assert (replaced["versions"], replaced["tags"]) == ({"version": "2.0"}, ["a", "b"])
    put = checked(await admin.api.put("/devices/DU_1", json={"type": "DU", "tags": ["c"]}), 200)
    assert (put["versions"], put["tags"]) == ({"version": "2.0"}, ["c"])
    assert checked(await admin.api.get("/devices/DU_1"), 200) == put


@pytest.mark.parametrize(
    ("method", "body"), [("PATCH", {"tags": None}), ("PATCH", {"tags": []}), ("PUT", {"tags": []})]
)
async def test_tags_are_cleared_where_that_is_said(admin: Admin, method: str, body: dict[str, Any]) -> None:
    await admin.create_type()
    before = await admin.create_device("DU_1", versions={"version": "1.0"}, tags=["a", "b"])
    cleared = checked(await admin.api.request(method, "/devices/DU_1", json={"type": "DU"} | body), 200)
    assert cleared == before | {"tags": []}
    untagged = (await admin.api.get("/devices/DU_1")).headers["etag"]
    again = await admin.api.put("/devices/DU_1", json={"type": "DU", "tags": ["a"]})
    assert again.headers["etag"] != untagged
    problem(await admin.api.patch("/devices/DU_1", json={"tags": []}, headers={"If-Match": untagged}), 412)


async def test_devices_are_found_by_tag_in_lists_and_exports(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("B")
    lines = [
        {"identifier": f"d{n}", "type": "B" if n % 2 else "DU", "tags": ["third"] if n % 3 == 0 else ["thirds", "x"]}
        for n in range(30)
    ]
    body = "\n".join(map(json.dumps, lines))
    checked(await admin.api.post("/devices-import", content=body, headers=NDJSON), 200)
    for query, expected in (("tag=third", range(0, 30, 3)), ("tag=third&type=B", range(3, 30, 6)), ("tag=thir", ())):
        names = {f"d{n}" for n in expected}
        listed = checked(await admin.api.get(f"/devices?{query}&limit=1000"), 200)["items"]
        exported = (await admin.api.get(f"/devices-export?{query}")).content.splitlines()
        assert {entry["identifier"] for entry in listed} == names
        assert {json.loads(line)["identifier"] for line in exported} == names


# ---- counts of versions


async def test_versions_are_counted_per_type_and_attribute(admin: Admin) -> None:
    await admin.create_type(version_attributes=["version", "mcu"])
    await admin.create_type("B")
    lines = [
        {
            "identifier": f"d{n}" if n % 7 else f"{n:0>70}",
            "type": "B" if n % 10 == 0 else "DU",
            "versions": {} if n % 9 == 0 else {"version": f"1.{n % 3}" if n % 11 else "1.0-" + "x" * 100},
            "tags": ["a"] if n % 2 else [],
        }
        for n in range(200)
    ]
    body = "\n".join(map(json.dumps, lines))
    checked(await admin.api.post("/devices-import", content=body, headers=NDJSON), 200)
    ours = [line for line in lines if line["type"] == "DU"]
    counted = Counter(line["versions"].get("version") for line in ours if isinstance(line["versions"], dict))
    without = counted.pop(None)
    answer = checked(await admin.api.get("/device-types/DU/versions"), 200)
    assert {entry["version"]: entry["devices"] for entry in answer["versions"]} == counted
    counts = [entry["devices"] for entry in answer["versions"]]
    assert counts == sorted(counts, reverse=True)
    assert (answer["device_type"], answer["attribute"]) == ("DU", "version")
    assert (answer["devices"], answer["without"], answer["other"], answer["unreadable"]) == (len(ours), without, 0, 0)
    first = checked(await admin.api.get("/device-types/DU/versions?limit=1"), 200)
    assert first["versions"] == answer["versions"][:1]
    assert first["other"] == len(ours) - without - counts[0]
    none = checked(await admin.api.get("/device-types/DU/versions?attribute=mcu"), 200)
    assert (none["devices"], none["without"], none["versions"]) == (len(ours), len(ours), [])


async def test_a_module_stands_for_the_attribute_of_its_rule(admin: Admin) -> None:
    await admin.create_type(version_attributes=["version", "gps_version"])
    rule = {"device_type": "DU", "event": "gpsCheck", "version_attribute": "gps_version", "module": "gps"}
    checked(await admin.api.post("/rules", json=rule), 201)
    answer = checked(await admin.api.get("/device-types/DU/versions?module=gps"), 200)
    assert answer["attribute"] == "gps_version"
    assert answer["versions"] == []
    for query in ("module=radio", "attribute=none", "limit=0", "limit=1001", "colour=1"):
        problem(await admin.api.get(f"/device-types/DU/versions?{query}"), 422)
    problem(await admin.api.get("/device-types/none/versions"), 404)


# ---- import and export

CSV = {"Content-Type": "text/csv; charset=utf-8"}


async def test_csv_says_the_same_as_lines_of_json(admin: Admin) -> None:
    await admin.create_type(version_attributes=["version", "mcu"])
    await admin.create_device("old", versions={"mcu": "9"}, tags=["kept"])
    lines = [
        "\ufeffversions.version,identifier,type,versions.mcu",
        '1.0,"a ""quoted"", one",DU,',
        "1.10,上海,DU,2",
        "",
        "1.0,short,DU",
        "1.0,long,DU,,",
        "no version,bad,DU,",
        '1.0,"a"b,DU,',
        "1.0,a//b,DU,",
        "1.0,x,none,",
        ",old,DU,",
    ]
    body = "\r\n".join(lines)
    answer = checked(await admin.api.post("/devices-import", content=body, headers=CSV), 200)
    assert (answer["created"], answer["replaced"], answer["failed"]) == (2, 1, 6)
    assert [error["line"] for error in answer["errors"]] == [5, 6, 7, 8, 9, 10]
    details = {error["line"]: error["detail"] for error in answer["errors"]}
    assert details[5] == "The line has 3 values, and the header names 4."
    assert details[8].startswith("The line is not CSV")
    versions = {
        item["identifier"]: (item["versions"], item["tags"])
        for item in checked(await admin.api.get("/devices"), 200)["items"]
    }
    assert versions == {
        'a "quoted", one': ({"version": "1.0"}, []),
        "上海": ({"version": "1.10", "mcu": "2"}, []),
        "old": ({}, ["kept"]),
    }


async def test_csv_without_a_column_keeps_what_it_is_about(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("d", versions={"version": "1.0"}, tags=["a"])
    for body, versions, tags in (
        ("identifier,type\nd,DU\n", {"version": "1.0"}, ["a"]),
        ("identifier,type,tags\nd,DU,c b\n", {"version": "1.0"}, ["b", "c"]),
        ("identifier,type,versions.version\nd,DU,\n", {}, ["b", "c"]),
        ("identifier,type,tags\nd,DU,\n", {}, []),
    ):
        checked(await admin.api.post("/devices-import", content=body, headers=CSV), 200)
        read = checked(await admin.api.get("/devices/d"), 200)
        assert (read["versions"], read["tags"]) == (versions, tags)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "\n\n",
        "identifier\n",
        "identifier;type\n",
        "identifier,type,colour\n",
        "identifier,type,versions.\n",
        "identifier,type,type\n",
        '"identifier,type\n',
        b"identifier,type,\xff\n",
        '{"identifier": "d", "type": "DU"}\n',
    ],
)
async def test_csv_whose_first_line_names_no_columns_is_refused_whole(admin: Admin, body: str | bytes) -> None:
    await admin.create_type()
    problem(await admin.api.post("/devices-import", content=body, headers=CSV), 422)


async def test_csv_in_another_encoding_is_refused(admin: Admin) -> None:
    headers = {"Content-Type": "text/csv; charset=GBK"}
    assert "UTF-8" in problem(await admin.api.post("/devices-import", content=b"x", headers=headers), 415)["detail"]


async def test_what_was_exported_as_csv_imports_again(admin: Admin) -> None:
    await admin.create_type(version_attributes=["version", "a,b"])
    await admin.create_type("B", version_attributes=["version", "mcu"])
    lines = [
        {
            "identifier": f'd "{n}", 设备',
            "type": "B" if n % 2 else "DU",
            "versions": {"version": f"1,{n}"} | ({"mcu": "2"} if n % 2 else {"a,b": "3"} if n % 4 else {}),
            "tags": sorted({"上海", f"t{n % 3}"} if n % 5 else ()),
        }
        for n in range(1_203)
    ]
    body = "\n".join(map(json.dumps, lines))
    checked(await admin.api.post("/devices-import", content=body, headers=NDJSON), 200)
    as_json = sorted((await admin.api.get("/devices-export")).content.splitlines())
    exported = await admin.api.get("/devices-export", headers={"Accept": "text/csv"})
    assert exported.headers["content-type"] == "text/csv; charset=utf-8"
    first, *rest = exported.content.split(b"\r\n")
    assert first == b'identifier,type,tags,"versions.a,b",versions.mcu,versions.version'
    assert len(rest) == len(lines) + 1
    emptied = "\n".join(json.dumps(line | {"type": "DU", "versions": {}, "tags": []}) for line in lines)
    checked(await admin.api.post("/devices-import", content=emptied, headers=NDJSON), 200)
    assert sorted((await admin.api.get("/devices-export")).content.splitlines()) != as_json
    again = checked(await admin.api.post("/devices-import", content=exported.content, headers=CSV), 200)
    assert (again["created"], again["replaced"], again["failed"]) == (0, len(lines), 0)
    assert sorted((await admin.api.get("/devices-export")).content.splitlines()) == as_json
    only = await admin.api.get("/devices-export?type=B", headers={"Accept": "application/x-ndjson;q=0.5, text/csv"})
    assert only.content.startswith(b"identifier,type,tags,versions.mcu,versions.version\r\n")
    assert (await admin.api.get("/devices-export?type=none", headers={"Accept": "text/csv"})).content == (
        b"identifier,type,tags\r\n"
    )


async def test_a_device_can_not_write_another_device_through_export_and_import(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("evil")
    victim = await admin.create_device("victim", versions={"version": "1.0"})
    await admin.create_firmware("2.0", tags=["trial"])
    await report(admin, "evil", "1.0\nvictim,DU,trial,1.0\nx", at_ms=1)  # what an older release took
    for accept, media_type in (("text/csv", CSV), ("application/x-ndjson", NDJSON)):
        exported = (await admin.api.get("/devices-export", headers={"Accept": accept})).content
        answer = checked(await admin.api.post("/devices-import", content=exported, headers=media_type), 200)
        assert (answer["replaced"], answer["failed"]) == (2, 0)
        assert checked(await admin.api.get("/devices/victim"), 200) == victim
    assert checked(await admin.api.get("/devices/evil"), 200)["versions"] == {}


@pytest.mark.parametrize("row", ['evil,DU,"1.0\nvictim,DU,9.0\nx"', 'evil,DU,"1.0\n"victim","DU","9.0"\nx"', '"'])
async def test_a_quoted_cell_over_several_lines_ends_an_import(admin: Admin, row: str) -> None:
    await admin.create_type()
    victim = await admin.create_device("victim", versions={"version": "1.0"})
    body = f"identifier,type,versions.version\nfirst,DU,1.0\n{row}\nlast,DU,1.0\n"
    for query in ("", "?dry_run=true"):
        refused = problem(await admin.api.post(f"/devices-import{query}", content=body, headers=CSV), 422)
        assert refused["detail"].startswith("Line 3: A quoted value does not end on its line.")
    assert checked(await admin.api.get("/devices/victim"), 200) == victim
    problem(await admin.api.get("/devices/last"), 404)


async def test_a_byte_order_mark_is_one_before_the_first_line_alone(admin: Admin) -> None:
    await admin.create_type()
    for body, media_type in (
        ("\ufeffidentifier,type\n\ufeffa,DU\nb,DU", CSV),
        ('\ufeff{"identifier": "\ufeffc", "type": "DU"}', NDJSON),
    ):
        checked(await admin.api.post("/devices-import", content=body.encode(), headers=media_type), 200)
    listed = checked(await admin.api.get("/devices"), 200)["items"]
    assert {device["identifier"] for device in listed} == {"\ufeffa", "b", "\ufeffc"}
    path = f"/firmware/{(await admin.create_firmware())['id']}/devices"
    checked(await admin.api.put(path, content="\ufeffidentifier\n\ufeffa".encode(), headers=CSV), 200)
    own = (await admin.api.get(path, headers={"Accept": "text/csv"})).content
    assert own.decode() == "identifier\r\n\ufeffa\r\n"
    checked(await admin.api.put(path, content=own, headers=CSV), 200)
    assert (await admin.api.get(path, headers={"Accept": "text/csv"})).content == own


async def test_an_import_takes_the_good_lines_and_names_the_bad_ones(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("old", versions={"version": "0.9"})
    lines = [
        '{"identifier": "new", "type": "DU", "versions": {"version": "1.0"}}',
        '{"identifier": "old", "type": "DU"}',
        "",
        "not json",
        '{"identifier": "a//b", "type": "DU"}',
        '{"identifier": "x", "type": "none"}',
        '{"identifier": "x", "type": "DU", "tags": ["t", 1]}',
        '{"identifier": "x", "type": "DU", "colour": 1}',
        "[]",
        '{"identifier": "x", "type": "DU", "versions": {"other": "1"}}',
        '{"identifier": "\\ud800", "type": "DU"}',
        '{"identifier": "last", "type": "DU"}',
    ]
    answer = checked(await admin.api.post("/devices-import", content="\r\n".join(lines), headers=NDJSON), 200)
    assert (answer["created"], answer["replaced"], answer["failed"]) == (2, 1, 8)
    assert [error["line"] for error in answer["errors"]] == [4, 5, 6, 7, 8, 9, 10, 11]
    details = {error["line"]: error["detail"] for error in answer["errors"]}
    assert (details[8], details[9]) == ("`colour`: there is no such field.", "The line must be an object.")
    assert all(details.values())
    assert checked(await admin.api.get("/devices/old"), 200)["versions"] == {"version": "0.9"}
    assert checked(await admin.api.get("/devices/new"), 200)["versions"] == {"version": "1.0"}
    problem(await admin.api.get("/devices/x"), 404)


@pytest.mark.parametrize("between", [0, 1_200])
async def test_a_second_line_about_a_device_is_refused_however_far_apart_they_are(admin: Admin, between: int) -> None:
    await admin.create_type()
    await admin.create_type("B")
    lines = [
        {"identifier": "d", "type": "DU", "versions": {"version": "1.0"}},
        *({"identifier": f"d{n}", "type": "DU"} for n in range(between)),
        {"identifier": "d", "type": "B", "tags": ["x"]},
    ]
    body = "\n".join(map(json.dumps, lines))
    first = checked(await admin.api.post("/devices-import?dry_run=true", content=body, headers=NDJSON), 200)
    for created, query in ((between + 1, "?dry_run=true"), (between + 1, ""), (0, "")):
        answer = checked(await admin.api.post(f"/devices-import{query}", content=body, headers=NDJSON), 200)
        assert (answer["created"], answer["replaced"], answer["failed"]) == (created, between + 1 - created, 1)
        assert answer["errors"] == first["errors"]
        await admin.hook.record("d", offer_of("F"))  # to nobody before the device is there
    assert answer["errors"][0]["line"] == between + 2
    assert "earlier line" in answer["errors"][0]["detail"]
    device = checked(await admin.api.get("/devices/d"), 200)
    assert (device["type"], device["versions"], device["tags"]) == ("DU", {"version": "1.0"}, [])
    (offer,) = checked(await admin.api.get("/offers?device=d"), 200)["items"]
    assert (offer["firmware_id"], offer["outcome"]) == ("F", "offered")


def packed(*values: Any) -> bytes:
    return bytes(msgpack.packb(values))


UNREADABLE = {
    "no MessagePack": b"\xc1\xc1",
    "a number": bytes(msgpack.packb(5)),
    "a map": bytes(msgpack.packb({"a": 1})),
    "no type": packed(5, "version", 0, "1.0"),
    "a number for a version": packed("DU", "version", 0, 1),
    "nil for a version": packed("DU", "version", 0, None),
    "bytes for a version": packed("DU", "version", 0, b"1\xff"),
    "cut off": packed("DU", "version", 0, "1.0")[:-2],
    "too short": packed("DU", "version", 0),
    "more behind it": packed("DU") + b"\x01",
}


async def break_record(admin: Admin, record: bytes, identifier: str | bytes = "bad") -> None:
    keys = admin.context.catalogue._keys  # type: ignore[attr-defined]
    name = identifier.encode() if isinstance(identifier, str) else identifier
    await admin.redis.hset(keys.devices(keys.bucket_of_name(name)), name, record)


@pytest.mark.parametrize("record", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_record_that_can_not_be_read_keeps_nobody_from_the_other_devices(admin: Admin, record: bytes) -> None:
    await admin.create_type()
    await admin.create_type("B")
    for name in ("bad", "good"):
        await admin.create_device(name, versions={"version": "1.0"})
    await break_record(admin, record)
    for query in ("", "?type=DU", "?limit=1"):
        listed = checked(await admin.api.get(f"/devices{query}"), 200)["items"]
        assert [device["identifier"] for device in listed] == ["good"]
    counted = checked(await admin.api.get("/device-types/DU/versions"), 200)
    assert {"version": "1.0", "devices": 1} in counted["versions"]
    for accept, media_type in (("text/csv", CSV), ("application/x-ndjson", NDJSON)):
        exported = await admin.api.get("/devices-export", headers={"Accept": accept})
        *_, last = exported.content.splitlines()
        assert b"unreadable" in last
        assert b"bad" in last
        again = checked(await admin.api.post("/devices-import", content=exported.content, headers=media_type), 200)
        assert (again["created"], again["replaced"], again["failed"]) == (0, 1, 1)
    checked(await admin.api.get("/check?device=good"), 200)
    assert (await admin.api.delete("/device-types/B")).status_code == 204


@pytest.mark.parametrize("record", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_record_that_can_not_be_read_is_named_and_mended_through_the_api(admin: Admin, record: bytes) -> None:
    await admin.create_type()
    put = {"type": "DU", "versions": {"version": "2.0"}, "tags": ["new"]}
    line = {"identifier": "bad", "type": "DU"}
    others = [{"identifier": f"d{n}", "type": "DU"} for n in range(60)]
    await break_record(admin, record)
    for path in ("/devices/bad", "/check?device=bad", "/offers?device=bad"):
        assert "'bad'" in problem(await admin.api.get(path), 409)["detail"]
    problem(await admin.api.patch("/devices/bad", json={"tags": []}), 409)
    problem(await admin.api.put("/devices/bad", json={"type": "DU"}), 409)
    problem(await admin.api.post("/devices", json=line), 409)
    assert checked(await admin.api.put("/devices/bad", json=put), 200)["versions"] == {"version": "2.0"}

    await break_record(admin, record)
    assert (await admin.api.delete("/devices/bad")).status_code == 204
    problem(await admin.api.delete("/devices/bad"), 404)

    await break_record(admin, record)
    body = "\n".join(map(json.dumps, [*others, line | put]))
    mended = checked(await admin.api.post("/devices-import", content=body, headers=NDJSON), 200)
    assert (mended["created"], mended["replaced"], mended["failed"]) == (60, 1, 0)
    assert checked(await admin.api.get("/devices/bad"), 200)["tags"] == ["new"]


async def test_an_import_that_would_keep_something_of_a_record_that_can_not_be_read_fails_at_its_line(
    admin: Admin,
) -> None:
    await admin.create_type()
    await break_record(admin, b"\xc1")
    lines = ["", '{"identifier": "a", "type": "DU"}', '{"identifier": "bad", "type": "DU"}', "x"]
    answer = checked(await admin.api.post("/devices-import", content="\n".join(lines), headers=NDJSON), 200)
    assert (answer["created"], answer["replaced"], answer["failed"]) == (1, 0, 2)
    assert [error["line"] for error in answer["errors"]] == [3, 4]
    assert "can't be read" in answer["errors"][0]["detail"]


async def test_a_type_stays_while_a_record_of_it_can_not_be_read(admin: Admin) -> None:
    await admin.create_type()
    await break_record(admin, UNREADABLE["a number for a version"])
    assert "bad" in problem(await admin.api.delete("/device-types/DU"), 409)["detail"]
    assert (await admin.api.delete("/devices/bad")).status_code == 204
    assert (await admin.api.delete("/device-types/DU")).status_code == 204


async def test_a_name_that_is_no_text_and_a_key_that_is_no_hash_are_left_out(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("good", versions={"version": "1.0"})
    await break_record(admin, packed("DU"), b"\xff")
    keys = admin.context.catalogue._keys  # type: ignore[attr-defined]
    await admin.redis.set(keys.devices(keys.bucket_of("elsewhere")), "x")
    assert len(checked(await admin.api.get("/devices"), 200)["items"]) == 1
    _, last = (await admin.api.get("/devices-export")).content.splitlines()
    said = json.loads(last)
    assert (said["unreadable"], set(said["identifiers"])) == (2, {"", "\\xff"})
    assert checked(await admin.api.get("/device-types/DU/versions"), 200)["unreadable"] == 1
    problem(await admin.api.delete("/device-types/DU"), 409)


async def test_an_export_without_anything_unreadable_ends_with_a_device(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("good")
    (line,) = (await admin.api.get("/devices-export")).content.splitlines()
    assert json.loads(line)["identifier"] == "good"


@pytest.mark.parametrize("stored", [b"\xc1", packed("x"), packed(5), bytes(msgpack.packb({"a": 1})), b"\xc0"])
async def test_open_offers_that_can_not_be_read_are_none_and_are_written_over(admin: Admin, stored: bytes) -> None:
    await admin.create_type()
    await admin.create_type("B")
    device = await admin.create_device("d", versions={"version": "1.0"})
    firmware = await admin.create_firmware("2.0")
    keys = admin.context.catalogue._keys  # type: ignore[attr-defined]
    offers = keys.offers(keys.bucket_of("d"))

    async def break_offers() -> None:
        await admin.redis.hset(offers, "d", stored + firmware["id"].encode() if stored == b"\xc1" else stored)

    await break_offers()
    assert checked(await admin.api.get("/devices/d"), 200) == device
    assert checked(await admin.api.get("/offers?device=d"), 200)["items"] == []
    checked(await admin.api.get("/check?device=d"), 200)
    await report(admin, "d", "1.1", at_ms=1)  # as any other: it is stored and settles nothing
    await admin.hook.record("d", offer_of(firmware["id"]))
    (offer,) = checked(await admin.api.get("/offers?device=d"), 200)["items"]
    assert offer["firmware_id"] == firmware["id"]
    await break_offers()
    checked(await admin.api.put("/devices/d", json={"type": "B"}), 200)
    for path in (f"/firmware/{firmware['id']}", "/devices/d"):
        await break_offers()
        assert (await admin.api.delete(path)).status_code == 204
    assert admin.files() == set()


async def test_what_can_not_be_read_of_a_history_or_of_counters_is_left_out(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("d", versions={"version": "1.0"})
    firmware = await admin.create_firmware("2.0")
    keys = admin.context.catalogue._keys  # type: ignore[attr-defined]
    offer = offer_of(firmware["id"])
    await admin.hook.record("d", offer)
    await admin.hook.settle("d", offer, Outcome.FAILED, settled_at_ms=1)
    history = keys.history(keys.bucket_of("d"), "d")
    await admin.redis.lpush(history, b"\xc1", packed("x"), packed(1, 2, 3, 4, 5, 6, [], "failed", 0, ""))
    (shown,) = checked(await admin.api.get("/offers?device=d"), 200)["items"]
    assert shown["outcome"] == "failed"
    for outcome, count in ((b"offered", "x"), (b"cancelled", "x"), (b"\xff", "1")):
        await admin.redis.hset(keys.counters(firmware["id"]), outcome, count)
    assert checked(await admin.api.get(f"/firmware/{firmware['id']}"), 200)["counters"] == {"failed": 1}
    await admin.hook.record("d", offer)
    assert (await admin.api.delete("/devices/d")).status_code == 204


async def test_a_dry_run_imports_nothing(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("old")
    lines = ['{"identifier": "new", "type": "DU"}', '{"identifier": "old", "type": "DU"}', "x"]
    answer = checked(
        await admin.api.post("/devices-import?dry_run=true", content="\n".join(lines), headers=NDJSON), 200
    )
    assert (answer["created"], answer["replaced"], answer["failed"], answer["dry_run"]) == (1, 1, 1, True)
    problem(await admin.api.get("/devices/new"), 404)


async def test_what_was_exported_imports_again(admin: Admin) -> None:
    await admin.create_type()

    async def lines() -> AsyncIterator[bytes]:
        for n in range(2_500):
            yield b'{"identifier": "d%d", "type": "DU", "versions": {"version": "1.%d"}}\n' % (n, n)

    first = checked(await admin.api.post("/devices-import", content=lines(), headers=NDJSON), 200)
    assert (first["created"], first["failed"]) == (2_500, 0)
    exported = await admin.api.get("/devices-export")
    assert exported.headers["content-type"] == "application/x-ndjson"
    assert len(exported.content.splitlines()) == 2_500
    again = checked(await admin.api.post("/devices-import", content=exported.content, headers=NDJSON), 200)
    assert (again["created"], again["replaced"], again["failed"]) == (0, 2_500, 0)
    assert sorted((await admin.api.get("/devices-export?type=DU")).content.splitlines()) == sorted(
        exported.content.splitlines()
    )
    assert (await admin.api.get("/devices-export?type=B")).content == b""
    problem(await admin.api.get("/devices-export?colour=1"), 422)


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("", 200),
        ("*/*", 200),
        ("application/*;q=0.1", 200),
        ("text/csv, Application/X-NDJSON; q=0.5", 200),
        ("application/json, application/x-ndjson", 200),
        ("text/html", 406),
        ("application/json", 406),
        ("*/*; q=0", 406),
        ("image/png, */*; q = 0.0", 406),
    ],
)
async def test_who_can_not_read_lines_is_told_so(admin: Admin, accept: str | None, status: int) -> None:
    await admin.create_type()
    firmware = await admin.create_firmware(devices=["a"])
    for path in ("/devices-export", f"/firmware/{firmware['id']}/devices"):
        request = admin.api.build_request("GET", path)
        del request.headers["accept"]
        if accept is not None:
            request.headers["accept"] = accept
        answer = await admin.api.send(request)
        assert answer.status_code == status
        if status == 406:
            assert "application/x-ndjson" in problem(answer, 406)["detail"]


async def test_only_the_first_hundred_errors_are_shown(admin: Admin) -> None:
    answer = checked(await admin.api.post("/devices-import", content="x\n" * 250, headers=NDJSON), 200)
    assert (answer["failed"], len(answer["errors"])) == (250, 100)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/tab-separated-values"])
async def test_other_formats_are_refused(admin: Admin, content_type: str) -> None:
    answer = await admin.api.post("/devices-import", content=b"{}", headers={"Content-Type": content_type})
    document = problem(answer, 415)
    assert ("CSV is not available yet" in document["detail"]) == (content_type == "text/csv")


async def test_a_line_without_an_end_is_refused(admin: Admin) -> None:
    document = problem(
        await admin.api.post("/devices-import", content=b"x" * (LINE_MAX_BYTES + 1), headers=NDJSON), 422
    )
    assert "Line 1" in document["detail"]


# ---- offers and checks


async def test_a_devices_offers_are_shown_open_and_settled(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"})
    assert checked(await admin.api.get("/offers?device=DU_1"), 200) == {"items": [], "next_cursor": None}
    firmware = [await admin.create_firmware(f"1.{n}") for n in (1, 2)]
    for n, document in enumerate(firmware):
        offer = OpenOffer(
            module="main",
            firmware_id=document["id"],
            version_attribute="version",
            version=document["version"],
            from_version="1.0",
            command_ids=(98_310 + n,),
            offered_at_ms=1_700_000_000_000 + n,
        )
        await admin.hook.record("DU_1", offer)
        if n == 1:
            said = Said(98_311, None, Outcome.DOWNLOADING, "")
            admin.hook.offers.track_offer("DU_1", said, at_ms=1_700_000_001_000)
            await admin.hook.noted()
        if n == 0:
            await admin.hook.settle(
                "DU_1", offer, Outcome.FAILED, code="other_version", settled_at_ms=1_700_000_001_000
            )
    still_open, settled = checked(await admin.api.get("/offers?device=DU_1"), 200)["items"]
    assert still_open == {
        "firmware_id": firmware[1]["id"],
        "module": "main",
        "version": "1.2",
        "from_version": "1.0",
        "version_attribute": "version",
        "command_ids": [98_311],
        "offered_at": "2023-11-14T22:13:20.001Z",
        "outcome": "downloading",
        "code": None,
        "settled_at": None,
    }
    assert (settled["outcome"], settled["code"]) == ("failed", "other_version")
    assert settled["settled_at"] == "2023-11-14T22:13:21.000Z"
    counters = checked(await admin.api.get(f"/firmware/{firmware[0]['id']}"), 200)["counters"]
    assert counters["failed"] == 1


async def test_the_dry_run_says_why_for_each_firmware(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"})
    names = {
        (await admin.create_firmware("1.3", enabled="false"))["id"]: ["disabled"],
        (await admin.create_firmware("1.4", devices=["DU_2"]))["id"]: ["not_selected"],
        (await admin.create_firmware("1.5", source_versions=["0.9"]))["id"]: ["source_version_differs"],
        (await admin.create_firmware("1.0"))["id"]: ["same_version"],
        (await admin.create_firmware("0.9"))["id"]: ["not_newer"],
        (await admin.create_firmware("1.1"))["id"]: ["outranked"],
    }
    best = await admin.create_firmware("1.2")
    document = checked(await admin.api.get("/check?device=DU_1"), 200)
    assert document["current_version"] == "1.0"
    assert (document["event"], document["version_attribute"], document["reason"]) == ("otaCheck", "version", None)
    assert document["offer"]["firmware_id"] == best["id"]
    assert document["offer"]["url"] == best["url"]
    assert {entry["id"]: entry["reasons"] for entry in document["firmware"]} == names | {best["id"]: []}
    assert [entry["chosen"] for entry in document["firmware"]].count(True) == 1
    for entry in document["firmware"]:
        assert len(entry["explanations"]) == len(entry["reasons"])
        assert all(text.endswith(".") for text in entry["explanations"])


async def test_a_child_whose_gateway_is_not_registered_would_get_none(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("GW/A", versions={"version": "1.0"})
    await admin.create_firmware("1.1")
    document = checked(await admin.api.get("/check?device=GW/A"), 200)
    assert (document["offer"], document["reason"], document["current_version"]) == (None, "unknown_gateway", "1.0")
    assert [entry["explanations"] for entry in document["firmware"]] == [
        ["The gateway GW is not registered, so nobody speaks for the device."]
    ]
    await admin.create_device("GW")
    document = checked(await admin.api.get("/check?device=GW/A"), 200)
    assert (document["offer"]["version"], document["reason"]) == ("1.1", None)


@pytest.mark.parametrize("case", ["no_rule", "no_firmware", "no_version", "none_newer"])
async def test_where_there_is_no_offer_the_dry_run_says_why(admin: Admin, case: str) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={} if case == "no_version" else {"version": "1.0"})
    if case != "no_firmware":
        await admin.create_firmware("1.0" if case == "none_newer" else "1.1")
    if case == "no_rule":
        rule = checked(await admin.api.get("/rules"), 200)["items"][0]
        await admin.api.patch(f"/rules/{rule['id']}", json={"enabled": False})
    document = checked(await admin.api.get("/check?device=DU_1"), 200)
    assert (document["offer"], document["reason"]) == (None, case)
    assert not any(entry["chosen"] for entry in document["firmware"])
    expected = {"no_rule": ["no_rule"], "no_version": ["current_version_unknown"], "none_newer": ["same_version"]}
    assert all(entry["reasons"] == expected[case] for entry in document["firmware"])
