"""Gateways' children through the admin API: wherever a device is named, a child is too."""

from __future__ import annotations

import csv
import io
import json
import random
from typing import Any
from urllib.parse import quote

import pytest

from ota_hook.identifiers import CHILD_MAX_BYTES, child_identifier
from ota_hook.model import ChildForm, Family, OpenOffer, Outcome
from ota_hook.progress import Said
from tests.integration.admin_service import Admin, checked, problem
from tests.integration.hot_state import child_came

NDJSON = {"Content-Type": "application/x-ndjson"}
CSV = {"Content-Type": "text/csv"}
ODD = [
    "ADDR1",
    "a/b",
    "a%2Fb",
    "a%252Fb",
    "仪表 1",
    "a b",
    "+",
    "#",
    "?x=1&y=2",
    "..",
    ".",
    "~",
    '"quoted", one',
    "=1+1",
    "100%",
    "x" * 128,
    "é" * 64,
    "a\u2028b",
    "null",
    "\\",
]
"""Addresses as gateways may have them."""


def child_of(gateway: str, *path: str) -> str:
    identifier = child_identifier(gateway, path)
    assert identifier is not None
    return identifier


def path_to(identifier: str) -> str:
    return f"/devices/{quote(identifier, safe='')}"


async def import_devices(admin: Admin, *identifiers: str, **fields: Any) -> None:
    body = "\n".join(json.dumps({"identifier": name, "type": "DU"} | fields) for name in identifiers)
    answer = checked(await admin.api.post("/devices-import", content=body, headers=NDJSON), 200)
    assert answer["failed"] == 0, answer


async def listed(admin: Admin, *, limit: int = 1000, **query: str) -> list[str]:
    """Every page of a list, each device once."""
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = checked(await admin.api.get("/devices", params={"limit": str(limit)} | query | cursor), 200)
        seen += [item["identifier"] for item in page["items"]]
        if page["next_cursor"] is None:
            assert len(seen) == len(set(seen))
            return seen
        cursor = {"cursor": page["next_cursor"]}


# ---- odd addresses


@pytest.mark.parametrize("path", [(address,) for address in ODD] + [tuple(ODD[:8]), ("a", "b/c", "%")], ids=ascii)
async def test_a_child_is_reached_by_its_encoded_identifier_whatever_its_addresses_are(
    admin: Admin, path: tuple[str, ...]
) -> None:
    await admin.create_type()
    identifier = child_of("采集器 1", *path)
    created = await admin.api.post("/devices", json={"identifier": identifier, "type": "DU"})
    assert checked(created, 201)["identifier"] == identifier
    assert created.json()["gateway"] == "采集器 1"
    at_location = await admin.open.get(created.headers["location"], headers=admin.api.headers)
    assert checked(at_location, 200) == created.json()
    put = checked(await admin.api.put(path_to(identifier), json={"type": "DU", "versions": {"version": "1.0"}}), 200)
    assert put["identifier"] == identifier
    patched = checked(await admin.api.patch(path_to(identifier), json={"tags": ["a"]}), 200)
    assert (patched["versions"], patched["tags"]) == ({"version": "1.0"}, ["a"])
    assert checked(await admin.api.get("/check", params={"device": identifier}), 200)["device"] == identifier
    assert checked(await admin.api.get("/offers", params={"device": identifier}), 200)["items"] == []
    assert checked(await admin.api.get("/attempts", params={"device": identifier}), 200)["items"] == []
    assert await listed(admin) == await listed(admin, gateway="采集器 1") == [identifier]
    assert (await admin.api.delete(path_to(identifier))).status_code == 204
    problem(await admin.api.get(path_to(identifier)), 404)


async def test_the_slash_before_an_address_may_stand_as_it_is(admin: Admin) -> None:
    await admin.create_type()
    put = await admin.api.put("/devices/GW/a%252Fb", json={"type": "DU"})
    assert checked(put, 201)["identifier"] == "GW/a%2Fb"
    assert checked(await admin.api.get("/devices/GW%2Fa%252Fb"), 200) == put.json()
    problem(await admin.api.get("/devices/GW/a%2Fb"), 404)  # two addresses


