"""What docs/versions.md says, in plain Python, slow and word by word; property tests hold the compiled matcher to it.

Nothing here is shared with the compiled modules but the entries that go in. Versions are compared piece by piece, as a
person would, never through a key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any, Protocol

import xxhash
from packaging.version import InvalidVersion, Version

from ota_hook._matcher import FirmwareEntry
from tests.device_sets import device_set

PRE_RELEASE_ORDER = (
    ("dev",),
    ("snapshot", "nightly"),
    ("alpha", "a"),
    ("beta", "b"),
    ("pre", "preview"),
    ("rc",),
)
DROPPED_WORDS = ("v", "ver", "version")
ASCII_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


class Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


def sign(left: Ordered, right: Ordered) -> int:
    """-1, 0 or 1 for two values of one ordered type."""
    return int(right < left) - int(left < right)


def trim_version(text: str) -> str | None:
    """The text without white space around it, None where that is longer than 128 bytes of UTF-8 or is not UTF-8."""
    trimmed = text.strip()
    try:
        return trimmed if len(trimmed.encode("utf-8")) <= 128 else None
    except UnicodeEncodeError:
        return None


def is_version(scheme: str, text: str) -> bool:
    trimmed = trim_version(text)
    if trimmed is None:
        return False
    if scheme == "semver":
        return SEMVER.fullmatch(trimmed) is not None
    if scheme == "pep440":
        return _is_pep440(trimmed)
    if scheme == "debian":
        return _is_debian(trimmed)
    return any(character in "0123456789" for character in trimmed)


def compare(scheme: str, left: str, right: str) -> int:
    """-1 where `left` is older than `right`, 0 where neither is, 1 where it is newer. Both must be versions."""
    if scheme == "semver":
        return _compare_semver(left.strip(), right.strip())
    if scheme == "pep440":
        return sign(Version(left), Version(right))
    if scheme == "debian":
        return _compare_debian(left.strip(), right.strip())
    return _compare_auto(left.strip(), right.strip())


# --- auto -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A token as it counts: a number, a pre-release word (by its place among them) or another word."""

    number: int | None = None
    pre_release: int | None = None
    word: str | None = None

    def is_zero(self) -> bool:
        return self.number == 0


def _compare_auto(left: str, right: str) -> int:
    left_main, _, left_build = left.translate(ASCII_LOWER).partition("+")
    right_main, _, right_build = right.translate(ASCII_LOWER).partition("+")
    main = _compare_pieces(
        _pieces(_without_leading_word(_tokens(left_main))), _pieces(_without_leading_word(_tokens(right_main)))
    )
    if main != 0:
        return main
    left_tokens, right_tokens = _tokens(left_build), _tokens(right_build)
    if not left_tokens or not right_tokens:  # no build is older than every build
        return sign(bool(left_tokens), bool(right_tokens))
    return _compare_pieces(_pieces(left_tokens), _pieces(right_tokens))


def _tokens(part: str) -> list[str]:
    return re.findall("[0-9]+|[a-z]+", part)


def _without_leading_word(tokens: list[str]) -> list[str]:
    if len(tokens) >= 2 and tokens[0] in DROPPED_WORDS and tokens[1].isdigit():
        return tokens[1:]
    return tokens


def _pieces(tokens: list[str]) -> list[Piece]:
    pieces: list[Piece] = []
    first_pre_release = None
    for place, token in enumerate(tokens):
        if token.isdigit():
            pieces.append(Piece(number=int(token)))
            continue
        number_follows = place + 1 < len(tokens) and tokens[place + 1].isdigit()
        among = [index for index, words in enumerate(PRE_RELEASE_ORDER) if token in words]
        counts = token not in ("a", "b") or number_follows
        if first_pre_release is not None:
            counts = token in ("dev", "snapshot", "nightly")
        if among and counts:
            pieces.append(Piece(pre_release=among[0]))
            first_pre_release = place if first_pre_release is None else first_pre_release
        else:
            pieces.append(Piece(word=token))
    return _without_dropped_zeros(pieces, len(pieces) if first_pre_release is None else first_pre_release)


def _without_dropped_zeros(pieces: list[Piece], first_pre_release: int) -> list[Piece]:
    """From the right, so that of a run of zeros every one stands directly before what the run stands before."""
    kept = pieces[first_pre_release:]
    for piece in reversed(pieces[:first_pre_release]):
        before_word_or_end = not kept or kept[0].number is None
        if not (piece.is_zero() and before_word_or_end):
            kept.insert(0, piece)
    return kept


def _compare_pieces(left: list[Piece], right: list[Piece]) -> int:
    behind_pre_release = False
    for place in range(max(len(left), len(right))):
        mine = left[place] if place < len(left) else None
        other = right[place] if place < len(right) else None
        difference = _compare_piece(mine, other, behind_pre_release=behind_pre_release)
        if difference != 0:
            return difference
        behind_pre_release = behind_pre_release or (mine is not None and mine.pre_release is not None)
    return 0


