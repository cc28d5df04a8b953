"""Who a device is: direct devices by their connection's name, children by their way from the gateway.

Pure. A child is `GATEWAY/ADDRESS[/ADDRESS…]`, an address's own `/` and `%` percent-encoded: the same address behind
another gateway is another device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

IDENTIFIER_MAX_BYTES: Final = 128
"""Of a direct device."""
ADDRESS_MAX_BYTES: Final = 128
DEPTH_MAX: Final = 8
"""So many addresses may stand behind a gateway."""
CHILD_MAX_BYTES: Final = 512
"""Of a child's whole identifier, encoded."""

_IDENTIFIER: Final = re.compile(r"[^/+#%\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")
_ADDRESS: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")
_ENCODED: Final = re.compile(r"(?:[^/%\x00-\x1f\x7f-\x9f\ud800-\udfff]|%2F|%25)+")
_ALWAYS_SHORT: Final = IDENTIFIER_MAX_BYTES // 4
"""So many characters fit, whatever they are."""


def is_direct_identifier(text: str) -> bool:
    """Whether `text` can identify a direct device: 1 to 128 bytes of UTF-8 without `/ + # %` and control characters."""
    # Surrogates: JSON can spell a lone one, which UTF-8 can't hold.
    return _IDENTIFIER.fullmatch(text) is not None and (
        len(text) <= _ALWAYS_SHORT or len(text.encode()) <= IDENTIFIER_MAX_BYTES
    )


def is_address(text: str) -> bool:
    """Whether `text` can be an address behind a gateway: 1 to 128 bytes of UTF-8 without control characters, and
    without white space at its ends: lists of devices could not hold it."""
    return (
        _ADDRESS.fullmatch(text) is not None
        and not (text[0].isspace() or text[-1].isspace())
        and (len(text) <= _ALWAYS_SHORT or len(text.encode()) <= ADDRESS_MAX_BYTES)
    )


def is_identifier(text: str) -> bool:
    """Whether `text` can identify a device, direct or a child."""
    gateway, slash, rest = text.partition("/")
    if not is_direct_identifier(gateway):
        return False
    if not slash:
        return True
    steps = rest.split("/")
    return (
        len(steps) <= DEPTH_MAX
        and all(_ENCODED.fullmatch(step) is not None and is_address(_decoded(step)) for step in steps)
        and len(text.encode()) <= CHILD_MAX_BYTES
    )


def child_identifier(gateway: str, path: Sequence[str]) -> str | None:
    """The identifier of the child at these addresses behind a gateway; None where there can be no such child."""
    if not 1 <= len(path) <= DEPTH_MAX or not all(map(is_address, path)):
        return None
    return join_identifier(gateway, path)


def join_identifier(gateway: str, path: Sequence[str]) -> str | None:
    """`child_identifier` of 1 to 8 addresses that are some: None where they are too long together."""
    text = f"{gateway}/{_encoded(path[0])}" if len(path) == 1 else "/".join((gateway, *map(_encoded, path)))
    return text if len(text) * 4 <= CHILD_MAX_BYTES or len(text.encode()) <= CHILD_MAX_BYTES else None


def gateway_of(identifier: str) -> str:
    """The direct device that speaks for it: a child's gateway, or the device itself."""
    return identifier.partition("/")[0]


def path_of(identifier: str) -> tuple[str, ...]:
    """A child's addresses from the gateway down; empty for a direct device."""
    return tuple(_decoded(step) for step in identifier.split("/")[1:])


def _encoded(address: str) -> str:
    return address if address.isalnum() else address.replace("%", "%25").replace("/", "%2F")


def _decoded(step: str) -> str:
    return step.replace("%2F", "/").replace("%25", "%")
