"""Gateways and their children on the path that every device message takes: one round trip for all of one message.

The same records as hot.py's: a child is a device in its gateway's bucket. Must not know how children are spoken of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog

from ota_hook.errors import DependencyError
from ota_hook.model import ChildForm, DeviceState
from ota_hook.ports.device_messages import (
    ChildCame,
    ChildComing,
    ChildrenCame,
    ChildrenDone,
    ChildrenReported,
    ChildrenStored,
    LoadedChildren,
    StoredChildren,
)
from ota_hook.state.child_scripts import (
    CHILDREN_CAME,
    DEFAULT_CHILDREN_MAX,
    NOTE_FORM,
    STORE_CHILDREN,
    children_came_call,
    note_form_call,
    store_children_call,
)
from ota_hook.state.devices import DEFAULT_REFRESH_MS
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
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.pipe import pack
from ota_hook.state.records import COMPACT_MAX_BYTES, read_device

FULL_S: Final = 10.0
"""A gateway with too many children is not counted again for so long: with very many that takes Redis milliseconds."""
_FULL_MAX: Final = 10_000
"""Of so many gateways it is remembered."""
SCRIPTS: Final = tuple(script.text for script in (STORE_CHILDREN, CHILDREN_CAME, NOTE_FORM))
"""What every pipe makes sure that Redis knows."""

_Packed = dict[bytes, bytes | None]
"""By identifier what is stored; None where nothing is."""
_Found = Callable[["_Packed | DependencyError"], None]

_log = structlog.get_logger("ota_hook.hot")


class HotChildren:
    """ports.device_messages.ChildStates.

    A gateway registers children up to `children_max`, those that operators registered included. `patience_ms`: after so
    long without an ack a command is taken for one that was not delivered.
    """

    def __init__(
        self,
        pipes: Pipes,
        keys: Keys,
        *,
        children_max: int = DEFAULT_CHILDREN_MAX,
        refresh_ms: int = DEFAULT_REFRESH_MS,
        patience_ms: int = DEFAULT_PATIENCE_MS,
    ) -> None:
        self._pipes = pipes
        self._keys = keys
        self._children_max = children_max
        self._refresh_ms = refresh_ms
        self._patience_ms = patience_ms
        self._keepers = Keepers()
        self._notes = Notes(pipes)
        self._full_until_s: dict[str, float] = {}

    def load_children(self, gateway: str, identifiers: Sequence[str], done: ChildrenDone) -> None:
        """See ports.device_messages.ChildStates. A second round trip for states that do not fit the compact hash.

        A child whose record can't be read is None, and logged.
        """
        refusal = refuse_for_late_reports(self._pipes.of(self._keys.devices(self._keys.bucket_of(gateway))))
        if refusal is not None:
            done(refusal)
            return
        speaker = as_bytes(gateway)
        names = [as_bytes(identifier) for identifier in identifiers]

        def read(found: _Packed | DependencyError) -> None:
            if isinstance(found, DependencyError):
                done(found)
                return
            packed = found[speaker]
            state = read_state(gateway, packed) if packed else None
            if isinstance(state, DependencyError):
                done(state)
            elif state is None:
                done(LoadedChildren(None, (None,) * len(names)))
            else:
                children = map(_read_child, identifiers, (found[name] for name in names))
                done(LoadedChildren(state, tuple(children)))

        self._find(gateway, dict.fromkeys((speaker, *names)), read)

    def _find(self, gateway: str, names: Mapping[bytes, None], done: _Found) -> None:
        """What is stored under each name, in the bucket of the gateway."""
        bucket = self._keys.bucket_of(gateway)
        compact, long = self._keys.devices(bucket), self._keys.long_devices(bucket)
        short_names = [name for name in names if len(name) <= COMPACT_MAX_BYTES]
        long_names = [name for name in names if len(name) > COMPACT_MAX_BYTES]
        found: _Packed = {}
        problems: list[DependencyError] = []

        def look_further() -> None:
            elsewhere = [name for name, packed in found.items() if packed == b""]
            if elsewhere and not problems:
                self._look([(long, elsewhere)], found, problems, finish)
            else:
                finish()

        def finish() -> None:
            done(problems[0] if problems else found)

        looks = [(key, some) for key, some in ((compact, short_names), (long, long_names)) if some]
        self._look(looks, found, problems, look_further)

    def _look(
        self,
        looks: Sequence[tuple[str, Sequence[bytes]]],
        found: _Packed,
        problems: list[DependencyError],
        then: Callable[[], None],
    ) -> None:
        """Look up the names of each key, all in one write; call `then` behind the last answer."""
        left = len(looks)

        def take(names: Sequence[bytes], reply: Any) -> None:  # noqa: ANN401 - see pipe.Done
            nonlocal left
            left -= 1
            if isinstance(reply, Exception):
                problems.append(error_of(reply))
            else:
                found.update(zip(names, reply, strict=True))
            if left == 0:
                then()

        for key, names in looks:
            self._pipes.of(key).submit(pack(("HMGET", key, *names)), partial(take, names))

    def store_children(
        self, report: ChildrenReported, kept_by_type: Mapping[str, frozenset[str]], done: ChildrenStored
    ) -> None:
        """See ports.device_messages.ChildStates. `kept_by_type` must not be changed after it was passed.

        A child whose record can't be read is left out, and logged.
        """
        keepers = self._keepers.of(kept_by_type)
        call = store_children_call(self._keys, report, keepers, refresh_ms=self._refresh_ms)

        def read(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                done(error_of(reply))
                return
            if reply is None:
                done(StoredChildren(None))
                return
            packed, stored, unknown, damaged, offered = reply
            gateway = read_state(report.gateway, packed)
            if isinstance(gateway, DependencyError):
                done(gateway)
                return
            for name in damaged:
                _log.error("device_unreadable", device=as_text(name))
            states = map(_read_offered, offered[::3], offered[1::3], offered[2::3])
            done(StoredChildren(gateway, stored, unknown, tuple(state for state in states if state is not None)))

        run_script(self._pipes, STORE_CHILDREN, call, read)

    def children_came(
        self, gateway: str, coming: Sequence[ChildComing], *, topic_type: str | None, at_ms: int, done: ChildrenCame
    ) -> None:
        """See ports.device_messages.ChildStates. One whose record can't be read is logged."""
        children_max = 0 if self._is_full(gateway) else self._children_max
        call = children_came_call(
            *(self._keys, gateway, coming),
            topic_type=topic_type,
            at_ms=at_ms,
            patience_ms=self._patience_ms,
            children_max=children_max,
        )

        def read(reply: Any) -> None:  # noqa: ANN401
            if isinstance(reply, Exception):
                done(error_of(reply))
                return
            words, again = reply
            came = [ChildCame(word.decode()) for word in words]
            for (identifier, _, _), one in zip(coming, came, strict=True):
                if one is ChildCame.UNREADABLE:
                    _log.error("device_unreadable", device=identifier)
            if children_max and ChildCame.TOO_MANY in came:
                self._note_full(gateway)
            tell_again(self._pipes, self._keys, again, at_ms=at_ms)
            done(came)

        run_script(self._pipes, CHILDREN_CAME, call, read)

    def _is_full(self, gateway: str) -> bool:
        until_s = self._full_until_s.get(gateway)
        if until_s is not None and asyncio.get_running_loop().time() >= until_s:
            del self._full_until_s[gateway]
            return False
        return until_s is not None

    def _note_full(self, gateway: str) -> None:
        self._full_until_s[gateway] = asyncio.get_running_loop().time() + FULL_S
        if len(self._full_until_s) > _FULL_MAX:
            del self._full_until_s[next(iter(self._full_until_s))]

    def note_form(self, identifier: str, form: ChildForm) -> None:
        """See ports.device_messages.ChildStates."""
        self._notes.run(NOTE_FORM, note_form_call(self._keys, identifier, form), forget)


def _read_child(identifier: str, packed: bytes | None) -> DeviceState | None:
    if not packed:
        return None
    state = read_device(as_bytes(identifier), packed)
    if state is None:
        _log.error("device_unreadable", device=identifier)
    return state


def _read_offered(name: bytes, packed: bytes, offers: bytes) -> DeviceState | None:
    identifier = as_text(name)
    state = read_state(identifier, packed, offers)
    if isinstance(state, DependencyError):
        _log.error("device_unreadable", device=identifier)
        return None
    if not state.open_offers:
        _log.error("offers_unreadable", device=identifier)
        return None
    return state
