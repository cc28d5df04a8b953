"""One pipelined connection to one Redis primary, on hiredis, for the path that every device message takes.

Commands of one turn of the event loop leave in one write; replies call back in order. Each command is answered within
the budget, whatever Redis does: with its reply, or with Unavailable. It must not know keys or what a reply means.

While Redis does not answer, the pipe is *open* in the sense of a circuit breaker: new commands are refused at once, so
that nobody waits a budget each. It closes with the next reply, or with a new connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

import hiredis
import structlog

from ota_hook.state.primaries import Address

PENDING_MAX: Final = 65_536
"""Commands that may wait for their reply; more are refused. At 200,000 replies a second that is a third of a second."""
_TICK_S: Final = 0.005
_STALLED_S: Final = 2.0
"""A connection that owes a reply for so long is given up and made anew."""
_CONNECT_S: Final = 2.0
_PAUSES_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_NOT_ENOUGH: Final = object()
# A reply that says "not here, not now": the primary is another one, or is still loading.
_ELSEWHERE: Final = ("READONLY", "MOVED", "LOADING", "MASTERDOWN", "CLUSTERDOWN")

_log = structlog.get_logger("ota_hook.pipe")


class Unavailable(Exception):  # noqa: N818 - a value that callbacks get, never raised
    """Redis did not answer in time, or there is no connection. Whether the command ran is not known."""


pack: Callable[[tuple[str | bytes | int, ...]], bytes] = cast("Any", hiredis.pack_command)
"""A command as it goes over the wire. (hiredis's own stub knows tuples of one word alone.)"""

Locate = Callable[[], Awaitable[Address]]
Done = Callable[[Any], None]
"""Gets the reply: bytes, int, list or None; a hiredis.ReplyError for an error reply; Unavailable."""


class _Command:
    """One command that owes an answer. `done` is None once it was called; the reply may still be on its way."""

    __slots__ = ("deadline", "done")

    def __init__(self, deadline: float, done: Done) -> None:
        self.deadline = deadline
        self.done: Done | None = done


class RedisPipe(asyncio.Protocol):
    """See the module. `locate` is asked before each connection, so a failover is followed.

    `scripts` are Lua texts that every new connection makes sure Redis knows.
    """

    def __init__(self, locate: Locate, *, scripts: Sequence[str] = (), budget_ms: int = 50) -> None:
        self._locate = locate
        self._scripts = scripts
        self._budget_s = budget_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH)
        self._transport: asyncio.WriteTransport | None = None
        self._outgoing: list[bytes] = []
        self._pending: deque[_Command] = deque()  # owe a reply, in order
        self._waiting: deque[_Command] = deque()  # owe an answer, in order of deadline
        self._ready = False
        self._stalled = False
        self._last_reply = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connections = 0
        self.refused = 0

    # ---- life

    async def start(self) -> None:
        """Connect, and stay connected until `close`. Returns after the first try, whether it succeeded or not."""
        first = asyncio.Event()
        self._task = self._loop.create_task(self._stay_connected(first))
        await first.wait()

    async def close(self) -> None:
        """Disconnect; what still waits gets Unavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._drop("closed")

    @property
    def available(self) -> bool:
        """Whether a command would be sent now."""
        return self._ready and not self._stalled and len(self._pending) < PENDING_MAX

    # ---- commands

    def submit(self, command: bytes, done: Done) -> None:
        """Send one packed command; `done` is called once, at the earliest in a later turn of the loop if it was sent.

        Where the pipe is not available, `done` gets Unavailable at once.
        """
        if not self._ready or self._stalled or len(self._pending) >= PENDING_MAX:
            self.refused += 1
            done(Unavailable("Redis is not available"))
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(command)
        entry = _Command(self._loop.time() + self._budget_s, done)
        self._pending.append(entry)
        self._waiting.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_S, self._expire)

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _expire(self) -> None:
        """Answer what waited too long. From the first such command on the pipe is open: Redis is slow or gone."""
        now = self._loop.time()
        waiting = self._waiting
        while waiting and (waiting[0].done is None or waiting[0].deadline <= now):
            entry = waiting.popleft()
            if entry.done is not None:
                if not self._stalled:
                    self._stalled = True
                    _log.warning("redis_stalled", budget_ms=round(self._budget_s * 1000))
                self._answer(entry, Unavailable("Redis did not answer within the budget"))
        if self._stalled and self._pending and now - self._last_reply > _STALLED_S:
            _log.warning("redis_given_up", seconds=_STALLED_S)
            self._timer = None
            self._drop("it owed replies for too long")
            return
        self._timer = self._loop.call_later(_TICK_S, self._expire) if self._pending else None

    @staticmethod
    def _answer(entry: _Command, reply: object) -> None:
        done, entry.done = entry.done, None
        if done is not None:
            try:
                done(reply)
            except Exception:  # noqa: BLE001 - logged whole
                # One answer that fails must not keep the others from theirs.
                _log.exception("callback_failed")

    # ---- connection

    async def _stay_connected(self, first: asyncio.Event) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await self._connect()
                failures = 0
            except Exception as exc:  # noqa: BLE001 - it must go on, whatever `locate` and the login meet
                if failures == 0:
                    _log.warning("redis_connection_failed", problem=str(exc) or type(exc).__name__)
                self._drop("the connection failed")
                first.set()
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                failures += 1
                continue
            first.set()
            await self._lost.wait()

    async def _connect(self) -> None:
        address = await self._locate()
        self._lost.clear()
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH)
        if address.path is not None:
            await self._loop.create_unix_connection(lambda: self, address.path)
        else:
            await self._loop.create_connection(lambda: self, address.host, address.port, ssl=address.tls)
        opening = [*address.login, *(("SCRIPT", "LOAD", script) for script in self._scripts), ("PING",)]
        replies = [self._loop.create_future() for _ in opening]
        for words, reply in zip(opening, replies, strict=True):
            entry = _Command(0.0, reply.set_result)
            self._pending.append(entry)
            self._outgoing.append(pack(words))
        self._flush()
        for answer in await asyncio.gather(*replies):
            if isinstance(answer, Exception):
                raise answer
        self._ready, self._stalled = True, False
        self._last_reply = self._loop.time()
        self.connections += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        pending = self._pending
        self._last_reply = self._loop.time()
        try:
            while (reply := reader.gets()) is not _NOT_ENOUGH:
                entry = pending.popleft()
                if type(reply) is hiredis.ReplyError and str(reply).startswith(_ELSEWHERE):
                    self._answer(entry, Unavailable(str(reply)))
                    self._drop(str(reply))
                    return
                done = entry.done
                if done is not None:
                    entry.done = None
                    done(reply)
        except (hiredis.ProtocolError, IndexError):
            _log.exception("redis_spoke_nonsense")
            self._drop("it spoke nonsense")
            return
        if self._stalled and not pending:
            self._stalled = False
            _log.info("redis_answers_again")
        waiting = self._waiting
        while waiting and waiting[0].done is None:
            waiting.popleft()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop(str(exc) if exc is not None else "Redis closed the connection")

    def _drop(self, reason: str) -> None:
        """Forget the connection and answer all that waits. Safe to call at any time, and again."""
        if self._ready and self._task is not None:
            _log.warning("redis_connection_lost", reason=reason)
        self._ready = False
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._outgoing.clear()
        owed = list(self._pending)
        self._pending.clear()
        self._waiting.clear()
        for entry in owed:
            self._answer(entry, Unavailable(reason))
        self._lost.set()
