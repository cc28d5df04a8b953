"""Publishes over MQTT connections that heal themselves. Must not know what a command means."""

from __future__ import annotations

import asyncio
import math
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import structlog

from ota_hook.errors import ConfigurationError, DependencyError
from ota_hook.ports.commands import Message
from ota_hook.publish.batch import Batch, find_fault
from ota_hook.publish.session import PublishSession, SessionError

_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_CONNECT_S: Final = 10.0
_SETTLED_S: Final = 10.0
"""A connection that lived so long was a good one: the next reconnect starts with the short pause again."""
_LOOKS_PER_TIMEOUT: Final = 8
_KEEPALIVE_MAX_S: Final = 65_535
_CLOSE_S: Final = 1.0
_IN_FLIGHT_AT_QOS_2_MAX: Final = 10
"""Brokers keep a list of them and end a connection that has too many: mosquitto at 20, EMQX at 100."""

_log = structlog.get_logger(__name__)


class MqttPublisher:
    """ports.commands.Publisher. `url` is `mqtt://` or `mqtts://`, `user:password@` percent-encoded where needed.

    A topic has its connection, and another one only while that is away. Of each connection at most `in_flight_max`
    publishes are not acknowledged; more wait, as many as callers do. A connection on which the broker leaves one
    unacknowledged for `ack_timeout_s` is replaced; so is one on which a ping stays unanswered, sent after
    `ping_every_s` of silence. After a lost one the pause before the next attempt doubles from `reconnect_min_s` to
    `reconnect_max_s`. Raises ConfigurationError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 1,
        client_id: str | None = None,
        ack_timeout_s: float = 5.0,
        in_flight_max: int = 100,
        reconnect_min_s: float = 0.5,
        reconnect_max_s: float = 30.0,
        ping_every_s: float = 30.0,
    ) -> None:
        self._address = BrokerAddress(url)
        base = client_id or f"ota-hook-{secrets.token_hex(4)}"
        self._connections = [
            _Connection(
                self._address,
                f"{base}-{number}" if connections > 1 else base,
                timing=_Timing(ack_timeout_s, ping_every_s),
                in_flight_max=in_flight_max,
                reconnect_s=(reconnect_min_s, reconnect_max_s),
                changed=self._on_change,
            )
            for number in range(connections)
        ]
        self._connected = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the broker accepted at least one of the connections."""
        return self._connected.is_set()

    async def start(self) -> None:
        """Begin to connect, and return at once: a broker that is away now is tried again until `stop`."""
        tls = self._address.tls_context()
        for connection in self._connections:
            connection.start(tls)

    async def stop(self) -> None:
        """Disconnect. Publishes under way raise DependencyError."""
        await asyncio.gather(*(connection.stop() for connection in self._connections))

    async def wait_connected(self) -> None:
        """Return when connected. Bound it with a timeout."""
        await self._connected.wait()

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish; returns when the broker took it: sent at qos 0, acknowledged at 1 and 2.

        Raises DependencyError when not connected, and when the connection is lost or replaced meanwhile; then the
        broker may or may not have taken it (`maybe_written`).
        """
        (error,) = await self.publish_many((Message(topic, payload, qos),))
        if error is not None:
            raise error

    async def publish_many(self, messages: Sequence[Message]) -> list[DependencyError | None]:
        """ports.commands.Publisher's, each as `publish`."""
        batch = Batch(len(messages))
        for index, message in enumerate(messages):
            error = find_fault(message)
            link = self._link_for(message.topic)
            if error is None and link is not None:
                link.put(_Waiting(message, batch, index))
            else:
                batch.settle(index, error or self._not_connected())
        return await batch.results()

    def _not_connected(self) -> DependencyError:
        trouble = self._connections[0].trouble
        return DependencyError(f"Not connected to the broker at {self._address}{trouble and f': {trouble}'}.")

    def _link_for(self, topic: str) -> _Link | None:
        count = len(self._connections)
        first = hash(topic) % count
        for number in range(first, first + count):
            link = self._connections[number % count].link
            if link is not None:
                return link
        return None

    def _on_change(self) -> None:
        if any(connection.link is not None for connection in self._connections):
            self._connected.set()
        else:
            self._connected.clear()


