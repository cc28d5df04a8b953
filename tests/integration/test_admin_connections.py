"""A connection without a request does not keep its place."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from admin_api.connections import BoundedProtocol


class Hasty(BoundedProtocol):
    head_seconds = 0.2


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    async def hello(_: object) -> PlainTextResponse:
        await asyncio.sleep(0.3)  # longer than a head may take: an answer may
        return PlainTextResponse("hello")

    bound = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/", hello, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=Hasty, lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    yield bound.getsockname()[1]
    server.should_exit = True
    await task


async def test_half_a_request_head_is_given_up_and_a_whole_one_is_answered() -> None:
    async with serving() as port, asyncio.timeout(10):
        for half in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(half)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(2):  # the second on the same connection
                assert (await client.get("/")).text == "hello"


async def test_a_body_that_comes_slowly_is_waited_for() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0.1)
            yield b"x"

    async with serving() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.post("/", content=slowly())).status_code == 200
