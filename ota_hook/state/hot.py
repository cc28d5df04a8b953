"""Devices and offers on the path that every device message takes: the hook's ports, over pipes instead of redis-py.

The same records and scripts as devices.py and offers.py; commands of one turn of the loop share a round trip.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

import hiredis
import structlog

from ota_hook.errors import DependencyError
from ota_hook.model import COMMAND_ID_LIMIT, DeviceState, OpenOffer, Outcome
from ota_hook.ports.device_messages import DeviceDone, Report
from ota_hook.progress import Said
from ota_hook.state.connection import Argument, Call, Script
from ota_hook.state.device_scripts import REPORT
from ota_hook.state.devices import DEFAULT_REFRESH_MS, keepers_by_attribute, report_arguments
from ota_hook.state.keys import Keys, as_bytes
from ota_hook.state.offer_scripts import (
    ATTEMPT,
    COME_BACK,
    DEFAULT_ATTEMPTS_MAX,
    EXHAUSTED_CODE,
    GO_AWAY,
    RECORD,
    SETTLE,
    TRACK,
    attempt_call,
    come_back_call,
    record_call,
    settle_call,
    track_call,
)
from ota_hook.state.offers import FAILURES, tell_command
from ota_hook.state.pipe import Done, RedisPipe, Unavailable, pack
from ota_hook.state.presence import NODES_KEPT, NOTE_NODE, pack_connection
from ota_hook.state.records import COMPACT_MAX_BYTES, unpack_device
from ota_hook.task import RunMove

SCRIPTS: Final = (REPORT.text, RECORD.text, SETTLE.text, TRACK.text, ATTEMPT.text, COME_BACK.text, GO_AWAY.text)
"""What every pipe makes sure that Redis knows."""

ID_BLOCK: Final = 8_192
DEFAULT_PATIENCE_MS: Final = 60_000
LATE_NOTES_MAX: Final = 100_000
_WAS_LAST: Final = 2
"""What ATTEMPT answers for the attempt behind which a firmware is exhausted."""
_LATE_BATCH: Final = 1_000
_LATE_S: Final = 0.2
_IDS_RETRY_S: Final = 0.2
_ATTACH_RETRY_S: Final = 1.0
_SETTLING_S: Final = 0.5
"""After a stall checks wait so long for the late reports of every hook process; most are stored in half of it."""

_log = structlog.get_logger("ota_hook.hot")


class Pipes(Protocol):
    """The pipe to the primary that has a key."""

    def of(self, key: str) -> RedisPipe: ...


def _run_script(
    pipe: RedisPipe, script: Script, keys: Sequence[Argument], arguments: Sequence[Argument], done: Done
) -> None:
    """Run a script by its digest; a Redis that forgot it is sent the text, once."""

    def retry(reply: Any) -> None:  # noqa: ANN401 - whatever a script returns
        if type(reply) is hiredis.ReplyError and str(reply).startswith("NOSCRIPT"):
            pipe.submit(pack(("EVAL", script.text, len(keys), *keys, *arguments)), done)
        else:
            done(reply)

    pipe.submit(pack(("EVALSHA", script.sha, len(keys), *keys, *arguments)), retry)


def _error_of(reply: Exception) -> DependencyError:
    return DependencyError(f"Redis did not do it: {reply}.", mend="Try again.")


def _read_device(identifier: str, packed: bytes, offers: bytes | None = None) -> DeviceState | DependencyError:
    """The device; the error where what is stored is not ours to read. A fault in one record must stay that device's."""
    try:
        return unpack_device(identifier, packed, offers)
    except Exception as exc:  # noqa: BLE001 - msgpack has many, and any shape may come out of it
        return DependencyError(f"What Redis has of a device can't be read: {exc!r}.", mend="Delete and create it.")


