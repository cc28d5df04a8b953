"""A hook that publishes its answers, through the publisher that its settings choose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.service import Emqx, Service
from tests.integration.emqx_api_server import KEY, SECRET, EmqxApi
from tests.integration.scripted_broker import ScriptedBroker
from tests.integration.waiting import eventually

DEVICE = "DU_7VFGiJjjv8QoS"
TOPIC = f"command_send/{DEVICE}"


def ask(service: Service) -> None:
    """A device asks for a newer version, and the event stays what it is."""
    with service.operator() as operator:
        assert operator.put("/device-types/tracker", json={"name": "Tracker"}).status_code == 201
        assert operator.put(f"/devices/{DEVICE}", json={"type": "tracker"}).status_code == 201
    emqx = Emqx(service.hook_port)
    try:
        emqx.report(DEVICE, "1.0.0")
        check = b'{"method": "otaCheck"}'
        assert emqx.publish(f"event_report/{DEVICE}", check, username=DEVICE) == b"\x08\x01"
    finally:
        emqx.close()


@asynccontextmanager
async def asked(data: Path, **environ: str) -> AsyncIterator[None]:
    """A service that was asked, until the context ends."""
    service = Service(data, environ={"OTA_HOOK_REPLY": "publish", **environ})
    try:
        await asyncio.to_thread(service.start)
        await asyncio.to_thread(ask, service)
        yield
    finally:
        await asyncio.to_thread(service.stop)


async def test_answers_are_published_over_mqtt_by_default(tmp_path: Path) -> None:
    async with ScriptedBroker().run() as broker, asked(tmp_path / "data", OTA_HOOK_MQTT_URL=broker.url):
        await eventually(lambda: broker.topics == [TOPIC])


async def test_hook_and_worker_have_as_many_connections_to_the_broker_as_settings_say(tmp_path: Path) -> None:
    environ = {"OTA_HOOK_MQTT_CONNECTIONS": "3"}
    async with ScriptedBroker().run() as broker, asked(tmp_path / "data", OTA_HOOK_MQTT_URL=broker.url, **environ):
        await eventually(lambda: sum(bool(client.connect) for client in broker.clients) == 2 * 3)


async def test_answers_are_published_through_emqxs_api_where_settings_say_so(tmp_path: Path) -> None:
    async with EmqxApi().run() as emqx:
        environ = {
            "OTA_HOOK_PUBLISHER": "emqx_api",
            "OTA_HOOK_EMQX_API_URL": emqx.url,
            "OTA_HOOK_EMQX_API_KEY": KEY,
            "OTA_HOOK_EMQX_API_SECRET": SECRET,
        }
        async with asked(tmp_path / "data", **environ):
            await eventually(lambda: len(emqx.published) == 1)
        ((topic, payload, _),) = emqx.published
        assert topic == TOPIC
        assert b'"upgrade":false' in payload