async def test_children_drawn_by_lot_go_in_by_every_way_and_come_back(admin: Admin) -> None:
    await admin.create_type()
    chance = random.Random(7)
    signs = "/%#+ ?&;,\"'2F5aZ仪é\u2028."
    names = {f"GW{n}" for n in range(3)}
    while len(names) < 300:
        path = ["".join(chance.choices(signs, k=chance.randint(1, 12))) for _ in range(chance.randint(1, 3))]
        identifier = child_identifier(chance.choice(["GW0", "GW1", "GW2"]), path)
        names |= {identifier} if identifier is not None else set()
    await import_devices(admin, *sorted(names))
    assert set(await listed(admin, limit=7)) == names
    for media_type, content in (
        ("application/x-ndjson", (await admin.api.get("/devices-export")).text),
        ("text/csv", (await admin.api.get("/devices-export", headers={"Accept": "text/csv"})).text),
    ):
        again = await admin.api.post("/devices-import", content=content, headers={"Content-Type": media_type})
        assert checked(again, 200) | {"dry_run": False} == {
            "created": 0,
            "replaced": len(names),
            "failed": 0,
            "dry_run": False,
            "errors": [],
        }
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert {row["identifier"] for row in rows} == names
    for name in chance.sample(sorted(names), 40):
        assert checked(await admin.api.get(path_to(name)), 200)["identifier"] == name


@pytest.mark.parametrize("identifier", ["GW/", "GW//a", "/a", "GW/a%", "GW/a%2fb", "GW/ a", "G+W/a", "GW" + "/a" * 9])
async def test_what_can_be_no_child_is_refused_with_how_one_is_spelled(admin: Admin, identifier: str) -> None:
    await admin.create_type()
    for answer in (
        await admin.api.post("/devices", json={"identifier": identifier, "type": "DU"}),
        await admin.api.put(path_to(identifier), json={"type": "DU"}),
    ):
        (error,) = problem(answer, 422)["errors"]
        assert error["field"] == "identifier"
        assert "GATEWAY/ADDRESS" in error["detail"]
        assert "written %2F" in error["detail"]
    problem(await admin.api.get(path_to(identifier)), 404)
    problem(await admin.api.delete(path_to(identifier)), 404)
    problem(await admin.api.get("/check", params={"device": identifier}), 404)


async def test_what_is_no_identifier_at_all_is_refused_and_both_kinds_are_told(admin: Admin) -> None:
    await admin.create_type()
    document = problem(await admin.api.post("/devices", json={"identifier": "a#", "type": "DU"}), 422)
    assert "GATEWAY/ADDRESS" in document["detail"]


# ---- wherever a device is named


async def test_a_direct_device_has_no_gateway_and_nobody_can_set_one(admin: Admin) -> None:
    await admin.create_type()
    assert (await admin.create_device("GW"))["gateway"] is None
    assert (await admin.create_device("GW/1/2"))["gateway"] == "GW"
    for method, path in (("PUT", "/devices/GW/1"), ("PATCH", "/devices/GW/1/2")):
        problem(await admin.api.request(method, path, json={"type": "DU", "gateway": "x"}), 422)


