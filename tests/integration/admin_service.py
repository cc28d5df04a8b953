"""The admin API for tests: a real uvicorn on loopback, a real Redis, a real folder of packages."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from redis.asyncio import Redis
from ulid import ULID

from admin_api.app import create_app
from admin_api.auth import AdminToken
from admin_api.context import AdminContext
from ota_hook.packages.store import LocalPackageStore
from ota_hook.standin.redis import find_server
from ota_hook.state.attempts import RedisAttempts
from ota_hook.state.catalogue import RedisCatalogue
from ota_hook.state.connection import connect_redis
from ota_hook.state.devices import RedisDevices
from ota_hook.state.durability import DurableWriter
from ota_hook.state.format import open_layout
from ota_hook.state.idempotency import RedisIdempotency
from ota_hook.state.keys import Keys
from ota_hook.state.offers import RedisOffers
from ota_hook.state.runs import RedisRuns
from ota_hook.state.stops import RedisFirmwareStops
from ota_hook.state.tasks import RedisTasks
from ota_hook.state.work import RedisWorkQueue
from tests.integration.hot_state import HotState, hot_state

TOKEN = "test-token-0123456789"
MAX_UPLOAD_BYTES = 4 * 1024 * 1024
_CLIENT: dict[str, Any] = {"timeout": 30, "trust_env": False, "verify": False}  # no TLS here, no certificates to load


@dataclass
class Admin:
    """A running admin role: `api` sends the token, `open` does not. `hook` is what a hook beside it would do."""

    url: str
    api: httpx.AsyncClient
    open: httpx.AsyncClient
    context: AdminContext
    packages: Path
    redis: Redis
    hook: HotState
    keys: Keys
    redis_url: str
    not_ready: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def files(self) -> set[str]:
        """What lies in the package store, whole or not."""
        return {str(path.relative_to(self.packages)) for path in self.packages.rglob("*") if path.is_file()}

    async def create_type(self, key: str = "DU", **fields: Any) -> dict[str, Any]:
        return checked(await self.api.post("/device-types", json={"key": key, **fields}), 201)

    async def create_device(self, identifier: str, device_type: str = "DU", **fields: Any) -> dict[str, Any]:
        body = {"identifier": identifier, "type": device_type, **fields}
        return checked(await self.api.post("/devices", json=body), 201)

    async def upload(self, version: str = "1.1", content: bytes = b"firmware", **fields: Any) -> httpx.Response:
        """POST a firmware of DU; list values become repeated fields, None leaves a field out."""
        filename = fields.pop("filename", "fw.bin")
        form = {
            name: value
            for name, value in ({"device_type": "DU", "version": version} | fields).items()
            if value is not None
        }
        return await self.api.post("/firmware", data=form, files={"file": (filename, content)})

    async def create_firmware(
        self, version: str = "1.1", content: bytes = b"firmware", **fields: Any
    ) -> dict[str, Any]:
        return checked(await self.upload(version, content, **fields), 201)


def checked(response: httpx.Response, status: int) -> dict[str, Any]:
    """The JSON body, after the status was compared."""
    assert response.status_code == status, response.text
    document: dict[str, Any] = response.json()
    return document


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document, after its form was compared."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["type"]
    return document


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a Redis that keeps nothing, in a folder of its own."""
    server, _ = asyncio.run(find_server())
    path = folder / "redis.sock"
    process = subprocess.Popen(
        [str(server), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not _answers(path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@asynccontextmanager
async def admin_role(
    redis_url: str, folder: Path, *, prefix: str | None = None, **changes: Any
) -> AsyncIterator[Admin]:
    """An admin role in that Redis, over its own deployment or that of `prefix`; `changes` go into its context."""
    redis = connect_redis(redis_url)
    assert isinstance(redis, Redis)
    keys = await open_layout(redis, prefix=prefix or f"t{ULID()}")
    writer = DurableWriter(redis)
    catalogue = RedisCatalogue(redis, keys, writer=writer)
    await catalogue.start()
    packages = LocalPackageStore(folder / "packages")
    not_ready: list[str] = []

    async def list_problems() -> list[str]:
        await redis.ping()
        return not_ready

    # asyncio sends at once where it knows that this is TCP; else each answer's body waits 40 ms for its head's ACK.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        values: dict[str, Any] = {
            "catalogue": catalogue,
            "devices": RedisDevices(redis, keys, writer=writer),
            "offers": RedisOffers(redis, keys),
            "attempts": RedisAttempts(redis, keys, writer=writer),
            "packages": packages,
            "tasks": RedisTasks(redis, keys, writer=writer),
            "runs": RedisRuns(redis, keys, writer=writer),
            "work": RedisWorkQueue(redis, keys, consumer="admin"),
            "stops": RedisFirmwareStops(redis, keys),
            "has_broker": True,
            "idempotency": RedisIdempotency(redis, keys),
            "tokens": AdminToken(TOKEN),
            "public_url": url,
            "max_upload_bytes": MAX_UPLOAD_BYTES,
            "readiness_checks": (list_problems,),
        }
        context = AdminContext(**(values | changes))
        async with _serve(context, listener), hot_state(redis_url, keys) as hook:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with (
                httpx.AsyncClient(base_url=f"{url}/api/v1", headers=headers, **_CLIENT) as api,
                httpx.AsyncClient(base_url=url, **_CLIENT) as client,
            ):
                yield Admin(url, api, client, context, folder / "packages", redis, hook, keys, redis_url, not_ready)
    await catalogue.close()
    packages.close()
    await redis.aclose()


@asynccontextmanager
async def _serve(context: AdminContext, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(create_app(context), log_config=None, lifespan="off", timeout_graceful_shutdown=5)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Piece by piece: `serve` and `shutdown` look only every tenth of a second whether they are done.
    await server.startup([listener])
    yield
    for listening in server.servers:
        listening.close()
    async with asyncio.timeout(10):
        while server.server_state.connections or server.server_state.tasks:
            for connection in list(server.server_state.connections):
                connection.shutdown()
            await asyncio.sleep(0.001)
