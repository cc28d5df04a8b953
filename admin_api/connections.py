"""What a connection of the admin role may hold: a place for a while. Nobody needs a token to open one.

A subclass of uvicorn's protocol on h11, which itself bounds a head's size and the idle time behind an answer.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS: Final = 10.0
"""So long may the head of a request take, from the connection or the last answer on."""
CONNECTIONS_MAX: Final = 4_096


class BoundedProtocol(H11Protocol):
    """Closes a connection that dawdles over a request's head, and those above the bound as they come."""

    head_seconds: float = HEAD_SECONDS
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self.connections) >= CONNECTIONS_MAX:
            cast("asyncio.Transport", transport).abort()
            return
        super().connection_made(cast("Any", transport))
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """A timer runs exactly while the head of a request is awaited."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()
