"""How a device reads a command, as strictly as the protocol is written: keys, their order, and the bytes between them.

Owns the device's side of the command alone and shares nothing with the code that builds one, so that it can find that
code wrong. It must not know topics or connections.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

METHOD: Final = "otaUpgrade"
COMMAND_NAME: Final = "OTA升级"
_COMMAND_KEYS: Final = ["method", "params", "command_name", "id"]
_ENVELOPE_KEYS: Final = ["device", "command", "id"]
_NO_UPGRADE_KEYS: Final = ["module", "upgrade"]
_UPGRADE_KEYS: Final = ["module", "upgrade", "version", "url", "size", "md5"]
_EXTRA_KEYS: Final = ("sha256", "crc32", "signature")
ID_LIMIT: Final = 2**53


class WireViolationError(Exception):
    """A command that is not as the protocol says. The text names the difference."""


@dataclass(frozen=True, slots=True)
class UpgradeCommand:
    """`upgrade: true`. `size_bytes` and `md5` are those of the package behind `url`; `extras` follow `md5`."""

    id: int
    module: str
    version: str
    url: str
    size_bytes: int
    md5: str
    extras: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoUpgradeCommand:
    """`upgrade: false`."""

    id: int
    module: str


Command = UpgradeCommand | NoUpgradeCommand


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """A command as a gateway gets it: for the child that `device` names, a text or a list of addresses."""

    device: str | list[str]
    command: Command


def read_command(payload: bytes) -> Command | None:
    """The command; None for another method, which is not ours to judge. Raises WireViolationError."""
    document = _read_object(payload)
    if document.get("method") != METHOD:
        return None
    _require_compact(document, payload)
    return _read_command(document)


def read_child_command(payload: bytes) -> ChildCommand | None:
    """The same in its envelope, whose id is the command's."""
    document = _read_object(payload)
    inner = document.get("command")
    if not isinstance(inner, dict):
        raise WireViolationError("command is no object")
    if inner.get("method") != METHOD:
        return None
    _require_compact(document, payload)
    _require(list(document) == _ENVELOPE_KEYS, f"keys {list(document)}")
    device = document["device"]
    is_path = isinstance(device, list) and device != [] and all(map(_is_text, device))
    _require(_is_text(device) or is_path, f"device {device!r}")
    command = _read_command(inner)
    _require(type(document["id"]) is int and document["id"] == command.id, f"ids {document['id']!r} and {command.id}")
    return ChildCommand(device, command)


def _read_object(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise WireViolationError(f"not JSON: {payload[:200]!r}") from exc
    if not isinstance(document, dict):
        raise WireViolationError("not an object")
    return document


def _require_compact(document: dict[str, Any], payload: bytes) -> None:
    if json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() != payload:
        raise WireViolationError(f"not compact, or escaped: {payload[:200]!r}")


def _read_command(document: dict[str, Any]) -> Command:
    _require(list(document) == _COMMAND_KEYS, f"keys {list(document)}")
    _require(document["command_name"] == COMMAND_NAME, f"command_name {document['command_name']!r}")
    command_id = document["id"]
    _require(type(command_id) is int and 0 < command_id < ID_LIMIT, f"id {command_id!r}")
    params = document["params"]
    _require(isinstance(params, dict), "params is no object")
    _require(_is_text(params.get("module")), f"module {params.get('module')!r}")
    if params.get("upgrade") is False:
        _require(list(params) == _NO_UPGRADE_KEYS, f"params {list(params)}")
        return NoUpgradeCommand(id=command_id, module=params["module"])
    return _read_upgrade(command_id, params)


def _read_upgrade(command_id: int, params: dict[str, Any]) -> UpgradeCommand:
    keys = list(params)
    count = len(_UPGRADE_KEYS)
    _require(params.get("upgrade") is True, f"upgrade {params.get('upgrade')!r}")
    _require(keys[:count] == _UPGRADE_KEYS and set(keys[count:]) <= set(_EXTRA_KEYS), f"params {keys}")
    _require(_is_text(params["version"]), f"version {params['version']!r}")
    _require(_is_text(params["url"]) and params["url"].startswith(("http://", "https://")), f"url {params['url']!r}")
    _require(type(params["size"]) is int and params["size"] > 0, f"size {params['size']!r}")
    _require(_is_hex(params["md5"], 32), f"md5 {params['md5']!r}")
    extras = {key: params[key] for key in keys[count:]}
    _require(_is_hex(extras.get("sha256", "0" * 64), 64), f"sha256 {extras.get('sha256')!r}")
    _require(_is_hex(extras.get("crc32", "0" * 8), 8), f"crc32 {extras.get('crc32')!r}")
    return UpgradeCommand(
        id=command_id,
        module=params["module"],
        version=params["version"],
        url=params["url"],
        size_bytes=params["size"],
        md5=params["md5"],
        extras=extras,
    )


def _require(held: bool, difference: str) -> None:  # noqa: FBT001 - an assertion in all but name
    if not held:
        raise WireViolationError(difference)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None