def _compare_piece(left: Piece | None, right: Piece | None, *, behind_pre_release: bool) -> int:
    """None is the end of a version."""
    classes = (
        ["pre-release", "end", "number", "word"] if behind_pre_release else ["pre-release", "end", "word", "number"]
    )
    left_class, right_class = _class_of(left), _class_of(right)
    if left_class != right_class:
        return sign(classes.index(left_class), classes.index(right_class))
    if left is None or right is None:
        return 0
    return (
        sign(left.number or 0, right.number or 0)
        or sign(left.pre_release or 0, right.pre_release or 0)
        or sign(left.word or "", right.word or "")
    )


def _class_of(piece: Piece | None) -> str:
    if piece is None:
        return "end"
    if piece.number is not None:
        return "number"
    return "word" if piece.pre_release is None else "pre-release"


# --- semver -----------------------------------------------------------------------------------------------------------

_NUMERIC = "(?:0|[1-9][0-9]*)"
_ALPHANUMERIC = "(?:[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_PRE_IDENTIFIER = f"(?:{_ALPHANUMERIC}|{_NUMERIC})"
_BUILD_IDENTIFIER = "(?:[0-9A-Za-z-]+)"
SEMVER = re.compile(
    rf"(?P<core>{_NUMERIC}\.{_NUMERIC}\.{_NUMERIC})"
    rf"(?:-(?P<pre>{_PRE_IDENTIFIER}(?:\.{_PRE_IDENTIFIER})*))?"
    rf"(?:\+{_BUILD_IDENTIFIER}(?:\.{_BUILD_IDENTIFIER})*)?"
)


def _compare_semver(left: str, right: str) -> int:
    """SemVer 2.0.0 §11, in the order of its sentences."""
    left_match, right_match = SEMVER.fullmatch(left), SEMVER.fullmatch(right)
    assert left_match is not None
    assert right_match is not None
    left_core = [int(number) for number in left_match["core"].split(".")]
    right_core = [int(number) for number in right_match["core"].split(".")]
    if left_core != right_core:
        return sign(left_core, right_core)
    left_pre, right_pre = left_match["pre"], right_match["pre"]
    if left_pre is None or right_pre is None:  # a pre-release is lower than its normal version
        return sign(left_pre is None, right_pre is None)
    left_identifiers, right_identifiers = left_pre.split("."), right_pre.split(".")
    for mine, other in zip(left_identifiers, right_identifiers, strict=False):
        if mine.isdigit() and other.isdigit():
            difference = sign(int(mine), int(other))
        elif mine.isdigit() or other.isdigit():  # numeric identifiers are lower than others
            difference = -1 if mine.isdigit() else 1
        else:
            difference = sign(mine, other)
        if difference != 0:
            return difference
    return sign(len(left_identifiers), len(right_identifiers))


# --- pep440 -----------------------------------------------------------------------------------------------------------