class HotDevices:
    """ports.device_messages.DeviceStates."""

    def __init__(self, pipes: Pipes, keys: Keys, *, refresh_ms: int = DEFAULT_REFRESH_MS) -> None:
        self._pipes = pipes
        self._keys = keys
        self._refresh_ms = refresh_ms
        self._kept: Mapping[str, frozenset[str]] = {}
        self._keepers: Mapping[str, bytes] = {}

    def load_device(self, identifier: str, done: DeviceDone) -> None:
        """See ports.device_messages.DeviceStates. A second round trip where the state does not fit the compact hash."""
        name = identifier.encode()
        bucket = self._keys.bucket_of_name(name)
        if len(name) > COMPACT_MAX_BYTES:
            self._load_long(identifier, name, bucket, done)
            return

        def read(packed: Any) -> None:  # noqa: ANN401 - see pipe.Done
            if packed is None:
                done(None)
            elif type(packed) is not bytes:
                done(_error_of(packed))
            elif packed:
                done(_read_device(identifier, packed))
            else:
                self._load_long(identifier, name, bucket, done)

        key = self._keys.devices(bucket)
        pipe = self._pipes.of(key)
        again_at_s = pipe.answers_again_at_s
        if again_at_s is not None and asyncio.get_running_loop().time() < again_at_s + _SETTLING_S:
            # Another hook process may hold a late report of this device, which it has acknowledged.
            done(DependencyError("Redis has only just come back: late reports go first."))
            return
        pipe.submit(pack(("HGET", key, name)), read)

    def _load_long(self, identifier: str, name: bytes, bucket: int, done: DeviceDone) -> None:
        def read(packed: Any) -> None:  # noqa: ANN401
            if packed is None or type(packed) is bytes:
                done(_read_device(identifier, packed) if packed else None)
            else:
                done(_error_of(packed))

        key = self._keys.long_devices(bucket)
        self._pipes.of(key).submit(pack(("HGET", key, name)), read)

    def store_report(self, report: Report, kept_by_type: Mapping[str, frozenset[str]], done: DeviceDone) -> None:
        """See ports.device_messages.DeviceStates. `kept_by_type` must not be changed after it was passed.

        A type that it does not name registers nobody: it may be gone since the report came.
        """
        if kept_by_type is not self._kept:
            self._kept, self._keepers = kept_by_type, keepers_by_attribute(kept_by_type)
        if report.register and report.topic_type not in kept_by_type:
            report = replace(report, register=False)
        bucket = self._keys.bucket_of(report.device)
        touched = (self._keys.devices(bucket), self._keys.long_devices(bucket), self._keys.offers(bucket))
        arguments = report_arguments(report, self._keepers, self._refresh_ms)

        def read(stored: Any) -> None:  # noqa: ANN401
            if stored is None:
                done(None)
            elif isinstance(stored, Exception):
                done(_error_of(stored))
            else:
                packed, offers = stored
                device = _read_device(report.device, packed, offers)
                if offers and isinstance(device, DeviceState) and not device.open_offers:
                    _log.error("offers_unreadable", device=report.device)
                done(device)

        _run_script(self._pipes.of(touched[0]), REPORT, touched, arguments, read)


