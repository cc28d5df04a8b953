"""What adapters on pipes do alike: run scripts, note in turn, read answers, let late reports go first, tell runs.

Must not know what a script is for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import hiredis

from ota_hook.errors import DependencyError
from ota_hook.model import DeviceState, Outcome
from ota_hook.state.connection import Call, Script
from ota_hook.state.devices import keepers_by_attribute
from ota_hook.state.keys import Keys, as_text
from ota_hook.state.offers import tell_command
from ota_hook.state.pipe import Done, RedisPipe, Unavailable, pack
from ota_hook.state.records import unpack_device
from ota_hook.task import RunMove

DEFAULT_PATIENCE_MS: Final = 60_000
"""After so long without an ack a command is taken for one that was not delivered."""
NOTES_AT_ONCE: Final = 128
"""Redis is busy with so many for some milliseconds, of the 50 within which it must answer a device."""
NOTES_WAITING_MAX: Final = 65_536
_SETTLING_S: Final = 0.5
"""After a stall checks wait so long for the late reports of every hook process; most are stored in half of it."""


class Pipes(Protocol):
    """The pipe to the primary that has a key."""

    def of(self, key: str) -> RedisPipe: ...


def run_script(pipes: Pipes, script: Script, call: Call, done: Done) -> None:
    """Run a script by its digest where its first key is; a Redis that forgot it is sent the text, once."""
    keys, arguments = call
    pipe = pipes.of(str(keys[0]))

    def retry(reply: Any) -> None:  # noqa: ANN401 - whatever a script returns
        if type(reply) is hiredis.ReplyError and str(reply).startswith("NOSCRIPT"):
            pipe.submit(pack(("EVAL", script.text, len(keys), *keys, *arguments)), done)
        else:
            done(reply)

    pipe.submit(pack(("EVALSHA", script.sha, len(keys), *keys, *arguments)), retry)


class Notes:
    """Scripts that no device waits for: so many are under way at a time, the others behind them in their order.

    One message of a gateway makes a thousand, and devices that ask meanwhile must have their answers in time. Bounded:
    what is one too many gets Unavailable.
    """

    __slots__ = ("_is_sending", "_pipes", "_under_way", "_waiting")

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._waiting: deque[tuple[Script, Call, Done]] = deque()
        self._under_way = 0
        self._is_sending = False

    def run(self, script: Script, call: Call, done: Done) -> None:
        """`run_script`, in its turn."""
        if not self._waiting and not self._is_sending and self._under_way < NOTES_AT_ONCE:  # nearly always
            self._is_sending = True
            try:
                self._under_way += 1
                run_script(self._pipes, script, call, partial(self._take, done))
            finally:
                self._is_sending = False
        elif len(self._waiting) >= NOTES_WAITING_MAX:
            done(Unavailable("too many notes wait"))
        else:
            self._waiting.append((script, call, done))
        if self._waiting:
            self._send_waiting()

    def _take(self, done: Done, reply: Any) -> None:  # noqa: ANN401 - whatever a script returns
        self._under_way -= 1
        try:
            done(reply)
        finally:
            if self._waiting:
                self._send_waiting()

    def _send_waiting(self) -> None:
        if self._is_sending:  # Redis is away, and a pipe answers at once: the loop below goes on
            return
        self._is_sending = True
        try:
            while self._waiting and self._under_way < NOTES_AT_ONCE:
                script, call, done = self._waiting.popleft()
                self._under_way += 1
                run_script(self._pipes, script, call, partial(self._take, done))
        finally:
            self._is_sending = False

    def close(self) -> int:
        """Forget what waits; how many that were."""
        count = len(self._waiting)
        self._waiting.clear()
        return count


def refuse_for_late_reports(pipe: RedisPipe) -> DependencyError | None:
    """Why nothing is read there yet: another hook process may hold late reports, which it has acknowledged."""
    again_at_s = pipe.answers_again_at_s
    if again_at_s is None or asyncio.get_running_loop().time() >= again_at_s + _SETTLING_S:
        return None
    return DependencyError("Redis has only just come back: late reports go first.")


def error_of(reply: Exception) -> DependencyError:
    """What a caller is told where Redis did not do it."""
    return DependencyError(f"Redis did not do it: {reply}.", mend="Try again.")


def unreadable(problem: object) -> DependencyError:
    """What a caller is told where a record is not ours to read."""
    return DependencyError(f"What Redis has of a device can't be read: {problem}.", mend="Delete and create it.")


def read_state(identifier: str, packed: bytes, offers: bytes | None = None) -> DeviceState | DependencyError:
    """The device; the error where what is stored is not ours to read. A fault in one record must stay that device's."""
    try:
        return unpack_device(identifier, packed, offers)
    except Exception as exc:  # noqa: BLE001 - msgpack has many, and any shape may come out of it
        return unreadable(repr(exc))


def tell_again(pipes: Pipes, keys: Keys, again: Sequence[Any], *, at_ms: int) -> None:
    """Tell runs which of their commands did not reach a device that is there now: identifier, run, chunk of each."""
    for identifier, run_id, chunk in zip(again[::3], again[1::3], again[2::3], strict=True):
        move = RunMove(as_text(run_id), chunk, as_text(identifier), Outcome.PLANNED, at_ms=at_ms)
        pipes.of(keys.run_events).submit(pack(tell_command(keys, move)), forget)


def forget(reply: Any) -> None:  # noqa: ANN401
    """What a note that may be lost is answered."""


class Keepers:
    """Which types keep an attribute, as scripts read it, worked out anew where the catalogue's mapping is another.

    A mapping must not be changed after it was passed.
    """

    __slots__ = ("_keepers", "_kept")

    def __init__(self) -> None:
        self._kept: Mapping[str, frozenset[str]] = {}
        self._keepers: Mapping[str, bytes] = {}

    def of(self, kept_by_type: Mapping[str, frozenset[str]]) -> Mapping[str, bytes]:
        """See devices.keepers_by_attribute."""
        if kept_by_type is not self._kept:
            self._kept, self._keepers = kept_by_type, keepers_by_attribute(kept_by_type)
        return self._keepers
