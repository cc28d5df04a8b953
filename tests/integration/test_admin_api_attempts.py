"""`/attempts`: what devices tried in vain, what a check says of it, and the reset."""

from __future__ import annotations

from typing import Any

import pytest

from ota_hook.model import OpenOffer, Outcome
from ota_hook.progress import Said
from tests.integration.admin_service import Admin, checked, problem

HOUR_MS = 3_600_000
MOST = 10


async def fail(admin: Admin, device: str, firmware: dict[str, Any], *, times: int, from_hour: int = 0) -> None:
    """The device says `times` hours in a row that it failed."""
    for hour in range(from_hour, from_hour + times):
        offer = OpenOffer(
            module="main",
            firmware_id=firmware["id"],
            version_attribute="version",
            version=firmware["version"],
            from_version="1.0",
            command_ids=(98_310 + hour,),
            offered_at_ms=hour * HOUR_MS,
        )
        await admin.hook.record(device, offer)
        said = Said(98_310 + hour, None, Outcome.FAILED, "verify_failed")
        admin.hook.offers.track_offer(device, said, at_ms=hour * HOUR_MS)
        await admin.hook.noted()


async def test_a_firmware_that_failed_ten_times_is_shown_as_exhausted_and_offered_again_after_a_reset(
    admin: Admin,
) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"}, tags=["trial"])
    firmware = await admin.create_firmware("2.0")
    await fail(admin, "DU_1", firmware, times=MOST - 1)
    assert checked(await admin.api.get("/check?device=DU_1"), 200)["offer"]["version"] == "2.0"
    await fail(admin, "DU_1", firmware, times=1, from_hour=MOST)

    checked_device = checked(await admin.api.get("/check?device=DU_1"), 200)
    assert (checked_device["offer"], checked_device["reason"]) == (None, "attempts_exhausted")
    (entry,) = checked_device["firmware"]
    assert (entry["chosen"], entry["reasons"]) == (False, ["attempts_exhausted"])
    device = checked(await admin.api.get("/devices/DU_1"), 200)
    assert (device["exhausted_firmware"], device["tags"]) == ([firmware["id"]], ["trial"])
    expected = {
        "device": "DU_1",
        "firmware_id": firmware["id"],
        "attempts": MOST,
        "last_at": "1970-01-01T10:00:00.000Z",
        "exhausted": True,
    }
    for query in ("device=DU_1", f"firmware={firmware['id']}", f"firmware={firmware['id']}&exhausted=true"):
        assert checked(await admin.api.get(f"/attempts?{query}"), 200) == {"items": [expected], "next_cursor": None}

    for _ in range(2):
        assert (await admin.api.delete("/attempts?device=DU_1")).status_code == 204
    assert checked(await admin.api.get("/attempts?device=DU_1"), 200)["items"] == []
    assert checked(await admin.api.get("/check?device=DU_1"), 200)["offer"]["version"] == "2.0"


async def test_an_older_firmware_that_is_newer_still_is_offered_instead(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"})
    await admin.create_firmware("2.0")
    newest = await admin.create_firmware("3.0")
    await fail(admin, "DU_1", newest, times=MOST)
    answer = checked(await admin.api.get("/check?device=DU_1"), 200)
    assert (answer["offer"]["version"], answer["reason"]) == ("2.0", None)
    assert [(entry["version"], entry["reasons"]) for entry in answer["firmware"]] == [
        ("3.0", ["attempts_exhausted"]),
        ("2.0", []),
    ]


async def test_a_reset_of_a_firmware_is_for_every_device_and_its_deletion_resets_it(admin: Admin) -> None:
    await admin.create_type()
    kept, gone = await admin.create_firmware("2.0"), await admin.create_firmware("3.0")
    for name in ("DU_1", "设备"):
        await admin.create_device(name, versions={"version": "1.0"})
        for firmware in (kept, gone):
            await fail(admin, name, firmware, times=MOST)
    assert (await admin.api.delete(f"/attempts?firmware={kept['id']}")).status_code == 204
    assert (await admin.api.delete(f"/firmware/{gone['id']}")).status_code == 204
    for name in ("DU_1", "设备"):
        assert checked(await admin.api.get(f"/devices/{name}"), 200)["exhausted_firmware"] == []
        assert checked(await admin.api.get("/attempts", params={"device": name}), 200)["items"] == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_whose_attempts_must_be_said_and_be_there(admin: Admin, method: str) -> None:
    for query, status in (
        ("", 422),
        ("device=nobody", 404),
        ("device=%00", 404),
        ("firmware=none", 404),
        ("device=nobody&firmware=none", 404),
        ("devices=d", 422),
    ):
        problem(await admin.api.request(method, f"/attempts?{query}"), status)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_of_a_device_that_is_there_too_the_firmware_must_be_there(admin: Admin, method: str) -> None:
    await admin.create_type()
    await admin.create_device("DU_1", versions={"version": "1.0"})
    said = problem(await admin.api.request(method, "/attempts?device=DU_1&firmware=none"), 404)
    assert said["detail"] == "There is no firmware 'none'."


async def test_a_device_page_takes_no_cursor_that_is_none(admin: Admin) -> None:
    await admin.create_type()
    firmware = await admin.create_firmware("2.0")
    assert problem(await admin.api.get(f"/attempts?firmware={firmware['id']}&cursor=x"), 422)
