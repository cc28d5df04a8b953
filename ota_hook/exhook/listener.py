"""The provider on the compiled gRPC session: sockets and the event loop, nothing else.

One worker process has one listener. Bytes that a connection brought become calls; answers that come in one turn of the
loop leave in one write per connection. It must not know HTTP/2 (the session does) or what a call means.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Final, Protocol, cast

import structlog

from ota_hook.errors import ConfigurationError
from ota_hook.exhook._session import Call, Session
from ota_hook.exhook.context import Respond
from ota_hook.exhook.provider import METHODS, PACKAGES, SERVICE

CONNECTIONS_MAX: Final = 8_192
"""Connections of one worker; a broker node opens its pool size. More are closed as they come."""
DRAIN_SECONDS: Final = 10.0
_SWEEP_S: Final = 5.0
_STALLED_S: Final = 60.0
"""A connection that owes the rest of a request, or has never sent one, for so long is closed. The broker pings."""
_CROSSING_S: Final = 0.25
"""After its goodbye a connection is closed when the peer has been silent for so long: a call may have crossed it."""
_BACKLOG: Final = 1_024

ROUTES: Final[dict[bytes, str]] = {
    f"/{package}.{SERVICE}/{method}".encode(): method for package in PACKAGES for method in METHODS
}

_log = structlog.get_logger("ota_hook.listener")


class TakesCalls(Protocol):
    def take(self, method: str, request: bytes, respond: Respond, call: object) -> bytes | None: ...


class Listener:
    """Serves one provider on one port until `stop`.

    `reuse_port` lets several workers listen on it (SO_REUSEPORT); the system spreads connections over them.
    """

    def __init__(
        self,
        provider: TakesCalls,
        *,
        host: str,
        port: int,
        message_bytes: int,
        reuse_port: bool = False,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        tls_client_ca: Path | None = None,
    ) -> None:
        self.provider = provider
        self.message_bytes = message_bytes
        self.connections: set[_Connection] = set()
        self.refused_connections = 0
        self.port = 0
        self._address = (host, port)
        self._reuse_port = reuse_port
        self._tls = _server_context(tls_cert, tls_key, tls_client_ca)
        self._server: asyncio.Server | None = None
        self._dirty: list[_Connection] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Bind and serve. ConfigurationError where the address can't be bound."""
        host, port = self._address
        try:
            bound = bind_tcp(host, port, reuse_port=self._reuse_port)
        except OSError as exc:
            raise ConfigurationError(
                f"OTA_HOOK_HOOK_LISTEN: {host}:{port} can't be bound: {exc.strerror}.",
                mend="Is another ota-hook running? Choose another port with --hook-listen.",
            ) from exc
        self._server = await self.loop.create_server(
            lambda: _Connection(self), sock=bound, ssl=self._tls, backlog=_BACKLOG
        )
        self.port = bound.getsockname()[1]
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)

    async def stop(self, *, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Take no new connections, answer every call, say goodbye to idle connections, then close."""
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self.connections):
            connection.start_drain()
        deadline = self.loop.time() + drain_seconds
        while self.connections and self.loop.time() < deadline:
            long_ago = self.loop.time() - _CROSSING_S
            for connection in tuple(self.connections):
                connection.close_if_drained(long_ago)
            await asyncio.sleep(0.01)
        if self.connections:
            _log.warning("connections_cut", count=len(self.connections))
        for connection in tuple(self.connections):
            connection.abort()

    @property
    def open_calls(self) -> int:
        return sum(connection.session.open_calls for connection in self.connections)

    def write_soon(self, connection: _Connection) -> None:
        """Write what the connection has to send when this turn of the loop is over."""
        if not self._dirty:
            self.loop.call_soon(self._write_all)
        self._dirty.append(connection)

    def _write_all(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.write()

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in tuple(self.connections):
            connection.close_if_stalled(now - _STALLED_S)
            connection.close_if_drained(now - _CROSSING_S)  # one that retired by itself
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection of a broker."""

    __slots__ = (
        "_drained_at",
        "_held",
        "_last_read",
        "_listener",
        "_paused",
        "_scheduled",
        "_served",
        "_transport",
        "session",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.session: Session[str] = Session(ROUTES, max_message_bytes=listener.message_bytes)
        self._transport: asyncio.Transport | None = None
        self._scheduled = False
        self._held = False  # the transport's buffer is full
        self._paused = False  # reading is
        self._served = False
        self._last_read = 0.0
        self._drained_at = 0.0

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        listener = self._listener
        if len(listener.connections) >= CONNECTIONS_MAX:
            listener.refused_connections += 1
            self._transport.abort()
            return
        listener.connections.add(self)
        self._last_read = listener.loop.time()
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._schedule()  # our SETTINGS

    def data_received(self, data: bytes) -> None:
        self._last_read = self._listener.loop.time()
        session = self.session
        calls = session.receive(data)
        if calls:
            self._served = True
            take, answer_now, answer_later = self._listener.provider.take, session.respond, self._respond
            for call in calls:
                answer = take(call.route, call.message, answer_later, call)
                if answer is not None:
                    answer_now(call, answer)
        self._schedule()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._listener.connections.discard(self)

    def pause_writing(self) -> None:
        self._held = True

    def resume_writing(self) -> None:
        self._held = False
        self._schedule()

    # ---- the calls' side

    def _respond(self, call: Call[str], response: bytes) -> None:
        self.session.respond(call, response)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._listener.write_soon(self)

    def write(self) -> None:
        self._scheduled = False
        transport, session = self._transport, self.session
        if transport is None:
            return
        while not self._held and (piece := session.data_to_send()):
            transport.write(piece)
        if session.closing:
            transport.close()
        elif session.paused != self._paused:
            self._paused = session.paused
            if self._paused:
                transport.pause_reading()
            else:
                transport.resume_reading()

    # ---- its end

    def start_drain(self) -> None:
        self.session.start_drain()
        self._schedule()

    def close_if_drained(self, long_ago: float) -> None:
        if self._transport is None or self._scheduled or self._held or not self.session.drained:
            return
        if not self._drained_at:
            self._drained_at = self._listener.loop.time()
        elif max(self._drained_at, self._last_read) < long_ago:
            self._transport.close()

    def close_if_stalled(self, long_ago: float) -> None:
        session = self.session
        if self._last_read >= long_ago or session.open_calls:
            return
        if session.open_streams or not self._served:
            _log.warning("connection_stalled", seconds=_STALLED_S)
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def bind_tcp(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """A bound socket. Raises OSError."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, proto)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _server_context(cert: Path | None, key: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    try:
        for path in filter(None, (cert, key, client_ca)):
            path.open("rb").close()  # which of them is missing, ssl does not say
    except OSError as exc:
        raise ConfigurationError(f"The hook's TLS file {exc.filename} can't be read: {exc.strerror}.") from exc
    try:
        context.load_cert_chain(cert, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as exc:
        raise ConfigurationError(f"The hook's TLS files can't be used: {exc}.") from exc
    return context
