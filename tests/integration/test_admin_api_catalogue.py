"""`/device-types` and `/rules`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from ota_hook.model import CatalogueChange, DocumentKind
from ota_hook.snapshot import Snapshot
from tests.integration.admin_service import Admin, checked, problem

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def test_a_device_type_has_its_documented_defaults(admin: Admin) -> None:
    created = await admin.api.post("/device-types", json={"key": "DU"})
    document = checked(created, 201)
    assert created.headers["location"] == "/api/v1/device-types/DU"
    assert document.pop("created_at").endswith("Z")
    assert document == {
        "key": "DU",
        "name": "DU",
        "version_scheme": "auto",
        "version_attributes": ["version"],
        "command_extras": [],
        "responses_enabled": False,
        "auto_register": False,
        "children_register": True,
        "revision": 1,
    }
    read = await admin.api.get("/device-types/DU")
    assert checked(read, 200) == created.json()
    assert read.headers["etag"] == created.headers["etag"]


async def test_a_new_device_type_has_its_default_rule(admin: Admin) -> None:
    await admin.create_type()
    (rule,) = checked(await admin.api.get("/rules?device_type=DU"), 200)["items"]
    asked = {name: rule[name] for name in ("device_type", "event", "version_attribute", "module", "enabled")}
    assert asked == {
        "device_type": "DU",
        "event": "otaCheck",
        "version_attribute": "version",
        "module": "main",
        "enabled": True,
    }


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"key": "a/b"}, "key"),
        ({"key": ""}, "key"),
        ({"key": "x" * 65}, "key"),
        ({"key": 5}, "key"),
        ({"name": "a\nb"}, "name"),
        ({"name": "n" * 129}, "name"),
        ({"version_scheme": "calver"}, "version_scheme"),
        ({"version_attributes": []}, "version_attributes"),
        ({"version_attributes": ["a"] * 2}, "version_attributes"),
        ({"version_attributes": [str(n) for n in range(17)]}, "version_attributes"),
        ({"version_attributes": ["ä" * 65]}, "version_attributes.0"),
        ({"version_attributes": "version"}, "version_attributes"),
        ({"command_extras": ["signature"]}, "command_extras.0"),
        ({"command_extras": ["sha1"]}, "command_extras.0"),
        ({"command_extras": ["sha256", "sha256"]}, "command_extras"),
        ({"responses_enabled": "yes"}, "responses_enabled"),
        ({"auto_register": 1}, "auto_register"),
        ({"children_register": "false"}, "children_register"),
        ({"revision": 3}, "revision"),
        ({"created_at": "2026-01-01T00:00:00Z"}, "created_at"),
    ],
)
async def test_a_bad_field_of_a_device_type_is_refused_by_name(
    admin: Admin, fields: dict[str, Any], field: str
) -> None:
    document = problem(await admin.api.post("/device-types", json={"key": "DU"} | fields), 422)
    assert [error["field"] for error in document["errors"]] == [field]
    assert checked(await admin.api.get("/device-types"), 200)["items"] == []


async def test_what_comes_later_says_so(admin: Admin) -> None:
    document = problem(await admin.api.post("/device-types", json={"key": "DU", "command_extras": ["signature"]}), 422)
    assert "not available yet" in document["detail"]


async def test_every_field_of_a_device_type_is_kept(admin: Admin) -> None:
    fields = {
        "name": "采集器 1",
        "version_scheme": "semver",
        "version_attributes": ["version", "mcu_version"],
        "command_extras": ["sha256", "crc32"],
        "auto_register": True,
        "responses_enabled": True,
        "children_register": False,
    }
    document = await admin.create_type("du-2.x_y", **fields)
    assert {name: document[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("scheme", "version", "no_version"),
    [
        ("auto", "GD32_V1.0.2", "stable"),
        ("semver", "1.0.0-rc.1", "1.0"),
        ("pep440", "1.0.post1", "1.0-hotfix"),
        ("debian", "1:1.0~rc1-2", "v1.0"),
    ],
)
async def test_a_device_type_takes_the_versions_of_its_scheme_alone(
    admin: Admin, scheme: str, version: str, no_version: str
) -> None:
    assert (await admin.create_type(version_scheme=scheme))["version_scheme"] == scheme
    await admin.create_firmware(version)
    document = problem(await admin.upload(no_version), 422)
    assert [error["field"] for error in document["errors"]] == ["version"]
    assert f"'{scheme}'" in document["detail"]


async def test_a_second_device_type_of_a_key_is_refused(admin: Admin) -> None:
    await admin.create_type()
    problem(await admin.api.post("/device-types", json={"key": "DU"}), 409)


async def test_put_creates_and_then_replaces(admin: Admin) -> None:
    created = await admin.api.put("/device-types/DU", json={"name": "one", "auto_register": True})
    assert checked(created, 201)["auto_register"] is True
    assert created.headers["location"] == "/api/v1/device-types/DU"
    replaced = await admin.api.put("/device-types/DU", json={"key": "DU", "name": "two"})
    document = checked(replaced, 200)
    assert (document["name"], document["auto_register"], document["revision"]) == ("two", False, 2)
    assert document["created_at"] == created.json()["created_at"]
    assert len(checked(await admin.api.get("/rules"), 200)["items"]) == 1


@pytest.mark.parametrize(
    ("path", "body"), [("/device-types/DU", {"key": "other"}), ("/device-types/a%20b", {"name": "x"})]
)
async def test_put_with_a_bad_key_is_refused(admin: Admin, path: str, body: dict[str, Any]) -> None:
    document = problem(await admin.api.put(path, json=body), 422)
    assert document["errors"][0]["field"] == "key"


async def test_patch_merges(admin: Admin) -> None:
    await admin.create_type(name="one", command_extras=["sha256"], auto_register=True)
    patched = checked(await admin.api.patch("/device-types/DU", json={"name": "two", "auto_register": False}), 200)
    assert (patched["name"], patched["auto_register"], patched["command_extras"]) == ("two", False, ["sha256"])
    headers = {"Content-Type": "application/merge-patch+json"}
    emptied = await admin.api.patch("/device-types/DU", content=b'{"command_extras": []}', headers=headers)
    assert checked(emptied, 200)["command_extras"] == []
    assert emptied.json()["name"] == "two"


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "name",
        "version_scheme",
        "version_attributes",
        "command_extras",
        "responses_enabled",
        "auto_register",
        "children_register",
    ],
)
async def test_null_does_not_set_a_field_of_a_device_type_back(admin: Admin, name: str) -> None:
    before = await admin.create_type(name="one", version_scheme="semver", auto_register=True, children_register=False)
    document = problem(await admin.api.patch("/device-types/DU", json={name: None}), 422)
    assert [error["field"] for error in document["errors"]] == [name]
    assert f"`{name}` can't be null" in document["detail"]
    assert checked(await admin.api.get("/device-types/DU"), 200) == before


async def test_an_unknown_field_that_is_null_is_no_field_either(admin: Admin) -> None:
    await admin.create_type()
    document = problem(await admin.api.patch("/device-types/DU", json={"colour": None}), 422)
    assert document["detail"] == "`colour`: there is no such field."
    document = problem(await admin.api.patch("/device-types/DU", json={"revision": 1}), 422)
    assert document["detail"] == "`revision` can't be changed."


@pytest.mark.parametrize(
    "patch", [{"key": "B"}, {"colour": 1}, {"name": {"a": None}}, {"version_attributes": None, "auto_register": 2}]
)
async def test_a_bad_patch_is_refused_and_changes_nothing(admin: Admin, patch: dict[str, Any]) -> None:
    before = await admin.create_type()
    problem(await admin.api.patch("/device-types/DU", json=patch), 422)
    assert checked(await admin.api.get("/device-types/DU"), 200) == before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("if_match", "stale"),
    [
        ("{etag}", False),
        ("*", False),
        ('"7", {etag}', False),
        ('"1"', True),
        ("W/{etag}", True),
        ('""', True),
        ('"7" , "8"', True),
    ],
)
async def test_if_match_is_held_to(admin: Admin, method: str, if_match: str, stale: bool) -> None:
    await admin.create_type()
    etag = (await admin.api.get("/device-types/DU")).headers["etag"]
    body = None if method == "DELETE" else {"name": "new"}
    headers = {"If-Match": if_match.format(etag=etag)}
    answer = await admin.api.request(method, "/device-types/DU", json=body, headers=headers)
    if stale:
        problem(answer, 412)
        assert checked(await admin.api.get("/device-types/DU"), 200)["revision"] == 1
    else:
        assert answer.status_code == (204 if method == "DELETE" else 200)


@pytest.mark.parametrize("kind", ["device-types", "rules"])
async def test_what_was_deleted_and_made_anew_is_not_what_if_match_means(admin: Admin, kind: str) -> None:
    await admin.create_type("other")
    path = {"device-types": "/device-types/DU", "rules": f"/rules/{ULID}"}[kind]
    body = {} if kind == "device-types" else {"device_type": "other", "event": "mine"}
    stale = (await admin.api.put(path, json=body)).headers["etag"]
    assert (await admin.api.delete(path, headers={"If-Match": stale})).status_code == 204
    checked(await admin.api.put(path, json=body), 201)
    problem(await admin.api.patch(path, json={"name": "new"}, headers={"If-Match": stale}), 412)
    problem(await admin.api.delete(path, headers={"If-Match": stale}), 412)


async def test_conditions_of_a_put_that_would_create(admin: Admin) -> None:
    problem(await admin.api.put("/device-types/DU", json={}, headers={"If-Match": "*"}), 412)
    checked(await admin.api.put("/device-types/DU", json={}, headers={"If-None-Match": "*"}), 201)
    problem(await admin.api.put("/device-types/DU", json={}, headers={"If-None-Match": "*"}), 412)


async def test_a_condition_that_can_not_be_read_is_refused(admin: Admin) -> None:
    await admin.create_type()
    problem(await admin.api.delete("/device-types/DU", headers={"If-Match": "1"}), 422)


@pytest.mark.parametrize("if_none_match", ["{etag}", "W/{etag}", "*", '"0", {etag}'])
async def test_a_reader_that_has_it_is_told_so(admin: Admin, if_none_match: str) -> None:
    await admin.create_type()
    etag = (await admin.api.get("/device-types/DU")).headers["etag"]
    if_none_match = if_none_match.format(etag=etag)
    answer = await admin.api.get("/device-types/DU", headers={"If-None-Match": if_none_match})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    await admin.api.patch("/device-types/DU", json={"name": "new"})
    expected = 304 if if_none_match == "*" else 200
    answer = await admin.api.get("/device-types/DU", headers={"If-None-Match": if_none_match})
    assert answer.status_code == expected


async def test_lists_are_cut_into_pages(admin: Admin) -> None:
    keys = [f"T{n}" for n in range(5)]
    for key in reversed(keys):
        await admin.create_type(key)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = f"?limit=2&cursor={cursor}" if cursor else "?limit=2"
        page = checked(await admin.api.get(f"/device-types{query}"), 200)
        assert len(page["items"]) <= 2
        seen += [item["key"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == keys


async def test_a_device_type_in_use_is_not_deleted(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1")
    assert "DU_1" in problem(await admin.api.delete("/device-types/DU"), 409)["detail"]
    await admin.api.delete("/devices/DU_1")
    firmware = await admin.create_firmware()
    assert firmware["id"] in problem(await admin.api.delete("/device-types/DU"), 409)["detail"]
    await admin.api.delete(f"/firmware/{firmware['id']}")
    assert (await admin.api.delete("/device-types/DU")).status_code == 204
    problem(await admin.api.get("/device-types/DU"), 404)
    assert checked(await admin.api.get("/rules"), 200)["items"] == []


async def test_a_device_type_is_there_again_where_devices_came_while_it_was_deleted(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.create_type("DU", version_scheme="semver")
    change = admin.context.catalogue.change

    async def change_late(decide: Callable[[Snapshot], Sequence[CatalogueChange]]) -> Snapshot:
        monkeypatch.setattr(admin.context.catalogue, "change", change)
        await admin.context.devices.put_device("late", "DU", {"version": "1.0.0"})
        return await change(decide)

    before = [checked(await admin.api.get(path), 200) for path in ("/device-types/DU", "/rules")]
    monkeypatch.setattr(admin.context.catalogue, "change", change_late)
    said = problem(await admin.api.delete("/device-types/DU"), 409)
    assert "late" in said["detail"]
    after = [checked(await admin.api.get(path), 200) for path in ("/device-types/DU", "/rules")]
    assert after[0] == before[0] | {"revision": 2}
    assert [rule["id"] for rule in after[1]["items"]] == [rule["id"] for rule in before[1]["items"]]


async def test_an_import_stops_where_its_device_type_was_deleted_meanwhile(admin: Admin) -> None:
    """Else its devices would get the firmware of a type that is made anew under the same key."""
    await admin.create_type()
    line = b'{"identifier":"%b","type":"DU","versions":{"version":"1.0"}}\n'

    async def body() -> AsyncIterator[bytes]:
        yield line % b"o1"
        assert (await admin.api.delete("/device-types/DU")).status_code == 204
        yield line % b"o2"

    imported = await admin.api.post("/devices-import", content=body(), headers={"Content-Type": "application/x-ndjson"})
    assert "DU" in problem(imported, 409)["detail"]
    problem(await admin.api.get("/devices/o1"), 404)


async def test_an_attribute_that_a_rule_uses_stays(admin: Admin) -> None:
    await admin.create_type()
    problem(await admin.api.patch("/device-types/DU", json={"version_attributes": ["mcu"]}), 409)


async def test_a_scheme_that_refuses_a_firmwares_version_is_refused(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_firmware("V100R001")
    problem(await admin.api.patch("/device-types/DU", json={"version_scheme": "semver"}), 409)


# ---- rules


async def test_a_rule_has_its_documented_defaults(admin: Admin) -> None:
    await admin.create_type()
    default = checked(await admin.api.get("/rules"), 200)["items"][0]
    assert (await admin.api.delete(f"/rules/{default['id']}")).status_code == 204
    created = await admin.api.post("/rules", json={"device_type": "DU"})
    document = checked(created, 201)
    assert created.headers["location"] == f"/api/v1/rules/{document['id']}"
    assert {k: document[k] for k in ("name", "event", "version_attribute", "module", "enabled", "notice")} == {
        "name": "otaCheck",
        "event": "otaCheck",
        "version_attribute": "version",
        "module": "main",
        "enabled": True,
        "notice": None,
    }


async def test_an_identical_rule_is_returned(admin: Admin) -> None:
    await admin.create_type()
    body = {"device_type": "DU", "event": "gpsCheck", "module": "gps"}
    first = await admin.api.post("/rules", json=body)
    again = await admin.api.post("/rules", json=body)
    assert checked(again, 200) == checked(first, 201)
    assert len(checked(await admin.api.get("/rules"), 200)["items"]) == 2


async def test_a_rule_that_differs_under_the_same_question_is_refused(admin: Admin) -> None:
    await admin.create_type()
    default = checked(await admin.api.get("/rules"), 200)["items"][0]
    document = problem(await admin.api.post("/rules", json={"device_type": "DU", "name": "other"}), 409)
    assert default["id"] in document["detail"]


async def test_a_rule_that_names_a_new_attribute_widens_its_type_and_says_so(admin: Admin) -> None:
    await admin.create_type()
    body = {"device_type": "DU", "event": "mcuCheck", "version_attribute": "mcu_version", "module": "mcu"}
    document = checked(await admin.api.post("/rules", json=body), 201)
    assert "'mcu_version' is new to the device type: devices must report once more" in document["notice"]
    device_type = checked(await admin.api.get("/device-types/DU"), 200)
    assert device_type["version_attributes"] == ["version", "mcu_version"]
    assert device_type["revision"] == 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"device_type": "none"}, "device_type"),
        ({"device_type": None}, "device_type"),
        ({"module": "a/b"}, "module"),
        ({"event": ""}, "event"),
        ({"event": "e" * 129}, "event"),
        ({"version_attribute": ""}, "version_attribute"),
        ({"enabled": "yes"}, "enabled"),
        ({"id": ULID}, "id"),
    ],
)
async def test_a_bad_field_of_a_rule_is_refused_by_name(admin: Admin, fields: dict[str, Any], field: str) -> None:
    await admin.create_type()
    document = problem(await admin.api.post("/rules", json={"device_type": "DU", "event": "e"} | fields), 422)
    assert [error["field"] for error in document["errors"]] == [field]


async def test_put_of_a_rule_takes_the_clients_id(admin: Admin) -> None:
    await admin.create_type()
    body = {"device_type": "DU", "event": "e"}
    assert checked(await admin.api.put(f"/rules/{ULID}", json=body), 201)["id"] == ULID
    replaced = checked(await admin.api.put(f"/rules/{ULID}", json=body | {"enabled": False}), 200)
    assert (replaced["enabled"], replaced["revision"]) == (False, 2)
    problem(await admin.api.put("/rules/not-a-ulid", json=body), 422)


async def test_a_rule_is_patched_within_its_type(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("B")
    rule = checked(await admin.api.get("/rules?device_type=DU"), 200)["items"][0]
    path = f"/rules/{rule['id']}"
    patched = checked(await admin.api.patch(path, json={"enabled": False, "event": "upgradeCheck"}), 200)
    assert (patched["enabled"], patched["event"]) == (False, "upgradeCheck")
    for name in ("name", "device_type", "event", "version_attribute", "module", "enabled"):
        document = problem(await admin.api.patch(path, json={name: None}), 422)
        assert [error["field"] for error in document["errors"]] == [name]
    assert checked(await admin.api.get(path), 200) == patched
    problem(await admin.api.patch(path, json={"device_type": "B"}), 422)
    problem(await admin.api.patch(path, json={"id": ULID}), 422)
    problem(await admin.api.patch(path, json={"name": "x"}, headers={"If-Match": '"1"'}), 412)


async def test_rules_are_filtered(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("B")
    await admin.api.post("/rules", json={"device_type": "DU", "event": "e", "module": "mcu", "enabled": False})

    async def count(query: str) -> int:
        return len(checked(await admin.api.get(f"/rules?{query}"), 200)["items"])

    assert await count("device_type=DU") == 2
    assert await count("device_type=DU&enabled=true") == 1
    assert await count("module=mcu") == 1
    assert await count("event=otaCheck") == 2
    assert await count("enabled=false&module=main") == 0


async def test_a_change_is_in_force_when_it_is_answered(admin: Admin) -> None:
    await admin.create_type()
    rule = checked(await admin.api.get("/rules"), 200)["items"][0]
    catalogue = admin.context.catalogue
    assert catalogue.current.rules_for("DU", "otaCheck")
    await admin.api.patch(f"/rules/{rule['id']}", json={"enabled": False})
    assert not catalogue.current.rules_for("DU", "otaCheck")
    assert DocumentKind.RULE not in {refused.kind for refused in getattr(catalogue, "refused", ())}