async def test_children_are_listed_checked_offered_and_reset_as_devices_are(admin: Admin) -> None:
    await admin.create_type()
    child, other = child_of("GW", "a/b"), child_of("GW", "a", "b")
    await import_devices(admin, "GW", child, other, versions={"version": "1.0"})
    listed_firmware = await admin.create_firmware("2.0", devices=[child, "GW/unknown"])
    assert "GW/unknown" not in listed_firmware
    lines = f"{json.dumps(child)}\n{json.dumps({'identifier': 'GW/100%25'})}\n"
    path = f"/firmware/{listed_firmware['id']}/devices"
    assert checked(await admin.api.put(path, content=lines, headers=NDJSON), 200) == {"count": 2, "unknown": 1}
    assert (await admin.api.get(path, headers={"Accept": "text/csv"})).text == f"identifier\r\n{child}\r\nGW/100%25\r\n"
    for device, version in ((child, "2.0"), (other, None), ("GW", None)):
        offer = checked(await admin.api.get("/check", params={"device": device}), 200)["offer"]
        assert (offer and offer["version"]) == version
    await fail(admin, child, listed_firmware["id"])
    query = {"device": child, "firmware": listed_firmware["id"]}
    (entry,) = checked(await admin.api.get("/attempts", params=query), 200)["items"]
    assert (entry["device"], entry["attempts"]) == (child, 1)
    (entry,) = checked(await admin.api.get("/attempts", params={"firmware": listed_firmware["id"]}), 200)["items"]
    assert entry["device"] == child
    (settled,) = checked(await admin.api.get("/offers", params={"device": child}), 200)["items"]
    assert settled["outcome"] == "failed"
    assert (await admin.api.delete("/attempts", params=query)).status_code == 204
    assert checked(await admin.api.get("/attempts", params=query), 200)["items"] == []


def offer_of(firmware_id: str) -> OpenOffer:
    return OpenOffer(
        module="main",
        firmware_id=firmware_id,
        version_attribute="version",
        version="2.0",
        from_version="1.0",
        command_ids=(98_310,),
        offered_at_ms=1,
    )


async def fail(admin: Admin, device: str, firmware_id: str) -> None:
    await admin.hook.record(device, offer_of(firmware_id))
    admin.hook.offers.track_offer(device, Said(98_310, None, Outcome.FAILED, "1"), at_ms=2)
    await admin.hook.noted()


async def test_a_task_may_be_for_children(admin: Admin) -> None:
    await admin.create_type()
    child = child_of("GW", "a/b")
    await import_devices(admin, "GW", child, versions={"version": "1.0"})
    task = {"name": "children", "target": {"devices": ["GW", child]}}
    created = checked(await admin.api.post("/tasks", json=task), 201)
    assert created["target"] == {"devices": ["GW", child]}
    problem(await admin.api.post("/tasks", json=task | {"target": {"devices": ["GW//a"]}}), 422)


