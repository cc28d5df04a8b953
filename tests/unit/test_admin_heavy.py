"""The bound on requests over many devices."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from admin_api.bodies import PACE_BYTES_A_S, Pace
from admin_api.heavy import LimitHeavy

EXPORT = "/api/v1/devices-export"


class Held:
    """An application that answers once it may."""

    def __init__(self) -> None:
        self.running = 0
        self.started = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        if self.running == 2:
            self.started.set()
        await self.may_answer.wait()
        self.running -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def client_of(app: LimitHeavy) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_third_heavy_request_is_refused_after_its_wait_and_taken_later() -> None:
    held = Held()
    async with client_of(LimitHeavy(held, wait_s=0.01)) as client:
        two = [asyncio.create_task(client.get(EXPORT)) for _ in range(2)]
        await held.started.wait()
        refused = await client.get("/api/v1/devices?type=DU")
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert int(refused.headers["retry-after"]) > 0
        held.may_answer.set()
        assert [answer.status_code for answer in await asyncio.gather(*two)] == [200, 200]
        assert (await client.get(EXPORT)).status_code == 200


async def test_a_third_heavy_request_runs_as_soon_as_there_is_a_place() -> None:
    held = Held()
    async with client_of(LimitHeavy(held, wait_s=5)) as client:
        three = [asyncio.create_task(client.get(EXPORT)) for _ in range(3)]
        await held.started.wait()
        held.may_answer.set()
        assert [answer.status_code for answer in await asyncio.gather(*three)] == [200, 200, 200]


@pytest.mark.parametrize(
    ("method", "path", "heavy"),
    [
        ("GET", "/devices-export", True),
        ("POST", "/devices-import", True),
        ("PUT", "/firmware/01J/devices", True),
        ("POST", "/firmware/01J/devices", True),
        ("GET", "/firmware/01J/devices", True),
        ("GET", "/devices?type=DU", True),
        ("GET", "/devices?tag=a", True),
        ("GET", "/device-types/DU/versions", True),
        ("GET", "/runs/01J/devices", False),
        ("GET", "/runs/01J/events", False),
        ("GET", "/device-types/DU", False),
        ("GET", "/devices?limit=5", False),
        ("POST", "/devices", False),
        ("GET", "/devices/devices-export", False),
        ("GET", "/firmware/01J", False),
    ],
)
async def test_only_requests_over_many_devices_wait(method: str, path: str, heavy: bool) -> None:
    held = Held()
    held.may_answer.set()
    async with client_of(LimitHeavy(held, at_once=0, wait_s=0.01)) as client:
        answer = await client.request(method, f"/api/v1{path}")
    assert answer.status_code == (503 if heavy else 200)


async def receive_nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


SCOPE = {"type": "http", "method": "GET", "path": EXPORT, "query_string": b"", "headers": []}


async def test_a_client_that_takes_nothing_of_its_answer_gives_its_place_up() -> None:
    held = Held()
    held.may_answer.set()
    app = LimitHeavy(held, at_once=1, wait_s=0.01, stall_s=0.01)

    async def never_sent(_: Message) -> None:
        await asyncio.Event().wait()

    await app(SCOPE, receive_nothing, never_sent)
    async with client_of(app) as client:
        assert (await client.get(EXPORT)).status_code == 200


async def test_a_client_that_takes_little_again_and_again_gives_its_place_up_too() -> None:
    async def answer_for_ever(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def take_a_while(_: Message) -> None:
        await asyncio.sleep(0.01)

    app = LimitHeavy(answer_for_ever, at_once=1, wait_s=0.01, stall_s=0.05)
    async with asyncio.timeout(10):
        await app(SCOPE, receive_nothing, take_a_while)


@pytest.mark.alone
async def test_a_client_may_wait_as_long_as_what_it_brought_takes_at_the_least_pace() -> None:
    pace = Pace(0.05)

    async def bring(size: int) -> int:
        await asyncio.sleep(0.01)
        return size

    for _ in range(20):  # four times as long as a client that brings nothing may
        await pace.keep(bring(PACE_BYTES_A_S), int)
    with pytest.raises(TimeoutError):
        await pace.keep(asyncio.Event().wait(), int)  # but no longer at a time


@pytest.mark.parametrize(
    ("accept", "heavy"),
    [
        ("application/x-ndjson", True),
        ("application/x-ndjson, application/json;q=0.5", True),
        ("application/json, application/x-ndjson", False),
        ("text/csv", False),
    ],
)
async def test_the_devices_of_a_run_are_heavy_as_a_stream_alone(accept: str, heavy: bool) -> None:
    held = Held()
    held.may_answer.set()
    async with client_of(LimitHeavy(held, at_once=0, wait_s=0.01)) as client:
        answered = await client.get("/api/v1/runs/01J/devices", headers={"Accept": accept})
    assert answered.status_code == (503 if heavy else 200)