class HotOffers:
    """ports.device_messages.OpenOffers. What could not be noted is counted in `lost`.

    What devices said of offers is kept while Redis is away, within a bound, and noted when it is back. A firmware that
    a device tried `attempts_max` times is not offered to it any more.
    """

    def __init__(self, pipes: Pipes, keys: Keys, *, attempts_max: int = DEFAULT_ATTEMPTS_MAX) -> None:
        self._pipes = pipes
        self._keys = keys
        self._attempts_max = attempts_max
        self._late: deque[Callable[[], None]] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self.lost = 0

    def record_offer(self, identifier: str, offer: OpenOffer) -> None:
        """See ports.device_messages.OpenOffers. An offer to a device that is not registered (any more) is not kept."""
        call = record_call(self._keys, identifier, offer)

        def count(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                self._lose(reply)
                return
            happened, superseded, run_id, chunk = reply
            if happened == b"opened":
                self._count(offer.firmware_id, Outcome.OFFERED)
            if superseded:
                self._count(superseded.decode(), Outcome.SUPERSEDED)
            if run_id:
                at_ms = offer.offered_at_ms
                self._tell(RunMove(run_id.decode(), chunk, identifier, Outcome.SUPERSEDED, at_ms=at_ms))

        self._run(RECORD, call, count)

    def settle_offer(
        self, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int
    ) -> None:
        """See ports.device_messages.OpenOffers. The history keeps the offer as stored, with every command id."""
        call = settle_call(
            *(self._keys, identifier, offer, outcome),
            code=code,
            settled_at_ms=settled_at_ms,
            attempts_max=self._attempts_max,
        )

        def count(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                self._lose(reply)
                return
            happened, run_id, chunk = reply
            if happened:
                self._count(offer.firmware_id, outcome)
            if run_id:
                self._tell(RunMove(run_id.decode(), chunk, identifier, outcome, code, settled_at_ms))

        self._insist(lambda done: self._run(SETTLE, call, done), count)

    def track_offer(self, identifier: str, said: Said, *, at_ms: int) -> None:
        """See ports.device_messages.OpenOffers."""
        call = track_call(self._keys, identifier, said, at_ms=at_ms, attempts_max=self._attempts_max)

        def count(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                self._lose(reply)
                return
            changed, firmware_id, run_id, chunk = reply
            if changed and said.outcome is not Outcome.OFFERED:
                self._count(firmware_id.decode(), said.outcome)
            if changed and run_id:
                self._tell(RunMove(run_id.decode(), chunk, identifier, said.outcome, said.code, at_ms))

        self._insist(lambda done: self._run(TRACK, call, done), count)

    def count_attempt(self, identifier: str, offer: OpenOffer, *, at_ms: int) -> None:
        """See ports.device_messages.OpenOffers."""
        call = attempt_call(self._keys, identifier, offer, at_ms=at_ms, attempts_max=self._attempts_max)

        def count(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                self._lose(reply)
                return
            counted, run_id, chunk = reply
            if counted != _WAS_LAST:
                return
            _log.warning("attempts_exhausted", device=identifier, firmware=offer.firmware_id)
            self._count(offer.firmware_id, Outcome.FAILED)
            if run_id:
                self._tell(RunMove(run_id.decode(), chunk, identifier, Outcome.FAILED, EXHAUSTED_CODE, at_ms))

        self._insist(lambda done: self._run(ATTEMPT, call, done), count)

    def _run(self, script: Script, call: Call, done: Done) -> None:
        touched, arguments = call
        _run_script(self._pipes.of(str(touched[0])), script, touched, arguments, done)

    def close(self) -> None:
        """What is still kept is lost."""
        if self._retry is not None:
            self._retry.cancel()
        self.lost += len(self._late)
        self._late.clear()

    def _tell(self, move: RunMove) -> None:
        command = pack(tell_command(self._keys, move))
        self._insist(lambda done: self._pipes.of(self._keys.run_events).submit(command, done), self._note_loss)

    def _insist(self, send: Callable[[Done], None], done: Done) -> None:
        """Send, and where Redis does not answer, again until it does. It may run twice."""

        def look(reply: Any) -> None:  # noqa: ANN401
            if type(reply) is not Unavailable:
                done(reply)
            elif len(self._late) >= LATE_NOTES_MAX:
                self._lose(reply)
            else:
                self._late.append(lambda: send(look))
                if self._retry is None:
                    self._retry = asyncio.get_running_loop().call_later(_LATE_S, self._send_late)

        send(look)

    def _send_late(self) -> None:
        self._retry = None
        kept = [self._late.popleft() for _ in range(min(_LATE_BATCH, len(self._late)))]
        for send in kept:
            send()
        if self._late and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(_LATE_S, self._send_late)

    def _count(self, firmware_id: str, outcome: Outcome) -> None:
        key = self._keys.counters(firmware_id)
        command = pack(("HINCRBY", key, outcome.value, 1))
        self._pipes.of(key).submit(command, self._note_loss)
        if outcome in FAILURES:
            failing = self._keys.failing
            self._pipes.of(failing).submit(pack(("SADD", failing, firmware_id)), self._note_loss)

    def _note_loss(self, reply: Any) -> None:  # noqa: ANN401
        if isinstance(reply, Exception):
            self._lose(reply)

    def _lose(self, reply: Exception) -> None:
        self.lost += 1
        if not isinstance(reply, Unavailable):  # Redis refuses what it was asked: worth more than a number
            _log.error("offer_not_noted", problem=str(reply))


class HotPresence:
    """ports.device_messages.Presence.

    `patience_ms`: after so long without an ack a command is taken for one that was not delivered. Which node of the
    broker attached is noted until Redis has it; all else may be lost.
    """

    def __init__(self, pipes: Pipes, keys: Keys, *, patience_ms: int = DEFAULT_PATIENCE_MS) -> None:
        self._pipes = pipes
        self._keys = keys
        self._patience_ms = patience_ms
        self._retries: dict[str, asyncio.TimerHandle] = {}

    def close(self) -> None:
        """Try no more."""
        for retry in self._retries.values():
            retry.cancel()
        self._retries.clear()

    def attach(self, node: str, *, at_ms: int) -> None:
        """See ports.device_messages.Presence."""
        key = self._keys.broker_nodes

        def look(reply: Any) -> None:  # noqa: ANN401
            if type(reply) is Unavailable and (node in self._retries or len(self._retries) < NODES_KEPT):
                again = partial(self.attach, node, at_ms=at_ms)
                self._retries[node] = asyncio.get_running_loop().call_later(_ATTACH_RETRY_S, again)
            else:
                self._retries.pop(node, None)

        if (earlier := self._retries.get(node)) is not None:
            earlier.cancel()
        _run_script(self._pipes.of(key), NOTE_NODE, (key,), (at_ms, as_bytes(node)), look)

    def come(self, identifier: str, connection: str, *, at_ms: int) -> None:
        """See ports.device_messages.Presence."""
        noted = pack_connection(connection, at_ms=at_ms)
        touched, arguments = come_back_call(self._keys, identifier, noted, at_ms=at_ms, patience_ms=self._patience_ms)

        def tell(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                return
            for run_id, chunk in zip(reply[::2], reply[1::2], strict=True):
                move = RunMove(run_id.decode(), chunk, identifier, Outcome.PLANNED, at_ms=at_ms)
                self._pipes.of(self._keys.run_events).submit(pack(tell_command(self._keys, move)), _forget)

        _run_script(self._pipes.of(str(touched[0])), COME_BACK, touched, arguments, tell)

    def go(self, identifier: str, connection: str) -> None:
        """See ports.device_messages.Presence."""
        key = self._keys.presence(self._keys.bucket_of(identifier))
        _run_script(self._pipes.of(key), GO_AWAY, (key,), (as_bytes(identifier), as_bytes(connection)), _forget)


def _forget(reply: Any) -> None:  # noqa: ANN401
    """What a note that may be lost is answered."""


class HotCommandIds:
    """ports.commands.CommandIds. Blocks are taken with INCRBY ahead of need; what a process does not use is skipped."""

    def __init__(self, pipes: Pipes, keys: Keys, *, block: int = ID_BLOCK) -> None:
        self._pipes = pipes
        self._key = keys.command_ids
        self._command = pack(("INCRBY", keys.command_ids, block))
        self._block = block
        self._next = 0
        self._end = 0  # behind the block in use
        self._ahead: list[int] = []  # first id of each block in stock
        self._asked = False
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Take the first block."""
        self._ask()

    def close(self) -> None:
        """Ask no more."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()

    def next_id(self) -> int:
        """See ports.commands.CommandIds."""
        if self._next == self._end:
            if not self._ahead:
                self._ask()
                raise DependencyError("No command id is in stock.", mend="Try again.")
            self._next = self._ahead.pop(0)
            self._end = self._next + self._block
        number = self._next
        self._next += 1
        if not self._ahead and not self._asked and (self._end - self._next) * 2 < self._block:
            self._ask()
        return number

    def _ask(self) -> None:
        if not self._asked and not self._closed:
            self._asked = True
            self._pipes.of(self._key).submit(self._command, self._take)

    def _take(self, reply: Any) -> None:  # noqa: ANN401
        if type(reply) is int and reply < COMMAND_ID_LIMIT:
            self._asked = False
            self._ahead.append(reply - self._block + 1)
            return
        if type(reply) is int:
            _log.error("command_ids_used_up", last=reply)
        if self._closed:
            return
        pause_s = _IDS_RETRY_S * random.uniform(0.5, 1.5)  # noqa: S311 - spreads workers, no secret
        self._retry = asyncio.get_running_loop().call_later(pause_s, self._again)

    def _again(self) -> None:
        self._asked = False
        self._ask()
