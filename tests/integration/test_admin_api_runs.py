"""`/runs`: what is shown of a run, and pausing, resuming, cancelling and following it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from admin_api import run_stream
from ota_hook.model import Outcome
from ota_hook.ports.work import Work
from ota_hook.state.work import RedisWorkQueue
from ota_hook.task import RunDevice, RunHead, RunState
from tests.integration.admin_service import Admin, checked, problem

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def begin_run(admin: Admin, *, key: str = "DU") -> RunHead:
    """A run that nobody has begun to plan."""
    if not (await admin.api.get(f"/device-types/{key}")).is_success:
        await admin.create_type(key)
    body = {"name": "all", "target": {"device_type": key}}
    task = checked(await admin.api.post("/tasks", json=body), 201)
    run = checked(await admin.api.post(f"/tasks/{task['id']}/runs"), 202)
    loaded = await admin.context.runs.load_run(run["id"])
    assert loaded is not None
    return loaded.head


async def plan(admin: Admin, head: RunHead, *chunks: list[str], ended: bool = True) -> None:
    """What a worker does: these devices, in these pieces."""
    runs = admin.context.runs
    position = await runs.begin_plan(head, now_ms=1_000)
    for names in chunks:
        devices = [RunDevice(name, Outcome.PLANNED, "01JFIRMWARE", "1.0") for name in names]
        after = await runs.add_chunk(head.id, devices, before=position, cursor=position.cursor + 1)
        assert after is not None
        position = after
    if ended:
        assert await runs.end_plan(head.id, position, now_ms=2_000)


async def settle(admin: Admin, head: RunHead, outcomes: dict[str, Outcome], *, chunk: int = 0, code: str = "") -> None:
    moves = [RunDevice(name, outcome, "", "", at_ms=3_000, code=code) for name, outcome in outcomes.items()]
    assert await admin.context.runs.move(head.id, chunk, moves, now_ms=3_000) == len(moves)


async def queued(admin: Admin) -> list[tuple[str, int | None]]:
    """What lies in the workers' queue; it is taken."""
    queue = admin.context.work
    assert isinstance(queue, RedisWorkQueue)
    await queue.open()
    work: list[Work] = await queue.claim(most=10, block_ms=1)
    return [(one.run_id, one.chunk) for one in work]


async def post(admin: Admin, head: RunHead, verb: str) -> httpx.Response:
    return await admin.api.post(f"/runs/{head.id}/{verb}")


async def test_a_run_shows_its_state_and_counters(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, ["d1", "d2", "d3"])
    await settle(admin, head, {"d1": Outcome.SUCCEEDED, "d2": Outcome.DELIVERED})
    run = checked(await admin.api.get(f"/runs/{head.id}"), 200)
    assert (run["state"], run["planned"], run["total"], run["retried"]) == ("running", True, 3, 0)
    assert run["counters"] == {"planned": 1, "delivered": 1, "succeeded": 1}
    assert (run["started_at"], run["finished_at"]) == ("1970-01-01T00:00:01.000Z", None)
    assert (run["reason"], run["devices"], run["task"]["id"]) == (None, None, head.task.id)
    await settle(admin, head, {"d2": Outcome.FAILED, "d3": Outcome.SKIPPED})
    run = checked(await admin.api.get(f"/runs/{head.id}"), 200)
    assert (run["state"], run["counters"]) == ("completed", {"succeeded": 1, "failed": 1, "skipped": 1})
    assert run["finished_at"] == "1970-01-01T00:00:03.000Z"


async def test_runs_are_listed_newest_first_in_pages(admin: Admin) -> None:
    heads = [await begin_run(admin) for _ in range(3)]
    first = checked(await admin.api.get("/runs?limit=2"), 200)
    rest = checked(await admin.api.get(f"/runs?limit=2&cursor={first['next_cursor']}"), 200)
    ids = [run["id"] for run in first["items"] + rest["items"]]
    assert sorted(ids) == sorted(head.id for head in heads)
    assert (len(first["items"]), rest["next_cursor"]) == (2, None)
    problem(await admin.api.get("/runs?cursor=%21"), 422)
    problem(await admin.api.get("/runs?state=open"), 422)


async def test_runs_are_listed_by_their_state(admin: Admin) -> None:
    heads = [await begin_run(admin) for _ in range(4)]
    checked(await post(admin, heads[0], "cancel"), 200)
    checked(await post(admin, heads[2], "pause"), 200)

    async def ids(path: str) -> list[str]:
        return [run["id"] for run in checked(await admin.api.get(path), 200)["items"]]

    assert await ids("/runs?state=cancelled") == [heads[0].id]
    assert await ids("/runs?state=paused&limit=1") == [heads[2].id]
    assert sorted(await ids("/runs?state=waiting")) == sorted([heads[1].id, heads[3].id])
    assert await ids("/runs?state=failed") == []
    assert await ids(f"/tasks/{heads[2].task.id}/runs?state=paused") == [heads[2].id]
    assert await ids(f"/tasks/{heads[2].task.id}/runs?state=running") == []


