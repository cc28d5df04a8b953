"""The stand-in broker beside the hook. Must not know who publishes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import SecretStr

from ota_hook.bootstrap.sockets import address_of, bind_socket
from ota_hook.settings import Listen, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class StandinOptions:
    """An embedded MQTT broker beside the hook, which it asks as EMQX does."""

    listen: Listen
    package: Literal["v2", "v3"] = "v2"


def choose_broker_port(standin: StandinOptions, settings: Settings) -> tuple[StandinOptions, Settings]:
    """Fix the broker's port before the hook starts: its publisher needs the address, the broker needs the hook's."""
    listen = standin.listen
    with bind_socket(listen, "--standin-listen") as probe:
        listen = address_of(probe, listen)
    if settings.mqtt_url is None:
        settings = settings.model_copy(update={"mqtt_url": SecretStr(f"mqtt://{listen}")})
    return replace(standin, listen=listen), settings


@asynccontextmanager
async def run_standin(standin: StandinOptions, hook_address: str) -> AsyncIterator[str]:
    """Serve MQTT; yields the broker's URL once it has asked the hook what it wants to hear of."""
    from ota_hook.standin.broker import ExhookOptions, StandinBroker  # noqa: PLC0415 - an extra, and slow to import

    broker = StandinBroker(
        host=standin.listen.host,
        port=standin.listen.port,
        exhook=ExhookOptions(url=hook_address, package=standin.package, auto_reconnect_s=1.0),
    )
    await broker.start()
    try:
        await broker.wait_loaded()
        yield broker.mqtt_url
    finally:
        await broker.stop()
