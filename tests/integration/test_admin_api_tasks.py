"""`/tasks`: what is kept, refused and said of a task, and making its runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ota_hook.model import Once
from ota_hook.ports.devices import DeviceEntry
from ota_hook.task import RunHead, RunState
from tests.integration.admin_service import Admin, admin_role, checked, problem

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NIGHTLY = {"kind": "repeat", "days": ["weekdays"], "times": ["02:30"], "zone": "Asia/Shanghai"}
TARGET = {"device_type": "DU"}


async def create_task(admin: Admin, **fields: Any) -> dict[str, Any]:
    return checked(await admin.api.post("/tasks", json={"name": "夜间升级", "target": TARGET} | fields), 201)


async def register(admin: Admin, *identifiers: str, device_type: str = "DU") -> None:
    importing = await admin.context.devices.begin_import()
    await importing.write([DeviceEntry(identifier, device_type) for identifier in identifiers])


async def open_run(admin: Admin, task_id: str) -> dict[str, Any]:
    return checked(await admin.api.post(f"/tasks/{task_id}/runs"), 202)


async def end_run(admin: Admin, run_id: str) -> None:
    """What a worker does with a run that is cancelled."""
    runs = admin.context.runs
    run = await runs.load_run(run_id)
    assert run is not None
    await runs.set_state(run.head, RunState.CANCELLED, of=list(RunState), reason="", now_ms=1)
    await runs.close(run.head)


async def test_a_task_has_its_documented_defaults(admin: Admin) -> None:
    await admin.create_type()
    created = await admin.api.post("/tasks", json={"name": "夜间升级", "target": TARGET})
    document = checked(created, 201)
    assert created.headers["location"] == f"/api/v1/tasks/{document['id']}"
    read = await admin.api.get(f"/tasks/{document['id']}")
    assert checked(read, 200) == created.json()
    assert read.headers["etag"] == created.headers["etag"]
    assert document.pop("created_at").endswith("Z")
    assert len(document.pop("id")) == 26
    assert document == {
        "name": "夜间升级",
        "target": {"device_type": "DU"},
        "version_attribute": None,
        "module": None,
        "schedule": {"kind": "manual"},
        "schedule_text": "when somebody asks",
        "missed": "run",
        "enabled": True,
        "rate_per_minute": None,
        "ramp_from_per_minute": None,
        "max_concurrent": None,
        "jitter_seconds": 0,
        "window": None,
        "timeout_seconds": 3600,
        "expires_seconds": 604800,
        "retries": 0,
        "backoff_seconds": 300,
        "stop_percent": 50,
        "stop_after": 20,
        "revision": 1,
        "next_due": None,
        "open_run": None,
        "skipped": [],
        "notice": None,
    }


async def test_the_stop_is_switched_off_by_null_and_stays_so(admin: Admin) -> None:
    await admin.create_type()
    task_id = (await create_task(admin, stop_percent=None))["id"]
    patched = checked(await admin.api.patch(f"/tasks/{task_id}", json={"name": "other"}), 200)
    assert (patched["name"], patched["stop_percent"]) == ("other", None)
    schema = (await admin.api.get("/openapi.json")).json()["components"]["schemas"]["TaskFields"]["properties"]
    assert schema["stop_percent"]["default"] == 50


async def test_every_field_of_a_task_is_kept(admin: Admin) -> None:
    await admin.create_type()
    fields = {
        "name": "pilot",
        "target": {"devices": ["d2", "d1"]},
        "version_attribute": "mcu",
        "module": "mcu",
        "schedule": {"kind": "repeat", "days": ["mon", "sun"], "times": ["02:30", "14:00"], "zone": "Asia/Shanghai"},
        "missed": "skip",
        "enabled": False,
        "rate_per_minute": 600,
        "ramp_from_per_minute": 10,
        "max_concurrent": 50,
        "jitter_seconds": 5,
        "window": {"zone": "UTC", "days": ["mon", "tue"], "start": "22:00", "end": "04:00"},
        "timeout_seconds": 900,
        "expires_seconds": 86400,
        "retries": 2,
        "backoff_seconds": 60,
        "stop_percent": 20,
        "stop_after": 5,
    }
    document = checked(await admin.api.post("/tasks", json=fields), 201)
    assert {name: document[name] for name in fields} == fields
    put = await admin.api.put(f"/tasks/{document['id']}", json={name: document[name] for name in fields})
    assert {name: checked(put, 200)[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (NIGHTLY, "weekdays at 02:30, Asia/Shanghai"),
        ({"kind": "once", "at": "2999-01-31T08:00:00.000Z"}, "once, 2999-01-31 08:00 UTC"),
        ({"kind": "repeat", "cron": "30 2 * * 1-5", "zone": "UTC"}, "UTC"),
        ({"kind": "interval", "every_seconds": 7200, "from": "2020-01-01T00:00:00.000Z"}, "every 2 hours since"),
    ],
)
async def test_a_schedule_says_when_it_is_due_next(admin: Admin, schedule: dict[str, Any], text: str) -> None:
    await admin.create_type()
    document = await create_task(admin, schedule=schedule)
    assert document["schedule"] == schedule | (
        {"days": ["mon", "tue", "wed", "thu", "fri"]} if "days" in schedule else {}
    )
    assert text in document["schedule_text"]
    assert document["next_due"].endswith("Z")
    shown = checked(await admin.api.get("/tasks"), 200)["items"]
    assert [(task["id"], task["next_due"]) for task in shown] == [(document["id"], document["next_due"])]


async def test_an_interval_counts_from_now_where_nothing_else_is_said(admin: Admin) -> None:
    await admin.create_type()
    document = await create_task(admin, schedule={"kind": "interval", "every_seconds": 3600})
    assert document["schedule"]["from"] == document["created_at"]
    assert document["next_due"] > document["created_at"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"target": {}}, "target"),
        ({"target": {"device_type": "DU", "devices": ["d1"]}}, "target"),
        ({"target": {"device_type": "nobody"}}, "target.device_type"),
        ({"target": {"devices": []}}, "target.devices"),
        ({"target": {"devices": ["d1", "d1"]}}, "target.devices"),
        ({"target": {"devices": ["a//b"]}}, "target.devices.0"),
        ({"target": {"devices": [f"d{n}" for n in range(10_001)]}}, "target.devices"),
        ({"target": {"tag": "x"}}, "target.tag"),
        ({"module": "gps"}, "version_attribute"),
        ({"version_attribute": "gps"}, "module"),
        ({"schedule": {"kind": "sometimes"}}, "schedule.kind"),
        ({"schedule": {"kind": "manual", "zone": "UTC"}}, "schedule.zone"),
        ({"schedule": {"kind": "once"}}, "schedule.at"),
        ({"schedule": {"kind": "once", "at": "tomorrow"}}, "schedule.at"),
        ({"schedule": {"kind": "once", "at": "2020-01-01T00:00:00Z"}}, "schedule.at"),
        ({"schedule": NIGHTLY | {"zone": "Asia/Shanghia"}}, "schedule.zone"),
        ({"schedule": NIGHTLY | {"days": ["someday"]}}, "schedule.days"),
        ({"schedule": NIGHTLY | {"times": ["24:00"]}}, "schedule.times"),
        ({"schedule": NIGHTLY | {"cron": "0 0 * * *"}}, "schedule.cron"),
        ({"schedule": {"kind": "repeat", "days": ["mon"], "times": ["01:00"]}}, "schedule.zone"),
        ({"schedule": {"kind": "interval", "every_seconds": 5}}, "schedule.every_seconds"),
        ({"schedule": {"kind": "interval"}}, "schedule.every_seconds"),
        ({"missed": "maybe"}, "missed"),
        ({"rate_per_minute": 0}, "rate_per_minute"),
        ({"ramp_from_per_minute": 5}, "ramp_from_per_minute"),
        ({"ramp_from_per_minute": 5, "rate_per_minute": 4}, "ramp_from_per_minute"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"jitter_seconds": 3601}, "jitter_seconds"),
        ({"window": {"zone": "UTC", "days": ["mon"], "start": "1:00", "end": "02:00"}}, "window.start"),
        ({"window": {"zone": "UTC", "days": ["mon"], "start": "01:00"}}, "window.end"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"expires_seconds": "long"}, "expires_seconds"),
        ({"retries": 11}, "retries"),
        ({"stop_percent": 0}, "stop_percent"),
        ({"next_due": None}, "next_due"),
        ({"revision": 1}, "revision"),
    ],
)
async def test_a_bad_field_of_a_task_is_refused_by_name(admin: Admin, fields: dict[str, Any], field: str) -> None:
    await admin.create_type()
    refused = problem(await admin.api.post("/tasks", json={"name": "n", "target": TARGET} | fields), 422)
    assert [error["field"] for error in refused["errors"]] == [field]
    assert checked(await admin.api.get("/tasks"), 200)["items"] == []


async def test_a_version_attribute_that_is_new_to_the_type_joins_it(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin, version_attribute="gps", module="gps")
    assert "report once more" in task["notice"]
    assert checked(await admin.api.get("/device-types/DU"), 200)["version_attributes"] == ["version", "gps"]
    assert (await create_task(admin, version_attribute="gps", module="gps"))["notice"] is None
    refused = problem(await admin.api.patch("/device-types/DU", json={"version_attributes": ["version"]}), 409)
    assert task["id"] in refused["detail"]


async def test_a_version_attribute_joins_the_types_of_listed_devices(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("GW")
    await admin.create_type("else")
    await register(admin, "d1")
    await register(admin, "g1", device_type="GW")
    target = {"devices": ["d1", "g1", "unknown"]}
    assert (await create_task(admin, target=target, version_attribute="mcu", module="mcu"))["notice"]
    types = checked(await admin.api.get("/device-types"), 200)["items"]
    assert {t["key"]: len(t["version_attributes"]) for t in types} == {"DU": 2, "GW": 2, "else": 1}


async def test_a_task_keeps_its_device_type_from_deletion(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin)
    refused = problem(await admin.api.delete("/device-types/DU"), 409)
    assert task["id"] in refused["detail"]
    assert "夜间升级" in refused["detail"]
    assert (await admin.api.delete(f"/tasks/{task['id']}")).status_code == 204
    assert (await admin.api.delete("/device-types/DU")).status_code == 204


async def test_a_patch_changes_what_it_names(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin, schedule=NIGHTLY, rate_per_minute=60, window=None)
    path = f"/tasks/{task['id']}"
    changed = await admin.api.patch(path, json={"schedule": {"zone": "UTC"}, "rate_per_minute": None})
    document = checked(changed, 200)
    assert document["schedule"] == {"kind": "repeat", "times": ["02:30"], "zone": "UTC"} | {
        "days": ["mon", "tue", "wed", "thu", "fri"]
    }
    assert (document["rate_per_minute"], document["revision"]) == (None, 2)
    assert document["next_due"] != task["next_due"]
    assert document["created_at"] == task["created_at"]
    cron = {"schedule": {"cron": "0 3 * * *", "days": None, "times": None}}
    assert checked(await admin.api.patch(path, json=cron), 200)["schedule"]["cron"] == "0 3 * * *"
    other = checked(await admin.api.patch(path, json={"schedule": {"kind": "manual"}}), 200)
    assert (other["schedule"], other["next_due"]) == ({"kind": "manual"}, None)
    target = checked(await admin.api.patch(path, json={"target": {"devices": ["d1"]}}), 200)["target"]
    assert target == {"devices": ["d1"]}
    window = {"zone": "UTC", "days": ["sat"], "start": "01:00", "end": "02:00"}
    assert checked(await admin.api.patch(path, json={"window": window}), 200)["window"] == window
    narrower = checked(await admin.api.patch(path, json={"window": {"end": "01:30"}}), 200)["window"]
    assert narrower == window | {"end": "01:30"}


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"enabled": None}, "enabled"),
        ({"schedule": None}, "schedule"),
        ({"id": ULID}, "id"),
        ({"nothing": 1}, "nothing"),
        ({"schedule": {"cron": "0 3 * * *"}}, "schedule.cron"),
        ({"target": {"device_type": "nobody"}}, "target.device_type"),
    ],
)
async def test_a_bad_patch_changes_nothing(admin: Admin, patch: dict[str, Any], field: str) -> None:
    await admin.create_type()
    task = await create_task(admin, schedule=NIGHTLY)
    refused = problem(await admin.api.patch(f"/tasks/{task['id']}", json=patch), 422)
    assert [error["field"] for error in refused["errors"]] == [field]
    assert checked(await admin.api.get(f"/tasks/{task['id']}"), 200) == task


async def test_a_disabled_task_is_not_due(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin, schedule=NIGHTLY)
    path = f"/tasks/{task['id']}"
    assert checked(await admin.api.patch(path, json={"enabled": False}), 200)["next_due"] is None
    assert checked(await admin.api.patch(path, json={"name": "still"}), 200)["next_due"] is None
    assert checked(await admin.api.patch(path, json={"enabled": True}), 200)["next_due"] == task["next_due"]


async def test_an_edit_beside_the_schedule_loses_no_due_time_that_waits(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin, schedule={"kind": "interval", "every_seconds": 3600})
    stored = await admin.context.tasks.load_task(task["id"])
    assert stored is not None
    await admin.context.tasks.put_task(stored.task, expected=stored.stored, due_at_ms=1000)
    edited = checked(await admin.api.patch(f"/tasks/{task['id']}", json={"name": "other"}), 200)
    assert edited["next_due"] == "1970-01-01T00:00:01.000Z"


async def test_a_time_that_is_past_is_told_when_the_task_is_enabled_again(admin: Admin) -> None:
    await admin.create_type()
    at = {"kind": "once", "at": "2999-01-01T00:00:00.000Z"}
    task = await create_task(admin, schedule=at, enabled=False)
    stored = await admin.context.tasks.load_task(task["id"])
    assert stored is not None
    await admin.context.tasks.put_task(replace(stored.task, schedule=Once(1000)), expected=stored.stored)
    enabled = checked(await admin.api.patch(f"/tasks/{task['id']}", json={"enabled": True}), 200)
    assert "past" in enabled["notice"]
    assert enabled["next_due"] is None


async def test_conditional_writes_of_a_task(admin: Admin) -> None:
    await admin.create_type()
    path = f"/tasks/{ULID}"
    body = {"name": "mine", "target": TARGET}
    created = await admin.api.put(path, json=body, headers={"If-None-Match": "*"})
    first = {"If-Match": created.headers["etag"]}
    assert created.status_code == 201
    problem(await admin.api.put(path, json=body, headers={"If-None-Match": "*"}), 412)
    changed = await admin.api.put(path, json=body, headers=first)
    assert checked(changed, 200)["revision"] == 2
    problem(await admin.api.put(path, json=body, headers=first), 412)
    problem(await admin.api.patch(path, json={"name": "x"}, headers=first), 412)
    problem(await admin.api.delete(path, headers=first), 412)
    assert (await admin.api.delete(path, headers={"If-Match": changed.headers["etag"]})).status_code == 204
    for refused in (
        await admin.api.get(path),
        await admin.api.patch(path, json={"name": "x"}),
        await admin.api.delete(path),
        await admin.api.get(f"{path}/runs"),
        await admin.api.post(f"{path}/runs"),
    ):
        problem(refused, 404)
    assert [e["field"] for e in problem(await admin.api.put("/tasks/mine", json=body), 422)["errors"]] == ["id"]


async def test_a_task_is_created_once_under_its_key(admin: Admin) -> None:
    await admin.create_type()
    headers = {"Idempotency-Key": "k1"}
    first = await admin.api.post("/tasks", json={"name": "n", "target": TARGET}, headers=headers)
    again = await admin.api.post("/tasks", json={"name": "n", "target": TARGET}, headers=headers)
    assert checked(first, 201)["id"] == checked(again, 201)["id"]
    assert again.headers["idempotency-replayed"] == "true"
    problem(await admin.api.post("/tasks", json={"name": "m", "target": TARGET}, headers=headers), 422)
    assert len(checked(await admin.api.get("/tasks"), 200)["items"]) == 1


async def test_tasks_are_listed_in_pages_and_filtered(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("GW")
    ids = [(await create_task(admin, enabled=n != 1))["id"] for n in range(3)]
    other = (await create_task(admin, target={"device_type": "GW"}))["id"]
    first = checked(await admin.api.get("/tasks?limit=2&device_type=DU"), 200)
    rest = checked(await admin.api.get(f"/tasks?limit=2&device_type=DU&cursor={first['next_cursor']}"), 200)
    assert [task["id"] for task in first["items"] + rest["items"]] == ids
    assert rest["next_cursor"] is None
    assert [t["id"] for t in checked(await admin.api.get("/tasks?enabled=false"), 200)["items"]] == [ids[1]]
    assert [t["id"] for t in checked(await admin.api.get("/tasks?device_type=GW"), 200)["items"]] == [other]
    problem(await admin.api.get("/tasks?state=open"), 422)


# ---- its runs


async def test_a_task_is_run_when_somebody_asks(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin, enabled=False)
    answered = await admin.api.post(f"/tasks/{task['id']}/runs")
    run = checked(answered, 202)
    assert answered.headers["location"] == f"/api/v1/runs/{run['id']}"
    assert (run["state"], run["task_id"], run["task_name"]) == ("waiting", task["id"], "夜间升级")
    assert (run["total"], run["counters"], run["planned"], run["due"]) == (0, {}, False, None)
    assert checked(await admin.api.get(f"/tasks/{task['id']}"), 200)["open_run"] == run["id"]
    refused = problem(await admin.api.post(f"/tasks/{task['id']}/runs", json={}), 409)
    assert run["id"] in refused["detail"]
    assert run["id"] in problem(await admin.api.delete(f"/tasks/{task['id']}"), 409)["detail"]
    listed = checked(await admin.api.get(f"/tasks/{task['id']}/runs"), 200)["items"]
    assert [entry["id"] for entry in listed] == [run["id"]]
    await end_run(admin, run["id"])
    assert (await admin.api.delete(f"/tasks/{task['id']}")).status_code == 204
    assert len(checked(await admin.api.get(f"/tasks/{task['id']}/runs"), 200)["items"]) == 1  # runs outlive their task


async def test_a_run_is_made_once_under_its_key(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin)
    headers = {"Idempotency-Key": "k1"}
    answers = [await admin.api.post(f"/tasks/{task['id']}/runs", headers=headers) for _ in range(2)]
    assert len({checked(one, 202)["id"] for one in answers}) == 1


async def test_a_run_takes_devices_of_its_target_alone(admin: Admin) -> None:
    await admin.create_type()
    await admin.create_type("GW")
    await register(admin, "d1", "d2")
    await register(admin, "g1", device_type="GW")
    path = f"/tasks/{(await create_task(admin))['id']}/runs"
    for outside in (["d1", "g1"], ["unknown"]):
        refused = problem(await admin.api.post(path, json={"devices": outside}), 422)
        assert outside[-1] in refused["detail"]
        assert [error["field"] for error in refused["errors"]] == ["devices"]
    problem(await admin.api.post(path, json={"devices": []}), 422)
    run = checked(await admin.api.post(path, json={"devices": ["d2"]}), 202)
    assert checked(await admin.api.get(f"/runs/{run['id']}"), 200)["devices"] == ["d2"]
    listed = f"/tasks/{(await create_task(admin, target={'devices': ['x', 'y']}))['id']}/runs"
    problem(await admin.api.post(listed, json={"devices": ["d1"]}), 422)
    checked(await admin.api.post(listed, json={"devices": ["y"]}), 202)


async def test_without_a_broker_a_run_is_refused_with_the_setting(admin_redis: str, tmp_path: Path) -> None:
    async with admin_role(admin_redis, tmp_path, has_broker=False) as admin:
        await admin.create_type()
        task = await create_task(admin)
        refused = problem(await admin.api.post(f"/tasks/{task['id']}/runs"), 409)
        assert "OTA_HOOK_MQTT_URL" in refused["mend"]
        assert checked(await admin.api.get("/runs"), 200)["items"] == []


async def test_a_run_keeps_the_task_as_it_was(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin, rate_per_minute=60)
    run = await open_run(admin, task["id"])
    await admin.api.patch(f"/tasks/{task['id']}", json={"name": "later", "rate_per_minute": 1})
    copied = checked(await admin.api.get(f"/runs/{run['id']}"), 200)["task"]
    assert (copied["name"], copied["rate_per_minute"], copied["revision"]) == ("夜间升级", 60, 1)
    assert copied["schedule_text"] == "when somebody asks"


async def test_skipped_due_times_are_shown_with_their_reason(admin: Admin) -> None:
    await admin.create_type()
    task = await create_task(admin, schedule={"kind": "interval", "every_seconds": 3600})
    run = await open_run(admin, task["id"])
    stored = await admin.context.tasks.load_task(task["id"])
    assert stored is not None
    for due_ms, skip in ((2000, ""), (3000, "missed")):
        await admin.context.tasks.put_task(stored.task, expected=stored.stored, due_at_ms=due_ms)
        head = RunHead(id=ULID, task=stored.task, created_at_ms=9000, due_at_ms=due_ms)
        made = await admin.context.tasks.create_run(head, expected=stored.stored, now_ms=9000, skip=skip)
        assert made.word == "skipped"
    assert checked(await admin.api.get(f"/tasks/{task['id']}"), 200)["skipped"] == [
        {"due": "1970-01-01T00:00:03.000Z", "reason": "missed", "run": None},
        {"due": "1970-01-01T00:00:02.000Z", "reason": "run_open", "run": run["id"]},
    ]
