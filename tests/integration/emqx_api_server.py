"""EMQX's REST API as its documentation has it, as far as bulk publishing goes, on a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn

KEY, SECRET = "key", "s3cret"
_AUTHORIZATION = b"Basic " + base64.b64encode(f"{KEY}:{SECRET}".encode())
_JSON = [(b"content-type", b"application/json")]


@dataclass
class EmqxApi:
    """`unsubscribed` and `undispatched` are topics; a topic in `invalid` makes EMQX refuse the whole request."""

    unsubscribed: set[str] = field(default_factory=set)
    undispatched: set[str] = field(default_factory=set)
    invalid: set[str] = field(default_factory=set)
    answer_instead: tuple[int, bytes] | None = None
    gate: asyncio.Event | None = None
    """Requests wait for it."""
    requests: list[int] = field(default_factory=list)
    """How many messages each had."""
    published: list[tuple[str, bytes, int]] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    @asynccontextmanager
    async def run(self) -> AsyncIterator[EmqxApi]:
        config = uvicorn.Config(self._serve, interface="asgi3", log_config=None, lifespan="off")
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # asyncio sends at once where it knows that this is TCP; else each answer's body waits 40 ms for its head's ACK.
        listener = socket.socket(proto=socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # Piece by piece: `serve` and `shutdown` look only every tenth of a second whether they are done.
        await server.startup([listener])
        try:
            yield self
        finally:
            if self.gate is not None:
                self.gate.set()
            for listening in server.servers:
                listening.close()
            async with asyncio.timeout(10):
                while server.server_state.connections or server.server_state.tasks:
                    for connection in list(server.server_state.connections):
                        connection.shutdown()
                    await asyncio.sleep(0.001)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        self.connections.add(tuple(scope["client"]))
        status, answer = await self._answer(scope, body)
        await send({"type": "http.response.start", "status": status, "headers": _JSON})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope: Any, body: bytes) -> tuple[int, bytes]:
        if (scope["method"], scope["path"]) != ("POST", "/api/v5/publish/bulk"):
            return 404, orjson.dumps({"code": "NOT_FOUND", "message": "Request Path Not Found"})
        if dict(scope["headers"]).get(b"authorization") != _AUTHORIZATION:
            return 401, orjson.dumps({"code": "BAD_API_KEY_OR_SECRET", "message": "Check api_key/api_secret"})
        if self.answer_instead is not None:
            return self.answer_instead
        messages = orjson.loads(body)
        self.requests.append(len(messages))
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        if any(message["topic"] in self.invalid for message in messages):
            return 400, orjson.dumps({"reason_code": 144, "message": "topic_name_invalid"})
        results = [self._publish(message) for message in messages]
        codes = {result.get("reason_code") for result in results}
        status = 503 if 131 in codes else 202 if 16 in codes else 200
        return status, orjson.dumps(results)

    def _publish(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["topic"] in self.undispatched:
            return {"reason_code": 131, "message": "failed_to_dispatch"}
        assert message["payload_encoding"] == "base64"
        payload = base64.b64decode(message["payload"], validate=True)
        self.published.append((message["topic"], payload, message["qos"]))
        if message["topic"] in self.unsubscribed:
            return {"reason_code": 16, "message": "no_matching_subscribers"}
        return {"id": f"000600D09A099053F44500{len(self.published):010X}"}