def _is_pep440(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return text.isascii()


# --- debian -----------------------------------------------------------------------------------------------------------


def _debian_parts(text: str) -> tuple[int, str, str] | None:
    """Epoch, upstream version and revision, None where deb-version(7) does not allow the text."""
    epoch, colon, rest = text.partition(":")
    if not colon:
        epoch, rest = "0", text
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
    if re.fullmatch(r"\+?[0-9]+", epoch) is None or int(epoch) >= 2**31:
        return None
    if re.fullmatch("[0-9][0-9A-Za-z.+~:-]*", upstream) is None or re.fullmatch("[0-9A-Za-z.+~]+", revision) is None:
        return None
    return int(epoch), upstream, revision


def _is_debian(text: str) -> bool:
    return _debian_parts(text) is not None


def _compare_debian(left: str, right: str) -> int:
    left_parts, right_parts = _debian_parts(left), _debian_parts(right)
    assert left_parts is not None
    assert right_parts is not None
    return (
        sign(left_parts[0], right_parts[0])
        or _compare_debian_part(left_parts[1], right_parts[1])
        or _compare_debian_part(left_parts[2], right_parts[2])
    )


def _compare_debian_part(left: str, right: str) -> int:
    """deb-version(7), "Sorting algorithm": non-digits from the left, then digits, until there is a difference."""
    while left or right:
        left_words, left = _split_where(left, "[^0-9]*")
        right_words, right = _split_where(right, "[^0-9]*")
        left_digits, left = _split_where(left, "[0-9]*")
        right_digits, right = _split_where(right, "[0-9]*")
        difference = _compare_debian_words(left_words, right_words) or sign(
            int(left_digits or "0"), int(right_digits or "0")
        )
        if difference != 0:
            return difference
    return 0


def _split_where(text: str, initial: str) -> tuple[str, str]:
    match = re.match(initial, text)
    assert match is not None
    return match.group(), text[match.end() :]


def _compare_debian_words(left: str, right: str) -> int:
    """A tilde before everything, even the end; letters before the others."""
    for place in range(max(len(left), len(right))):
        mine, other = left[place : place + 1], right[place : place + 1]
        if mine != other:
            return sign(_debian_rank(mine), _debian_rank(other))
    return 0


def _debian_rank(character: str) -> tuple[int, str]:
    """Of one character, or of the end."""
    if character == "~":
        return 0, ""
    if character == "":
        return 1, ""
    return (2 if character.isalpha() else 3), character


# --- which firmware ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Firmware:
    """What a FirmwareEntry says, with the identifiers of its list as they are."""

    id: str
    version: str
    enabled: bool = True
    devices: frozenset[str] | None = None
    tags: tuple[str, ...] | None = None
    basis_points: int | None = None
    percentage_seed: int = 0
    source_versions: tuple[str, ...] = ()
    allow_downgrade: bool = False
    created_at_ms: int = 0

    def entry(self) -> FirmwareEntry:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        devices = None if self.devices is None else device_set(*self.devices)
        return FirmwareEntry(**(fields | {"devices": devices}))


def compiled_entries(firmware: Sequence[Firmware]) -> list[FirmwareEntry]:
    return [one.entry() for one in firmware]


@dataclass(frozen=True)
class Device:
    identifier: str
    tags: tuple[str, ...] = ()


def is_within(firmware: Firmware, device: Device) -> bool:
    hashed = xxhash.xxh3_64_intdigest(device.identifier.encode("utf-8", "surrogatepass"), firmware.percentage_seed)
    return hashed % 10_000 < (firmware.basis_points or 0)


def unmet_selectors(firmware: Firmware, device: Device) -> list[str]:
    """All three null: every device. Otherwise: in the list, or tags or percentage set and each that is set matches."""
    if firmware.devices is None and firmware.tags is None and firmware.basis_points is None:
        return []
    if firmware.devices is not None and device.identifier in firmware.devices:
        return []
    has_a_tag = any(tag in device.tags for tag in firmware.tags or ())
    matches = [has_a_tag] if firmware.tags is not None else []
    matches += [is_within(firmware, device)] if firmware.basis_points is not None else []
    if not matches:
        return ["not_selected"]
    if all(matches):
        return []
    unmet = ["not_selected"]
    if firmware.devices is not None:
        unmet.append("not_listed")
    if firmware.tags is not None and not has_a_tag:
        unmet.append("tags_differ")
    if firmware.basis_points is not None and not is_within(firmware, device):
        unmet.append("outside_percentage")
    return unmet


def obstacles(scheme: str, firmware: Firmware, device: Device, current: str | None) -> list[str]:
    """Every reason why this device may not get this firmware, in the order in which `explain` gives them."""
    reasons = []
    if not firmware.enabled:
        reasons.append("disabled")
    reasons += unmet_selectors(firmware, device)
    sources = [text.strip() for text in firmware.source_versions]
    if sources and current is not None and current.strip() not in sources:
        reasons.append("source_version_differs")
    if current is None or not is_version(scheme, current):
        reasons.append("current_version_unknown")
    else:
        difference = compare(scheme, firmware.version, current)
        if difference == 0:
            reasons.append("same_version")
        elif difference < 0 and not firmware.allow_downgrade:
            reasons.append("not_newer")
    return reasons


def specificity(firmware: Firmware) -> int:
    """Listed > has source versions > tags or percentage > everyone. One that is several of these is the first."""
    asks_who = firmware.tags is not None or firmware.basis_points is not None
    ascending = (True, asks_who, bool(firmware.source_versions), firmware.devices is not None)
    return max(place for place, holds in enumerate(ascending) if holds)


def best_first(scheme: str, firmware: Sequence[Firmware]) -> list[Firmware]:
    def better(left: Firmware, right: Firmware) -> int:
        return -(
            compare(scheme, left.version, right.version)
            or sign(specificity(left), specificity(right))
            or sign(left.created_at_ms, right.created_at_ms)
            or sign(left.id, right.id)
        )

    return sorted(firmware, key=cmp_to_key(better))


def resolve(scheme: str, firmware: Sequence[Firmware], device: Device, current: str | None) -> str | None:
    """The best of those without an obstacle."""
    for candidate in best_first(scheme, firmware):
        if not obstacles(scheme, candidate, device, current):
            return candidate.id
    return None


def explain(
    scheme: str, firmware: Sequence[Firmware], device: Device, current: str | None
) -> list[tuple[str, bool, tuple[str, ...]]]:
    """(id, chosen, reasons) of each firmware, best version first."""
    explained = []
    chosen = resolve(scheme, firmware, device, current)
    for candidate in best_first(scheme, firmware):
        reasons = obstacles(scheme, candidate, device, current)
        if not reasons and candidate.id != chosen:
            reasons = ["outranked"]
        explained.append((candidate.id, candidate.id == chosen, tuple(reasons)))
    return explained
