"""What devices say of an upgrade, in our words: replies to commands and `otaProgress` events.

Pure. Several vocabularies are in use; docs/pushes.md has them as a table. Success is never taken from here: the version
that the device reports is its only proof. Nothing a device sends raises anything but BadMessage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ota_hook.messages import BadMessage
from ota_hook.model import COMMAND_ID_LIMIT, Outcome

PROGRESS_EVENT: Final = "otaProgress"
UNDELIVERED: Final = "undelivered"
"""Noted of an offer, and of a device in a run: the broker could not deliver the command."""

FAILURES: Final[Mapping[int, tuple[Outcome, str]]] = {
    # The devices of this protocol, and Alibaba Cloud's.
    -1: (Outcome.FAILED, "install_failed"),
    -2: (Outcome.FAILED, "download_failed"),
    -3: (Outcome.FAILED, "verify_failed"),
    -4: (Outcome.FAILED, "flash_failed"),
    # Huawei Cloud's result codes.
    1: (Outcome.REJECTED, "busy"),
    2: (Outcome.REJECTED, "weak_signal"),
    3: (Outcome.REJECTED, "up_to_date"),
    4: (Outcome.REJECTED, "low_battery"),
    5: (Outcome.FAILED, "no_space"),
    6: (Outcome.FAILED, "download_timeout"),
    7: (Outcome.FAILED, "verify_failed"),
    8: (Outcome.FAILED, "package_unsupported"),
    9: (Outcome.FAILED, "no_memory"),
    10: (Outcome.FAILED, "install_failed"),
    255: (Outcome.FAILED, "internal"),
}
"""Result codes that say what went wrong; any other that is not 0 is `failed` with the number as its code."""

STATES: Final[Mapping[str, Outcome]] = {
    "received": Outcome.DELIVERED,
    "queued": Outcome.DELIVERED,
    "initiated": Outcome.DELIVERED,
    "downloading": Outcome.DOWNLOADING,
    "downloaded": Outcome.DOWNLOADED,
    "verified": Outcome.DOWNLOADED,
    "installing": Outcome.INSTALLING,
    "updating": Outcome.INSTALLING,
    "updated": Outcome.INSTALLING,
    "installed": Outcome.INSTALLING,
    "success": Outcome.INSTALLING,
    "succeeded": Outcome.INSTALLING,
    "failed": Outcome.FAILED,
    "rejected": Outcome.REJECTED,
}
"""States as ThingsBoard, and others, name them; capitals don't matter. What claims success waits for its proof."""

_CODE_MAX_CHARS: Final = 64
_MODULE_MAX_CHARS: Final = 64
_DONE: Final = 100


class Said(NamedTuple):
    """What a device said of an offer: of the one with that command id, or of that module's, or of its newest."""

    command_id: int | None
    module: str | None
    outcome: Outcome
    code: str


def read_reply(document: Mapping[str, Any]) -> Said | None:
    """The result in a reply to a command; None where it carries none: 0 is success, anything else a failure."""
    command_id = _command_id(document.get("id"))
    params = document.get("params")
    if not isinstance(params, dict) or "ota_result" not in params:
        return None
    result = _as_int(params["ota_result"])
    if result is None:
        raise BadMessage("bad_result")
    return Said(command_id, _module(params.get("module")), *_result(result))


def read_progress(document: Mapping[str, Any]) -> Said:
    """The progress in an `otaProgress` event: `step` 0 to 100, or a `state`, or a `code` that says what went wrong."""
    params = document.get("params")
    if not isinstance(params, dict):
        raise BadMessage("bad_progress")
    command_id, module = _command_id(params.get("id")), _module(params.get("module"))
    state, code, step = params.get("state"), params.get("code"), params.get("step")
    if isinstance(state, str) and (outcome := STATES.get(state.strip().lower())) is not None:
        return Said(command_id, module, outcome, _code(code) if outcome.is_final else "")
    number, percent = _as_int(code), _as_int(step)
    if percent is not None and percent < 0:  # Alibaba Cloud's devices fail so
        number = percent
    if number:
        return Said(command_id, module, *_result(number))
    if percent is None:
        raise BadMessage("bad_progress")
    return Said(command_id, module, Outcome.DOWNLOADED if percent >= _DONE else Outcome.DOWNLOADING, "")


def read_command(document: Mapping[str, Any]) -> int | None:
    """The id in a command of ours, as the broker shows it when it was delivered or dropped; None for no offer."""
    params = document.get("params")
    is_offer = isinstance(params, dict) and params.get("upgrade") is True
    return _command_id(document.get("id")) if is_offer else None


def _result(result: int) -> tuple[Outcome, str]:
    if result == 0:
        return Outcome.INSTALLING, ""  # the version will prove it
    return FAILURES.get(result, (Outcome.FAILED, str(result)[:_CODE_MAX_CHARS]))


def _code(code: object) -> str:
    """A failure's code as people read it; empty where there is none."""
    number = _as_int(code)
    if number is not None:
        return FAILURES.get(number, (Outcome.FAILED, str(number)))[1][:_CODE_MAX_CHARS]
    if isinstance(code, str):
        return "".join(c for c in code if c.isprintable())[:_CODE_MAX_CHARS]
    return ""


def _as_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _command_id(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(COMMAND_ID_LIMIT)):
        value = int(value)
    number = _as_int(value)
    return number if number is not None and 0 < number < COMMAND_ID_LIMIT else None


def _module(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _MODULE_MAX_CHARS else None
