"""What is stored and can't be used: nobody is offered it, nothing of it is lost, and it can be seen and mended."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from ota_hook.bootstrap.admin import sweep_packages
from ota_hook.model import DocumentKind
from tests.integration.admin_service import Admin, admin_role, checked, problem

NDJSON = {"Content-Type": "application/x-ndjson"}


async def test_the_package_of_a_firmware_that_can_not_be_used_is_not_swept(admin: Admin) -> None:
    """Whatever the reason is: it may be mended, and then the package must be there."""
    await admin.create_type()
    await admin.create_type("DV")
    listed = await admin.create_firmware("1.1", devices=["d1"])
    unreadable = await admin.create_firmware("1.2", tags=["x"])
    of_a_broken_type = await admin.create_firmware("1.3", device_type="DV", tags=["x"])
    deleted = await admin.create_firmware("1.4", tags=["x"])
    await admin.api.delete(f"/firmware/{deleted['id']}")
    orphan = admin.packages / deleted["id"]
    orphan.write_bytes(b"left by a kill")
    for path in admin.packages.iterdir():
        os.utime(path, (1, 1))
    (digests,) = [key async for key in admin.redis.scan_iter(match=f"{admin.keys.prefix}:*:digests")]
    await admin.redis.delete(digests)
    await admin.redis.hset(admin.keys.documents(DocumentKind.FIRMWARE), unreadable["id"], "{")
    await admin.redis.hset(admin.keys.documents(DocumentKind.DEVICE_TYPE), "DV", "{")
    async with a_new_process(admin) as fresh:
        await sweep_packages(fresh.context.packages, fresh.context.catalogue)  # type: ignore[arg-type]
        assert len(fresh.context.catalogue.current.refused) == 4
    assert admin.files() == {listed["id"], unreadable["id"], of_a_broken_type["id"]}


async def test_a_refused_firmware_is_told_of_with_its_reason_and_can_be_given_a_list_anew(admin: Admin) -> None:
    await admin.create_type()
    firmware = await admin.create_firmware("1.1", devices=["d1"])
    path = f"/firmware/{firmware['id']}"
    tag = (await admin.api.get(path)).headers["etag"]
    await lose_digests(admin)
    async with a_new_process(admin) as fresh:
        said = problem(await fresh.api.get(path), 409)
        assert "device list" in said["detail"]
        assert "PUT" in said["mend"]
        problem(await fresh.api.patch(path, json={"name": "n"}), 409)
        problem(await fresh.api.get(f"{path}/devices"), 409)
        problem(await fresh.api.post(f"{path}/devices", content=b'"d2"\n', headers=NDJSON), 409)
        assert checked(await fresh.api.get("/firmware"), 200)["items"] == []
        assert checked(await fresh.open.get("/readyz"), 200) == {"status": "ok", "refused_documents": 1}
        listed = checked(await fresh.api.get("/refused-documents"), 200)["items"]
        assert [(item["kind"], item["key"]) for item in listed] == [("firmware", firmware["id"])]
        stale = {**NDJSON, "If-Match": '"1-1"'}
        problem(await fresh.api.put(f"{path}/devices", content=b'"d2"\n', headers=stale), 412)
        put = await fresh.api.put(f"{path}/devices", content=b'"d2"\n', headers={**NDJSON, "If-Match": tag})
        assert checked(put, 200)["count"] == 1
        mended = await fresh.api.get(path)
        assert checked(mended, 200)["devices"] == ["d2"]
        assert mended.headers["etag"] == put.headers["etag"] != tag
        assert checked(await fresh.open.get("/readyz"), 200) == {"status": "ok"}


async def test_a_refused_firmware_can_be_deleted(admin: Admin) -> None:
    await admin.create_type()
    readable, unreadable = await admin.create_firmware("1.1", devices=["d1"]), await admin.create_firmware("1.2")
    await lose_digests(admin)
    await admin.redis.hset(admin.keys.documents(DocumentKind.FIRMWARE), unreadable["id"], "{")
    async with a_new_process(admin) as fresh:
        assert "delete it." in problem(await fresh.api.get(f"/firmware/{unreadable['id']}"), 409)["mend"]
        assert (
            await fresh.api.delete(f"/firmware/{unreadable['id']}", headers={"If-Match": '"1-1"'})
        ).status_code == 412
        for firmware, then in ((readable, 410), (unreadable, 404)):
            assert (await fresh.api.delete(f"/firmware/{firmware['id']}")).status_code == 204
            problem(await fresh.api.get(f"/firmware/{firmware['id']}"), then)
        assert checked(await fresh.api.get("/refused-documents"), 200)["items"] == []
    assert admin.files() == set()


async def test_a_device_type_is_not_created_over_one_that_is_refused(admin: Admin) -> None:
    await admin.create_type("DU", version_scheme="semver", version_attributes=["version", "mcu"])
    rule = checked(
        await admin.api.post("/rules", json={"device_type": "DU", "event": "e", "version_attribute": "mcu"}), 201
    )
    firmware = await admin.create_firmware("1.0.0")
    await admin.create_device("d1")
    await admin.redis.hset(admin.keys.documents(DocumentKind.DEVICE_TYPE), "DU", '{"version_scheme":"bogus"}')
    async with a_new_process(admin) as fresh:
        problem(await fresh.api.get("/device-types/DU"), 409)
        problem(await fresh.api.post("/device-types", json={"key": "DU"}), 409)
        problem(await fresh.api.delete("/device-types/DU"), 409)
        assert "can't be used" in problem(await fresh.api.put("/devices/d2", json={"type": "DU"}), 422)["detail"]
        body = {"version_scheme": "semver"}
        problem(await fresh.api.put("/device-types/DU", json=body, headers={"If-None-Match": "*"}), 412)
        put = checked(await fresh.api.put("/device-types/DU", json=body), 201)
        assert put["version_attributes"] == ["version", "mcu"]
        rules = checked(await fresh.api.get("/rules"), 200)["items"]
        assert sorted((found["event"], found["module"]) for found in rules) == [("e", "main"), ("otaCheck", "main")]
        assert rule["id"] in {found["id"] for found in rules}
        await fresh.api.patch("/device-types/DU", json={"name": "n"})
        assert checked(await fresh.api.get(f"/firmware/{firmware['id']}"), 200)["version"] == "1.0.0"


async def test_a_refused_rule_is_told_of_and_can_be_put_anew_or_deleted(admin: Admin) -> None:
    await admin.create_type()
    (rule,) = checked(await admin.api.get("/rules"), 200)["items"]
    rules = admin.keys.documents(DocumentKind.RULE)
    await admin.redis.hset(rules, rule["id"], "{")
    await admin.redis.hset(rules, "by-hand", "{")
    async with a_new_process(admin) as fresh:
        for key in (rule["id"], "by-hand"):
            problem(await fresh.api.get(f"/rules/{key}"), 409)
        assert (await fresh.api.delete("/rules/by-hand")).status_code == 204
        problem(await fresh.api.delete("/rules/by-hand"), 404)
        checked(await fresh.api.put(f"/rules/{rule['id']}", json={"device_type": "DU"}), 201)
        assert checked(await fresh.api.get("/refused-documents"), 200)["items"] == []


async def test_a_list_whose_identifiers_are_lost_is_no_empty_list(admin: Admin) -> None:
    await admin.create_type()
    firmware = await admin.create_firmware("1.1", devices=["d1", "d2"])
    path = f"/firmware/{firmware['id']}"
    (digests,) = [key async for key in admin.redis.scan_iter(match=f"{admin.keys.prefix}:*:digests")]
    await admin.redis.delete(digests.removesuffix(b":digests"))
    async with a_new_process(admin) as fresh:
        shown = checked(await fresh.api.get(path), 200)
        assert (shown["devices"], shown["devices_count"], shown["devices_truncated"]) == ([], 2, True)
        problem(await fresh.api.get(f"{path}/devices"), 409)
        problem(await fresh.api.post(f"{path}/devices", content=b'"d3"\n', headers=NDJSON), 409)
        assert checked(await fresh.api.get(path), 200)["devices_count"] == 2
        assert checked(await fresh.api.put(f"{path}/devices", content=b'"d3"\n', headers=NDJSON), 200)["count"] == 1


async def test_a_list_that_breaks_off_is_not_taken_for_whole(admin: Admin) -> None:
    await admin.create_type()
    firmware = await admin.create_firmware("1.1", devices=[f"device-{number}" for number in range(2_000)])
    (digests,) = [key async for key in admin.redis.scan_iter(match=f"{admin.keys.prefix}:*:digests")]
    await admin.redis.rpop(digests.removesuffix(b":digests"))
    with pytest.raises(httpx.RemoteProtocolError):
        await admin.api.get(f"/firmware/{firmware['id']}/devices")


async def lose_digests(admin: Admin) -> None:
    async for key in admin.redis.scan_iter(match=f"{admin.keys.prefix}:*:digests"):
        await admin.redis.delete(key)


@asynccontextmanager
async def a_new_process(admin: Admin) -> AsyncIterator[Admin]:
    """Another admin role on the same data."""
    async with admin_role(admin.redis_url, admin.packages.parent, prefix=admin.keys.prefix) as fresh:
        yield fresh