async def test_how_a_child_was_spoken_of_outlives_what_the_api_writes(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("GW")
    form = ChildForm(Family.SUB, as_list=False)
    await child_came(admin.hook.children, "GW/1", form, product="DU", at_ms=1)
    shown = checked(await admin.api.get("/devices/GW/1"), 200)
    assert (shown["tags"], shown["exhausted_firmware"]) == ([], [])
    for method, body in (
        ("PATCH", {"tags": ["b", "a"]}),
        ("PUT", {"type": "DU", "versions": {"version": "1.0"}}),
        ("PUT", {"type": "DU", "tags": []}),
        ("PATCH", {"versions": None, "tags": None}),
    ):
        checked(await admin.api.request(method, "/devices/GW/1", json=body), 200)
        state = await admin.context.devices.load_device("GW/1")
        assert state is not None
        assert state.form == form


# ---- a gateway's children


async def test_the_children_of_a_gateway_are_listed_in_pages_and_filtered(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("B")
    names = [f"GW/{number:03}" for number in range(60)] + ["GW/deep/er"]
    await import_devices(admin, "GW", "GWx", "GWx/1", "other/1", *names)
    await import_devices(admin, *names[:20], type="B", tags=["odd"])
    for limit in (7, 61, 1000):
        assert await listed(admin, gateway="GW", limit=limit) == names
    assert await listed(admin, gateway="GW", type="B", limit=7) == names[:20]
    assert await listed(admin, gateway="GW", tag="odd", type="DU") == []
    assert await listed(admin, gateway="nobody") == []
    assert (await admin.api.delete("/devices/GW")).status_code == 204
    assert await listed(admin, gateway="GW") == names


async def test_a_child_is_no_gateway_and_a_cursor_is_one_lists_own(admin: Admin) -> None:
    await admin.create_type()
    await import_devices(admin, *(f"{gateway}/{number}" for gateway in ("A", "B") for number in range(3)))
    for gateway in ("A/1", "", "a#", "x" * 129):
        (error,) = problem(await admin.api.get("/devices", params={"gateway": gateway}), 422)["errors"]
        assert error["field"] == "gateway"
    page = checked(await admin.api.get("/devices?gateway=A&limit=2"), 200)
    problem(await admin.api.get(f"/devices?gateway=B&limit=2&cursor={page['next_cursor']}"), 422)


async def test_the_longest_identifiers_have_cursors_too(admin: Admin) -> None:
    await admin.create_type()
    gateway = "g" * 128
    names = [child_of(gateway, "%" * 40, "%" * 40, "%" * 40, "x" * 15 + str(number)) for number in range(3)]
    assert max(len(name) for name in names) > CHILD_MAX_BYTES - 10
    await import_devices(admin, *names)
    assert await listed(admin, gateway=gateway, limit=1) == names
    assert await listed(admin, limit=1) == names


async def test_a_deleted_gateway_leaves_its_children_unless_told_otherwise(admin: Admin) -> None:
    await admin.create_type()
    names = ["GW/1", "GW/1/2", child_of("GW", "a/b"), f"GW/{'x' * 100}"]
    await import_devices(admin, "GW", "GWx/1", *names, versions={"version": "1.0"})
    firmware = await admin.create_firmware("2.0")
    await fail(admin, "GW/1", firmware["id"])
    await admin.hook.record("GW/1/2", offer_of(firmware["id"]))
    assert (await admin.api.delete("/devices/GW")).status_code == 204
    assert await listed(admin, gateway="GW") == sorted(names)
    await admin.create_device("GW")
    assert (await admin.api.delete("/devices/GW?children=true")).status_code == 204
    assert await listed(admin) == ["GWx/1"]
    counted = checked(await admin.api.get(f"/firmware/{firmware['id']}"), 200)["counters"]
    assert counted["cancelled"] == 1
    await import_devices(admin, *names)
    for name in names:
        assert checked(await admin.api.get("/offers", params={"device": name}), 200)["items"] == []
        assert checked(await admin.api.get("/attempts", params={"device": name}), 200)["items"] == []


async def test_deleting_children_may_be_done_again_and_ends_where_nobody_is(admin: Admin) -> None:
    await admin.create_type()
    await import_devices(admin, "GW/1", "GW/2")  # of a gateway that is gone, as where a request broke off
    assert (await admin.api.delete("/devices/GW?children=true")).status_code == 204
    problem(await admin.api.delete("/devices/GW?children=true"), 404)
    problem(await admin.api.delete("/devices/GW?children=perhaps"), 422)
    problem(await admin.api.delete("/devices/GW?child=true"), 422)


async def test_children_stay_where_the_gateway_is_not_as_expected(admin: Admin) -> None:
    await admin.create_type()
    await import_devices(admin, "GW", "GW/1")
    etag = (await admin.api.get("/devices/GW")).headers["etag"]
    await admin.api.patch("/devices/GW", json={"tags": ["a"]})
    problem(await admin.api.delete("/devices/GW?children=true", headers={"If-Match": etag}), 412)
    assert await listed(admin, gateway="GW") == ["GW/1"]


async def test_behind_a_child_there_may_be_more(admin: Admin) -> None:
    await admin.create_type()
    await import_devices(admin, "GW", "GW/1", "GW/1/2", "GW/1/2/3", "GW/12")
    assert (await admin.api.delete("/devices/GW/1?children=true")).status_code == 204
    assert sorted(await listed(admin)) == ["GW", "GW/12"]


async def test_a_gateway_with_600_children_is_exported_and_deleted(admin: Admin) -> None:
    await admin.create_type()
    names = [f"GW/{number}" for number in range(600)]
    await import_devices(admin, "GW", *names, versions={"version": "1.0"})
    exported = (await admin.api.get("/devices-export")).content.splitlines()
    assert {json.loads(line)["identifier"] for line in exported} == {"GW", *names}
    counts = checked(await admin.api.get("/device-types/DU/versions"), 200)
    assert (counts["devices"], counts["unreadable"]) == (601, 0)
    assert (await admin.api.delete("/devices/GW?children=true")).status_code == 204
    assert await listed(admin) == []
