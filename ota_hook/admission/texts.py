"""The shape of each text that users type, and how a refusal shows it.

A `check_*` function returns its text or raises InputError. Must not know the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ota_hook._versions import version_key
from ota_hook.errors import InputError
from ota_hook.identifiers import ADDRESS_MAX_BYTES, CHILD_MAX_BYTES, DEPTH_MAX, IDENTIFIER_MAX_BYTES, is_identifier
from ota_hook.model import TAG_MAX_BYTES, VERSION_MAX_BYTES, VersionScheme, is_tag

NAME_MAX_CHARS: Final = 128
EVENT_MAX_CHARS: Final = 128
ATTRIBUTE_MAX_BYTES: Final = 128
_ROUNDING: Final = 1e-9

_TAKEN: Final = {
    VersionScheme.AUTO: "any text with a digit",
    VersionScheme.SEMVER: "three numbers and perhaps more, as in 1.0.0 or 1.0.0-rc.1",
    VersionScheme.PEP440: "what Python's packages have, as in 1.0, 1.0rc1 or 1.0.post1",
    VersionScheme.DEBIAN: "what begins with a digit, as in 1.0-1 or 1.0~rc1",
}
"""What would be a version in a scheme, in half a sentence."""

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def check_key(text: str) -> str:
    """A device type's key or a module: 1 to 64 of letters, digits, `_ . -`, the first a letter or digit."""
    if not _KEY.fullmatch(text):
        raise InputError(f"{shown(text)} must be 1 to 64 letters, digits, _ . or -, and begin with a letter or digit.")
    return text


def check_ulid(text: str) -> str:
    """The id of a rule or firmware."""
    if not _ULID.fullmatch(text):
        raise InputError(f"{shown(text)} is no ULID (26 characters, capitals).")
    return text


def check_name(text: str) -> str:
    """What people call a thing: 1 to 128 characters, none of them a control character."""
    return _check_line(text.strip(), NAME_MAX_CHARS, "A name")


def check_event(text: str) -> str:
    """An event's name, as the device sends it: 1 to 128 characters, none of them a control character."""
    return _check_line(text, EVENT_MAX_CHARS, "An event")


def check_attribute(text: str) -> str:
    """A version attribute: 1 to 128 bytes of text."""
    if not text or _utf8_length(text, "An attribute") > ATTRIBUTE_MAX_BYTES:
        raise InputError(f"An attribute must have 1 to {ATTRIBUTE_MAX_BYTES} bytes.")
    return text


def check_version(text: str) -> str:
    """A version of a firmware or device, trimmed: 1 to 128 bytes with a digit in it."""
    text = text.strip()
    if _utf8_length(text, "A version") > VERSION_MAX_BYTES or not any("0" <= c <= "9" for c in text):
        raise InputError(
            f"{shown(text)} is not a version: it needs one of the digits 0–9 and at most {VERSION_MAX_BYTES} bytes."
        )
    return _check_line(text, VERSION_MAX_BYTES, "A version")


def key_in_scheme(scheme: VersionScheme, text: str, *, of: str = "") -> bytes:
    """The key of a version. InputError where it is none in the scheme, `of` whatever that is."""
    key = version_key(scheme, text)
    if key is None:
        raise InputError(
            f"{shown(text)} is not a version in the scheme {scheme.value!r}{of}, which takes {_TAKEN[scheme]}.",
            field="version",
        )
    return key


def check_identifier(text: str) -> str:
    """The identifier of a direct device, or of a gateway's child."""
    if is_identifier(text):
        return text
    if "/" in text:
        raise InputError(
            f"{shown(text)} is no child's identifier: GATEWAY/ADDRESS, with up to {DEPTH_MAX} addresses of 1 to"
            f" {ADDRESS_MAX_BYTES} bytes without control characters and blank ends, in each `/` written %2F and `%`"
            f" written %25, {CHILD_MAX_BYTES} bytes in all at most."
        )
    raise InputError(
        f"{shown(text)} is no identifier: 1 to {IDENTIFIER_MAX_BYTES} bytes without / + # % and control characters;"
        " a gateway's child is GATEWAY/ADDRESS."
    )


def check_tag(text: str) -> str:
    """A tag. InputError for what is none."""
    if not is_tag(text):
        raise InputError(
            f"{shown(text)} is no tag: 1 to {TAG_MAX_BYTES} bytes of UTF-8 without white space, control characters and"
            ' , ; "'
        )
    return text


def check_percentage(percentage: float) -> float:
    """A percentage with at most two decimals."""
    if abs(percentage * 100 - round(percentage * 100)) > _ROUNDING:
        raise InputError("A percentage has at most two decimals.")
    return percentage


def check_distinct(texts: list[str]) -> list[str]:
    """The texts, none of them twice."""
    for text in texts if len(set(texts)) != len(texts) else ():
        if texts.count(text) > 1:
            raise InputError(f"{shown(text)} is there twice.")
    return texts


def _check_line(text: str, most: int, what: str) -> str:
    _utf8_length(text, what)
    if not 1 <= len(text) <= most or any(c < " " or "\x7f" <= c <= "\x9f" for c in text):
        raise InputError(f"{what} must have 1 to {most} characters without control characters.")
    return text


def _utf8_length(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as exc:
        raise InputError(f"{what} must be Unicode text.") from exc


def shown(text: str) -> str:
    """In quotes and cut, with what is not printable spelled out."""
    return repr(text) if len(text) <= 64 else repr(text[:61]) + "…"


def first_few(names: Sequence[str]) -> str:
    """Three of them; `…` where there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