class _Timing:
    """When a connection is looked at, and after how many looks it is pinged or given up."""

    def __init__(self, ack_timeout_s: float, ping_every_s: float) -> None:
        self.look_every_s = min(ack_timeout_s / _LOOKS_PER_TIMEOUT, ping_every_s)
        self.timeout_looks = math.ceil(ack_timeout_s / self.look_every_s)
        self.ping_looks = math.ceil(ping_every_s / self.look_every_s)
        # The broker ends a connection after half as long again; a ping must be out well before.
        self.keepalive_s = min(math.ceil(2 * ping_every_s), _KEEPALIVE_MAX_S)


class _Connection:
    """Connects again and again. `link` is what the broker accepted, while it lasts; `trouble` ended the last one."""

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        timing: _Timing,
        in_flight_max: int,
        reconnect_s: tuple[float, float],
        changed: Callable[[], None],
    ) -> None:
        self.link: _Link | None = None
        self.trouble = ""
        self._address = address
        self._client_id = client_id
        self._timing = timing
        self._in_flight_max = in_flight_max
        self._reconnect_min_s, self._reconnect_max_s = reconnect_s
        self._changed = changed
        self._accepted_at_s = math.inf
        self._task: asyncio.Task[None] | None = None

    def start(self, tls: ssl.SSLContext | None) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._stay_connected(tls))

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _stay_connected(self, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._accepted_at_s = math.inf
            try:
                self.trouble = await self._connect_once(tls)
            except TimeoutError:
                self.trouble = f"no connection within {_CONNECT_S:g} s"
            except (OSError, UnicodeError) as exc:  # UnicodeError: a host name that can be none
                self.trouble = str(exc)
            failures = 1 if loop.time() - self._accepted_at_s > _SETTLED_S else failures + 1
            pause_s = min(self._reconnect_min_s * 2 ** min(failures - 1, 16), self._reconnect_max_s)
            # One failure is a restart of either side; a row of them is a broker that is away.
            log = _log.warning if failures > 1 else _log.info
            log("broker_connection_lost", broker=str(self._address), reason=self.trouble, retry_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _connect_once(self, tls: ssl.SSLContext | None) -> str:
        """Connect, and stay until the connection is lost; returns why it was."""
        async with asyncio.timeout(_CONNECT_S):
            _, link = await asyncio.get_running_loop().create_connection(
                self._make_link, self._address.host, self._address.port, ssl=tls
            )
        try:
            await asyncio.wait((link.lost,))
            return link.lost.result()
        finally:
            self._on_lost()
            await link.close()

    def _make_link(self) -> _Link:
        return _Link(
            self._address,
            self._client_id,
            timing=self._timing,
            in_flight_max=self._in_flight_max,
            accepted=self._on_accepted,
            ended=self._on_lost,
        )

    def _on_accepted(self, link: _Link) -> None:
        self.link = link
        self._accepted_at_s = asyncio.get_running_loop().time()
        self._changed()
        _log.info("broker_connected", broker=str(self._address), client_id=self._client_id)

    def _on_lost(self) -> None:
        self.link = None
        self._changed()


class _Waiting(NamedTuple):
    """A message with the place of its result."""

    message: Message
    batch: Batch
    place: int


class _InFlight(NamedTuple):
    batch: Batch
    place: int
    sent_at_look: int


class _Link(asyncio.Protocol):
    """One connection from CONNECT to its end, with what is under way on it and what waits for a place.

    Time is counted in looks at the connection: while this process is held up none happen, so a late look never takes
    acknowledgements for missing that have arrived and only were not read yet.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        timing: _Timing,
        in_flight_max: int,
        accepted: Callable[[_Link], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._address = address
        self._in_flight_max = in_flight_max
        self._accepted = accepted
        self._ended = ended
        self._session = PublishSession[_InFlight]()
        self._session.connect(
            client_id=client_id,
            username=address.username,
            password=address.password,
            keepalive_s=timing.keepalive_s,
        )
        self._waiting: deque[_Waiting] = deque()
        self._transport: asyncio.Transport | None = None
        self._writable = True
        self._filling: asyncio.Handle | None = None
        self._reason = ""
        self._timing = timing
        self._looks = 0
        self._last_sent = 0
        self._unanswered_since: int | None = 0  # CONNECT, or a ping
        self._timer: asyncio.TimerHandle | None = None

    def put(self, waiting: _Waiting) -> None:
        """Send it as soon as there is a place; all that is put in one turn of the loop leaves with one write."""
        self._waiting.append(waiting)
        if self._filling is None:
            self._filling = self._loop.call_soon(self._fill)

    async def close(self) -> None:
        """Say goodbye and end the connection; what is under way fails. Harmless on a lost one."""
        if not self.lost.done() and self._transport is not None:
            self._session.disconnect()
            self._send()
            self._transport.close()
            await asyncio.wait((self.lost,), timeout=_CLOSE_S)
            self._transport.abort()
            await asyncio.wait((self.lost,))

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclass of asyncio.Transport
        self._timer = self._loop.call_later(self._timing.look_every_s, self._look)
        self._send()

    def data_received(self, data: bytes) -> None:
        was_accepted = self._session.accepted
        try:
            acknowledged = self._session.receive(data)
        except SessionError as exc:
            self._give_up(str(exc))
            return
        self._unanswered_since = None
        for batch, place, _ in acknowledged:
            batch.settle(place, None)
        if self._session.accepted and not was_accepted:
            self._accepted(self)
        self._fill()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._fill()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        reason = self._reason or (str(exc) if exc else "the broker closed it")
        self.lost.set_result(reason)
        self._ended()  # before anyone hears of it: who publishes again at once must not come back here
        text = f"The connection to the broker at {self._address} was lost: {reason}."
        for batch, place, _ in self._session.drain():
            batch.settle(place, DependencyError(text, maybe_written=True))
        while self._waiting:
            _, batch, place = self._waiting.popleft()
            batch.settle(place, DependencyError(text))

    # ---- sending

    def _fill(self) -> None:
        """Send what waits, as far as there are places."""
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None
        session, waiting = self._session, self._waiting
        while waiting and self._writable and session.in_flight < self._in_flight_max:
            (topic, payload, qos), batch, place = waiting[0]
            if qos == 2 and session.in_flight_at_qos_2 >= _IN_FLIGHT_AT_QOS_2_MAX:
                break
            waiting.popleft()
            if batch.abandoned:
                continue
            session.publish(topic.encode(), payload, qos, _InFlight(batch, place, self._looks))
            if not qos:
                batch.settle(place, None)
        self._send()

    def _send(self) -> None:
        output = self._session.take_output()
        if output and self._transport is not None:
            self._last_sent = self._looks
            self._transport.write(output)

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._timing.look_every_s, self._look)
        self._looks += 1
        oldest = self._session.oldest
        if oldest is not None and self._looks - oldest.sent_at_look > self._timing.timeout_looks:
            self._give_up("the broker did not acknowledge a publish in time")
        elif self._unanswered_since is not None and self._looks - self._unanswered_since > self._timing.timeout_looks:
            self._give_up("the broker does not answer")
        elif self._looks - self._last_sent >= self._timing.ping_looks and self._unanswered_since is None:
            self._unanswered_since = self._looks
            self._session.ping()
            self._send()

    def _give_up(self, reason: str) -> None:
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()


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
