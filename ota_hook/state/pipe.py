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
_LASTED_S: Final = 1.0
"""A connection that is lost sooner counts as one that failed: the next one waits for its pause."""
_NOT_ENOUGH: Final = object()
# This server is not (yet, any more) the primary: look for it and connect anew.
_NOT_HERE: Final = ("READONLY", "LOADING", "MASTERDOWN")
# This primary has not the key's slot (any more); what it has, it still serves.
_MOVED: Final = ("MOVED", "CLUSTERDOWN")

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


class _Link(asyncio.Protocol):
    """One connection of a pipe. What comes of it after the pipe gave it up is not heard."""

    __slots__ = ("pipe",)

    def __init__(self, pipe: RedisPipe) -> None:
        self.pipe: RedisPipe | None = pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.pipe is None:
            cast("asyncio.WriteTransport", transport).abort()
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pipe.connected(cast("asyncio.WriteTransport", transport))

    def data_received(self, data: bytes) -> None:
        if self.pipe is not None:
            self.pipe.take_replies(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.pipe is not None:
            self.pipe.drop(str(exc) if exc is not None else "Redis closed the connection")


class RedisPipe:
    """See the module. `locate` is asked before each connection, so a failover is followed.

    `scripts` are Lua texts that every new connection makes sure Redis knows. `on_moved` is told when a Cluster's node
    says that a key is another's.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        scripts: Sequence[str] = (),
        budget_ms: int = 50,
        on_moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._locate = locate
        self._scripts = scripts
        self._budget_s = budget_ms / 1000
        self._on_moved = on_moved
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH)
        self._link: _Link | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._outgoing: list[bytes] = []
        self._pending: deque[_Command] = deque()  # owe a reply, in order
        self._waiting: deque[_Command] = deque()  # owe an answer, in order of deadline
        self._ready = False
        self._stalled = False
        self._last_reply = 0.0
        self.answers_again_at_s: float | None = None
        """When it last came back from a stall, by the loop's clock; None for a pipe that never stalled."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the timer should ring
        self._excused = False
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
        self.drop("closed")

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
            self._tick()

    def _tick(self) -> None:
        self._due = self._loop.time() + _TICK_S
        self._timer = self._loop.call_at(self._due, self._expire)

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _expire(self) -> None:
        """Answer what waited too long. From the first such command on the pipe is open: Redis is slow or gone."""
        now = self._loop.time()
        if now - self._due > _TICK_S and not self._excused:
            # This process was held up, not Redis: what came meanwhile is read first. Once, for the bound must hold.
            self._excused = True
            self._tick()
            return
        self._excused = False
        waiting = self._waiting
        while waiting and (waiting[0].done is None or waiting[0].deadline <= now):
            entry = waiting.popleft()
            if entry.done is not None:
                if not self._stalled:
                    self._stalled = True
                    _log.warning("redis_stalled", budget_ms=round(self._budget_s * 1000))
                self._answer(entry, Unavailable("Redis did not answer within the budget"))
        if self._stalled and self._pending and now - self._owing_since() > _STALLED_S:
            _log.warning("redis_given_up", seconds=_STALLED_S)
            self.drop("it owed replies for too long")
            return
        if self._pending:
            self._tick()
        else:
            self._timer = None

    def _owing_since(self) -> float:
        """Since when the oldest reply is owed and nothing came."""
        return max(self._last_reply, self._pending[0].deadline - self._budget_s)

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
        failures, reported = 0, False
        while True:
            lasted_s = 0.0
            try:
                async with asyncio.timeout(_CONNECT_S):
                    address = await self._connect()
            except Exception as exc:  # noqa: BLE001 - it must go on, whatever `locate` and the login meet
                if not reported:
                    _log.warning("redis_connection_failed", problem=str(exc) or type(exc).__name__)
                reported = True
                self.drop("the connection failed")
                first.set()
            else:
                if self.connections > 1:
                    _log.info("redis_connected", address=str(address))
                reported = False
                first.set()
                began = self._loop.time()
                await self._lost.wait()
                lasted_s = self._loop.time() - began
            failures = 0 if lasted_s > _LASTED_S else failures + 1
            if failures:
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S)) - 1])

    async def _connect(self) -> Address:
        address = await self._locate()
        self._lost.clear()
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH)
        link = self._link = _Link(self)
        if address.path is not None:
            await self._loop.create_unix_connection(lambda: link, address.path)
        else:
            await self._loop.create_connection(lambda: link, address.host, address.port, ssl=address.tls)
        opening = [*address.login, *(("SCRIPT", "LOAD", script) for script in self._scripts), ("PING",)]
        for answer in await asyncio.gather(*[self._ask(words) for words in opening]):
            if isinstance(answer, Exception):
                raise answer
        self._ready = True
        self._last_reply = self._loop.time()
        self.connections += 1
        return address

    def _ask(self, words: tuple[str, ...]) -> asyncio.Future[Any]:
        """Send a command of the login, before the pipe is ready."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append(_Command(0.0, lambda reply: None if answer.done() else answer.set_result(reply)))
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(pack(words))
        return answer

    # ---- the link's side

    def connected(self, transport: asyncio.WriteTransport) -> None:
        """The link has its transport."""
        self._transport = transport

    def take_replies(self, data: bytes) -> None:
        """Call back with each whole reply."""
        reader = self._reader
        reader.feed(data)
        pending = self._pending
        self._last_reply = self._loop.time()
        try:
            while (reply := reader.gets()) is not _NOT_ENOUGH:
                if not pending:
                    self._give_up_nonsense("a reply that nobody asked for")
                    return
                entry = pending.popleft()
                if type(reply) is hiredis.ReplyError and not self._is_for_caller(entry, str(reply)):
                    if self._transport is None:
                        return
                elif (done := entry.done) is not None:
                    entry.done = None
                    try:
                        done(reply)
                    except Exception:  # noqa: BLE001 - logged whole; see _answer
                        _log.exception("callback_failed")
        except hiredis.ProtocolError as exc:
            self._give_up_nonsense(str(exc))
            return
        if self._stalled and not pending:
            self._stalled = False
            self.answers_again_at_s = self._loop.time()
            _log.info("redis_answers_again")
        waiting = self._waiting
        while waiting and waiting[0].done is None:
            waiting.popleft()

    def _is_for_caller(self, entry: _Command, error: str) -> bool:
        """Whether the caller shall see the error; else this server was the wrong one to ask, and that is seen to."""
        # Redis 6 hides it behind the script's own error.
        if error.startswith(_NOT_HERE) or "-READONLY " in error:
            self._answer(entry, Unavailable(error))
            self.drop(error)
            return False
        if error.startswith(_MOVED):
            self._answer(entry, Unavailable(error))
            self._on_moved()
            return False
        return True

    def _give_up_nonsense(self, problem: str) -> None:
        _log.error("redis_spoke_nonsense", problem=problem)
        self.drop("it spoke nonsense")

    def drop(self, reason: str) -> None:
        """Forget the connection and answer all that waits. Safe to call at any time, and again."""
        if self._ready and self._task is not None:
            _log.warning("redis_connection_lost", reason=reason)
        self._ready = self._stalled = False
        if self._link is not None:
            self._link.pipe = None
            self._link = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._outgoing.clear()
        owed = list(self._pending)
        self._pending.clear()
        self._waiting.clear()
        for entry in owed:
            self._answer(entry, Unavailable(reason))
        self._lost.set()