async def test_a_run_that_is_not_there_is_not_found(admin: Admin) -> None:
    for path in ("", "/devices", "/events"):
        problem(await admin.api.get(f"/runs/{ULID}{path}"), 404)
    for verb in ("pause", "resume", "cancel"):
        problem(await admin.api.post(f"/runs/{ULID}/{verb}"), 404)


# ---- its devices


async def test_the_devices_of_a_run_come_in_pages(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, ["b", "a", "升级"], ["d", "c"], [], ["e"])
    await settle(admin, head, {"a": Outcome.FAILED}, code="no_space")
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = checked(await admin.api.get(f"/runs/{head.id}/devices", params=query), 200)
        found, cursor, pages = found + page["items"], page["next_cursor"], pages + 1
    assert [device["identifier"] for device in found] == ["a", "b", "升级", "c", "d", "e"]
    assert pages == 3
    assert found[0] == {
        "identifier": "a",
        "outcome": "failed",
        "code": "no_space",
        "firmware_id": "01JFIRMWARE",
        "from_version": "1.0",
        "command_id": None,
        "at": "1970-01-01T00:00:03.000Z",
    }
    assert (found[1]["outcome"], found[1]["code"], found[1]["at"]) == ("planned", None, None)
    problem(await admin.api.get(f"/runs/{head.id}/devices?cursor=MHg"), 422)


async def test_the_devices_of_a_run_are_filtered_by_outcome(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, *([f"d{n}"] for n in range(90)))
    await settle(admin, head, {"d85": Outcome.REJECTED}, chunk=85)
    path = f"/runs/{head.id}/devices?outcome=rejected"
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    pages = 0
    while cursor is not None:
        page = checked(await admin.api.get(path + (f"&cursor={cursor}" if cursor else "")), 200)
        found, cursor, pages = found + page["items"], page["next_cursor"], pages + 1
    assert ([device["identifier"] for device in found], pages) == (["d85"], 3)
    problem(await admin.api.get(f"/runs/{head.id}/devices?outcome=lost"), 422)


async def test_the_devices_of_a_run_come_as_lines(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, ["b", "a"], ["c"])
    await settle(admin, head, {"b": Outcome.SUCCEEDED})
    headers = {"Accept": "application/x-ndjson"}
    answered = await admin.api.get(f"/runs/{head.id}/devices", headers=headers)
    assert answered.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["identifier"] for line in answered.text.splitlines()] == ["a", "b", "c"]
    some = await admin.api.get(f"/runs/{head.id}/devices?outcome=succeeded", headers=headers)
    assert [json.loads(line)["identifier"] for line in some.text.splitlines()] == ["b"]
    problem(await admin.api.get(f"/runs/{head.id}/devices", headers={"Accept": "text/csv"}), 406)


# ---- its state


async def test_a_run_is_paused_and_goes_on(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, ["d1"])
    await queued(admin)
    for _ in range(2):
        paused = checked(await post(admin, head, "pause"), 200)
        assert (paused["state"], paused["reason"]) == ("paused", "Paused by an operator.")
    for _ in range(2):
        resumed = checked(await post(admin, head, "resume"), 200)
        assert (resumed["state"], resumed["reason"]) == ("running", None)
    assert await queued(admin) == []


async def test_a_run_that_was_paused_while_it_was_planned_is_planned_on(admin: Admin) -> None:
    head = await begin_run(admin)
    assert await queued(admin) == [(head.id, None)]
    checked(await post(admin, head, "pause"), 200)
    assert checked(await post(admin, head, "resume"), 200)["state"] == "waiting"
    assert await queued(admin) == [(head.id, None)]
    await plan(admin, head, ["d1"], ended=False)
    checked(await post(admin, head, "pause"), 200)
    assert checked(await post(admin, head, "resume"), 200)["state"] == "planning"
    assert await queued(admin) == [(head.id, None)]
    await plan(admin, head, ["d2"])


async def test_a_run_that_stopped_itself_is_resumed_or_cancelled_by_an_operator(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, ["d1"])
    running = [RunState.RUNNING]
    await admin.context.runs.set_state(head, RunState.STOPPED, of=running, reason="too many failed", now_ms=1)
    assert "stopped" in problem(await post(admin, head, "pause"), 409)["detail"]
    assert checked(await post(admin, head, "resume"), 200)["state"] == "running"
    await admin.context.runs.set_state(head, RunState.STOPPED, of=running, reason="again", now_ms=1)
    assert checked(await post(admin, head, "cancel"), 200)["state"] == "cancelled"


