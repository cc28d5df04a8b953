"""The way to the broker that settings choose, for whichever role publishes. Must not know what is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ota_hook.publish.mqtt import MqttPublisher
from ota_hook.settings import Settings

if TYPE_CHECKING:
    from ota_hook.publish.emqx_api import EmqxApiPublisher


def make_publisher(settings: Settings) -> MqttPublisher | EmqxApiPublisher | None:
    """A publisher that was not started; None where settings name no broker."""
    url, key, secret = settings.emqx_api_url, settings.emqx_api_key, settings.emqx_api_secret
    if settings.publisher == "emqx_api" and url is not None and key is not None and secret is not None:
        from ota_hook.publish.emqx_api import EmqxApiPublisher  # noqa: PLC0415 - httpx takes long to import

        return EmqxApiPublisher(url, key=key, secret=secret.get_secret_value())
    if settings.mqtt_url is None:
        return None
    return MqttPublisher(settings.mqtt_url.get_secret_value(), connections=settings.mqtt_connections)
