"""Publishes commands over one MQTT connection that heals itself. Must not know what a command means."""

from __future__ import annotations

import asyncio
import math
import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import aiomqtt
import structlog
from paho.mqtt.enums import MQTTErrorCode

from ota_hook.errors import ConfigurationError, DependencyError

_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_SETTLED_S: Final = 10.0
"""A connection that lived so long was a good one: the next reconnect starts with the short pause again."""

_log = structlog.get_logger(__name__)


class MqttPublisher:
    """ports.Publisher on aiomqtt. `url` is `mqtt://` or `mqtts://`, `user:password@` percent-encoded where needed.

    At most `in_flight_max` publishes are under way; more wait their turn within their own `ack_timeout_s`. After a
    lost connection the pause before the next attempt doubles from `reconnect_min_s` to `reconnect_max_s`.
    Raises ConfigurationError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str | None = None,
        ack_timeout_s: float = 5.0,
        in_flight_max: int = 100,
        reconnect_min_s: float = 0.5,
        reconnect_max_s: float = 30.0,
    ) -> None:
        self._address = BrokerAddress(url)
        self._client_id = client_id
        self._ack_timeout_s = ack_timeout_s
        self._in_flight_max = in_flight_max
        self._reconnect_min_s = reconnect_min_s
        self._reconnect_max_s = reconnect_max_s
        self._slots = asyncio.Semaphore(in_flight_max)
        self._client: aiomqtt.Client | None = None
        self._lost: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._connected_at_s = math.inf

    @property
    def connected(self) -> bool:
        """Whether the broker accepted the connection that is in use."""
        return self._connected.is_set()

    async def start(self) -> None:
        """Begin to connect, and return at once: a broker that is away now is tried again until `stop`."""
        if self._task is None:
            self._task = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Disconnect. Publishes under way raise DependencyError."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait_connected(self) -> None:
        """Return when connected. Bound it with a timeout."""
        await self._connected.wait()

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish; returns when the broker took it: sent at qos 0, acknowledged at 1 and 2.

        Raises DependencyError when not connected, when the connection is lost meanwhile, or after `ack_timeout_s`;
        then the broker may or may not have taken it.
        """
        try:
            async with asyncio.timeout(self._ack_timeout_s), self._slots:
                await self._publish_now(topic, payload, qos)
        except TimeoutError as exc:
            raise DependencyError(f"The broker at {self._address} did not acknowledge a publish in time.") from exc
        except (aiomqtt.MqttError, ValueError) as exc:
            raise DependencyError(f"Publishing through the broker at {self._address} failed: {exc}.") from exc

    async def _publish_now(self, topic: str, payload: bytes, qos: int) -> None:
        client, lost = self._client, self._lost
        if client is None or lost is None:
            raise DependencyError(f"Not connected to the broker at {self._address}.")
        sending = asyncio.ensure_future(client.publish(topic, payload, qos=qos, timeout=self._ack_timeout_s))
        try:
            # aiomqtt alone would wait for an acknowledgement that a lost connection can't bring.
            await asyncio.wait((sending, lost), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise DependencyError(f"The connection to the broker at {self._address} was lost.")
            sending.result()
        except aiomqtt.MqttCodeError as exc:
            if exc.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE and not lost.done():
                # As many as are allowed timed out and hold their places still: only a new connection frees them.
                lost.set_result(None)
            raise
        finally:
            sending.cancel()

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._connected_at_s = math.inf
            try:
                await self._connect_once()
            except (aiomqtt.MqttError, OSError) as exc:
                failures = 1 if loop.time() - self._connected_at_s > _SETTLED_S else failures + 1
                pause_s = min(self._reconnect_min_s * 2 ** min(failures - 1, 16), self._reconnect_max_s)
                # One failure is a restart of either side; a row of them is a broker that is away.
                log = _log.warning if failures > 1 else _log.info
                log("broker_connection_lost", broker=str(self._address), reason=str(exc), retry_s=pause_s)
                await asyncio.sleep(pause_s)

    async def _connect_once(self) -> None:
        """Connect, and stay until the connection is lost or given up (MqttError)."""
        address = self._address
        client = aiomqtt.Client(
            address.host,
            address.port,
            username=address.username,
            password=address.password,
            identifier=self._client_id,
            tls_context=address.tls_context(),
            max_inflight_messages=self._in_flight_max,
            max_queued_outgoing_messages=self._in_flight_max,
            max_queued_incoming_messages=1,
        )
        client.pending_calls_threshold = self._in_flight_max
        async with client:
            lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._client, self._lost = client, lost
            self._connected_at_s = asyncio.get_running_loop().time()
            self._connected.set()
            _log.info("broker_connected", broker=str(address))
            # Nothing is subscribed: the wait for a message ends with the connection.
            reading = asyncio.ensure_future(anext(client.messages))
            try:
                await asyncio.wait((reading, lost), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._client = self._lost = None
                self._connected.clear()
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                if not lost.done():
                    lost.set_result(None)
        raise aiomqtt.MqttError("disconnected")


class BrokerAddress:
    """The parts of an MQTT URL; ConfigurationError for one that is none. Its text leaves the credentials out."""

    def __init__(self, url: str) -> None:
        mend = "Give mqtt://HOST[:PORT] or mqtts://HOST[:PORT], with USER:PASSWORD@ before HOST where needed."
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ConfigurationError("The broker's URL can't be read.", mend=mend) from exc
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.path.strip("/"):
            raise ConfigurationError("The broker's URL is not an MQTT one.", mend=mend)
        self.scheme = parts.scheme
        self.host = parts.hostname
        self.port = port or _DEFAULT_PORTS[parts.scheme]
        self.tls = parts.scheme == "mqtts"
        self.username = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password) if parts.password else None

    def tls_context(self) -> ssl.SSLContext | None:
        """The system's trust for `mqtts`, None for `mqtt`."""
        return ssl.create_default_context() if self.tls else None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"