async def test_a_completed_run_is_left_to_the_worker_that_tells_of_it_though_its_task_is_run_again_or_deleted(
    admin: Admin,
) -> None:
    first = await begin_run(admin)
    await plan(admin, first)
    again = checked(await admin.api.post(f"/tasks/{first.task.id}/runs"), 202)
    assert {head.id for head in await admin.context.runs.load_open()} == {first.id, again["id"]}
    second = await admin.context.runs.load_run(again["id"])
    assert second is not None
    await plan(admin, second.head)
    assert (await admin.api.delete(f"/tasks/{first.task.id}")).status_code == 204
    assert {head.id for head in await admin.context.runs.load_open()} == {first.id, again["id"]}


async def test_a_cancelled_run_stays_so(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, ["d1"])
    for _ in range(2):
        cancelled = checked(await post(admin, head, "cancel"), 200)
        assert (cancelled["state"], cancelled["reason"]) == ("cancelled", "Cancelled by an operator.")
    for verb in ("pause", "resume"):
        assert "cancelled" in problem(await post(admin, head, verb), 409)["detail"]


async def test_a_completed_run_can_not_be_changed(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head)
    for verb in ("pause", "resume", "cancel"):
        assert "completed" in problem(await post(admin, head, verb), 409)["detail"]


async def test_work_that_was_given_up_is_shown(admin: Admin) -> None:
    head = await begin_run(admin)
    queue = admin.context.work
    await queue.open()
    (work,) = await queue.claim(most=1, block_ms=1)
    await queue.bury(work, "It was tried too often.")
    (dead,) = checked(await admin.api.get("/work/dead"), 200)["items"]
    assert dead.pop("at").endswith("Z")
    assert dead == {"run": head.id, "chunk": None, "reason": "It was tried too often."}
    problem(await admin.api.get("/work/dead?limit=0"), 422)


# ---- how it goes


async def events(admin: Admin, head: RunHead) -> AsyncGenerator[dict[str, Any]]:
    """The runs that a stream tells of, until it ends."""
    async with admin.api.stream("GET", f"/runs/{head.id}/events") as answered:
        assert answered.status_code == 200
        assert answered.headers["content-type"].startswith("text/event-stream")
        assert answered.headers["cache-control"] == "no-store"
        async for line in answered.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


async def test_a_run_is_followed_to_its_end(admin: Admin) -> None:
    head = await begin_run(admin)
    seen = []
    async with asyncio.timeout(20), aclosing(events(admin, head)) as told:
        async for run in told:
            seen.append((run["state"], run["counters"]))
            match run["state"], run["total"]:
                case "waiting", _:
                    await plan(admin, head, ["d1", "d2"])
                case "running", _ if "succeeded" not in run["counters"]:
                    await settle(admin, head, {"d1": Outcome.SUCCEEDED})
                case "running", _:
                    await settle(admin, head, {"d2": Outcome.TIMED_OUT})
    assert seen == [
        ("waiting", {}),
        ("running", {"planned": 2}),
        ("running", {"planned": 1, "succeeded": 1}),
        ("completed", {"succeeded": 1, "timed_out": 1}),
    ]


async def test_a_cancelled_run_is_followed_until_its_devices_are_counted(admin: Admin) -> None:
    head = await begin_run(admin)
    await plan(admin, head, ["d1"])
    await post(admin, head, "cancel")
    seen = []
    async with asyncio.timeout(20), aclosing(events(admin, head)) as told:
        async for run in told:
            seen.append(run["counters"])
            if run["counters"] == {"planned": 1}:
                await settle(admin, head, {"d1": Outcome.CANCELLED})
    assert seen == [{"planned": 1}, {"cancelled": 1}]


async def test_heartbeats_come_while_nothing_changes(admin: Admin, monkeypatch: Any) -> None:
    monkeypatch.setattr(run_stream, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(run_stream, "LOOK_S", 0.001)
    head = await begin_run(admin)
    async with asyncio.timeout(20), admin.api.stream("GET", f"/runs/{head.id}/events") as answered:
        comments = 0
        async for line in answered.aiter_lines():
            comments += line.startswith(":")
            if comments == 3:
                break


async def test_streams_are_bounded_and_end_with_their_clients(admin: Admin, monkeypatch: Any) -> None:
    monkeypatch.setattr(run_stream, "STREAMS_MAX", 1)
    monkeypatch.setattr(run_stream, "LOOK_S", 0.01)
    head = await begin_run(admin)
    path = f"/runs/{head.id}/events"
    async with admin.api.stream("GET", path) as answered:
        lines = answered.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        problem(await admin.api.get(path), 503)
    async with asyncio.timeout(10):
        while True:  # the place is free as soon as the service knows that the client went
            async with admin.api.stream("GET", path) as answered:
                if answered.status_code == 200:
                    return


async def test_a_stream_ends_with_the_service(admin: Admin) -> None:
    head = await begin_run(admin)
    async with asyncio.timeout(10), admin.api.stream("GET", f"/runs/{head.id}/events") as answered:
        async for line in answered.aiter_lines():
            if line.startswith("data: "):
                admin.context.closing.set()
