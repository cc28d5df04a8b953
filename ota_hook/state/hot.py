"""Devices and offers on the path that every device message takes: the hook's ports, over pipes instead of redis-py.

The same records and scripts as devices.py and offers.py; commands of one turn of the loop share a round trip.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog

from ota_hook.errors import DependencyError
from ota_hook.model import COMMAND_ID_LIMIT, DeviceState, OpenOffer, Outcome
from ota_hook.ports.device_messages import DeviceDone, Report
from ota_hook.progress import Said
from ota_hook.state.device_scripts import LOAD, REPORT
from ota_hook.state.devices import DEFAULT_REFRESH_MS, report_arguments
from ota_hook.state.hot_calls import (
    DEFAULT_PATIENCE_MS,
    Keepers,
    Notes,
    Pipes,
    error_of,
    forget,
    read_state,
    refuse_for_late_reports,
    run_script,
    tell_again,
)
from ota_hook.state.keys import Keys, as_bytes
from ota_hook.state.offer_scripts import (
    ATTEMPT,
    CHILDREN_COME_BACK,
    COME_BACK,
    DEFAULT_ATTEMPTS_MAX,
    EXHAUSTED_CODE,
    GO_AWAY,
    RECORD,
    SETTLE,
    TRACK,
    attempt_call,
    children_come_back_call,
    come_back_call,
    record_call,
    settle_call,
    track_call,
)
from ota_hook.state.offers import FAILURES, tell_command
from ota_hook.state.pipe import Done, Unavailable, pack
from ota_hook.state.presence import NODES_KEPT, NOTE_NODE, pack_connection
from ota_hook.state.records import COMPACT_MAX_BYTES
from ota_hook.task import RunMove

SCRIPTS: Final = tuple(
    script.text for script in (LOAD, REPORT, RECORD, SETTLE, TRACK, ATTEMPT, COME_BACK, CHILDREN_COME_BACK, GO_AWAY)
)
"""What every pipe makes sure that Redis knows."""

ID_BLOCK: Final = 8_192
LATE_NOTES_MAX: Final = 100_000
_WAS_LAST: Final = 2
"""What ATTEMPT answers for the attempt behind which a firmware is exhausted."""
_LATE_BATCH: Final = 1_000
_LATE_S: Final = 0.2
_IDS_RETRY_S: Final = 0.2
_ATTACH_RETRY_S: Final = 1.0
_SCANNED: Final = b"0"
"""The cursor at the end of a scan."""

_log = structlog.get_logger("ota_hook.hot")


class HotDevices:
    """ports.device_messages.DeviceStates."""

    def __init__(self, pipes: Pipes, keys: Keys, *, refresh_ms: int = DEFAULT_REFRESH_MS) -> None:
        self._pipes = pipes
        self._keys = keys
        self._refresh_ms = refresh_ms
        self._keepers = Keepers()

    def load_device(self, identifier: str, done: DeviceDone) -> None:
        """See ports.device_messages.DeviceStates. A second round trip where the state does not fit the compact hash."""
        name = identifier.encode()
        bucket = self._keys.bucket_of_name(name)
        key = self._keys.devices(bucket)
        pipe = self._pipes.of(key)
        if pipe.answers_again_at_s is not None and (refusal := refuse_for_late_reports(pipe)) is not None:
            done(refusal)
            return
        if len(name) > COMPACT_MAX_BYTES:
            self._load_long(identifier, name, bucket, done)
            return

        def read(packed: Any) -> None:  # noqa: ANN401 - see pipe.Done
            if packed is None:
                done(None)
            elif type(packed) is not bytes:
                done(error_of(packed))
            elif packed:
                done(read_state(identifier, packed))
            else:
                self._load_long(identifier, name, bucket, done)

        pipe.submit(pack(("HGET", key, name)), read)

    def _load_long(self, identifier: str, name: bytes, bucket: int, done: DeviceDone) -> None:
        def read(packed: Any) -> None:  # noqa: ANN401
            if packed is None or type(packed) is bytes:
                done(read_state(identifier, packed) if packed else None)
            else:
                done(error_of(packed))

        key = self._keys.long_devices(bucket)
        self._pipes.of(key).submit(pack(("HGET", key, name)), read)

    def store_report(self, report: Report, kept_by_type: Mapping[str, frozenset[str]], done: DeviceDone) -> None:
        """See ports.device_messages.DeviceStates. `kept_by_type` must not be changed after it was passed.

        A type that it does not name registers nobody: it may be gone since the report came.
        """
        keepers = self._keepers.of(kept_by_type)
        if report.register and report.topic_type not in kept_by_type:
            report = replace(report, register=False)
        call = (self._touched(report.device), report_arguments(report, keepers, self._refresh_ms))
        run_script(self._pipes, REPORT, call, partial(_read_offered, report.device, done))

    def load_offered(self, identifier: str, done: DeviceDone) -> None:
        """See ports.device_messages.DeviceStates. One round trip, whatever the state."""
        call = (self._touched(identifier), (as_bytes(identifier),))
        refusal = refuse_for_late_reports(self._pipes.of(call[0][0]))
        if refusal is not None:
            done(refusal)
            return
        run_script(self._pipes, LOAD, call, partial(_read_offered, identifier, done))

    def _touched(self, identifier: str) -> tuple[str, str, str]:
        bucket = self._keys.bucket_of(identifier)
        return self._keys.devices(bucket), self._keys.long_devices(bucket), self._keys.offers(bucket)


def _read_offered(identifier: str, done: DeviceDone, stored: Any) -> None:  # noqa: ANN401
    """What REPORT and LOAD answer."""
    if stored is None:
        done(None)
        return
    if isinstance(stored, Exception):
        done(error_of(stored))
        return
    packed, offers = stored
    device = read_state(identifier, packed, offers)
    if offers and isinstance(device, DeviceState) and not device.open_offers:
        _log.error("offers_unreadable", device=identifier)
    done(device)


class HotOffers:
    """ports.device_messages.OpenOffers. What could not be noted is counted in `lost`.

    What devices said of offers is kept while Redis is away, within a bound, and noted when it is back. A firmware that
    a device tried `attempts_max` times is not offered to it any more.
    """

    def __init__(self, pipes: Pipes, keys: Keys, *, attempts_max: int = DEFAULT_ATTEMPTS_MAX) -> None:
        self._pipes = pipes
        self._keys = keys
        self._attempts_max = attempts_max
        self._notes = Notes(pipes)
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

        self._notes.run(RECORD, call, count)

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

        self._insist(lambda done: self._notes.run(SETTLE, call, done), count)

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

        self._insist(lambda done: self._notes.run(TRACK, call, done), count)

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

        self._insist(lambda done: self._notes.run(ATTEMPT, call, done), count)

    def close(self) -> None:
        """What is still kept is lost."""
        if self._retry is not None:
            self._retry.cancel()
        self.lost += len(self._late) + self._notes.close()
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
        run_script(self._pipes, NOTE_NODE, ((key,), (at_ms, as_bytes(node))), look)

    def come(self, identifier: str, connection: str, *, at_ms: int) -> None:
        """See ports.device_messages.Presence."""
        noted = pack_connection(connection, at_ms=at_ms)
        call = come_back_call(self._keys, identifier, noted, at_ms=at_ms, patience_ms=self._patience_ms)

        def tell(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                return
            cursor, again = reply
            tell_again(self._pipes, self._keys, again, at_ms=at_ms)
            if cursor != _SCANNED:
                more = children_come_back_call(
                    *(self._keys, identifier, cursor), at_ms=at_ms, patience_ms=self._patience_ms
                )
                run_script(self._pipes, CHILDREN_COME_BACK, more, tell)

        run_script(self._pipes, COME_BACK, call, tell)

    def go(self, identifier: str, connection: str) -> None:
        """See ports.device_messages.Presence."""
        key = self._keys.presence(self._keys.bucket_of(identifier))
        run_script(self._pipes, GO_AWAY, ((key,), (as_bytes(identifier), as_bytes(connection))), forget)


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
