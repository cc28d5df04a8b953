"""Orders of versions that others made, and the classes of pairs in which `auto` differs from each on purpose.

docs/versions.md lists an example of every class and says why. The property tests fail for a difference that belongs to
no class.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Final

import pytest
import semver
from packaging.version import Version

from tests import oracle

Compare = Callable[[str, str], int]
Holds = Callable[[str, str], bool]

DPKG: Final = shutil.which("dpkg")
needs_dpkg: Final = pytest.mark.skipif(DPKG is None, reason="dpkg is not on this machine")

PRE_RELEASE: Final = "(?:dev|snapshot|nightly|alpha|beta|pre|preview|rc)(?![a-z])"
"""Pre-release words, but for `a` and `b`, which need a number."""


def compare_semver(left: str, right: str) -> int:
    return semver.Version.parse(left).compare(right)


def compare_pep440(left: str, right: str) -> int:
    return oracle.sign(Version(left), Version(right))


def dpkg_accepts(text: str) -> bool:
    assert DPKG is not None
    return subprocess.run([DPKG, "--validate-version", text], check=False, capture_output=True).returncode == 0


def compare_dpkg(left: str, right: str) -> int:
    """A process for each question."""
    assert DPKG is not None
    for relation, difference in (("lt", -1), ("eq", 0), ("gt", 1)):
        if subprocess.run([DPKG, "--compare-versions", left, relation, right], check=False).returncode == 0:
            return difference
    raise AssertionError(f"dpkg does not compare {left!r} and {right!r}")


def compare_debian(left: str, right: str) -> int:
    """As `compare_dpkg`, without a process."""
    return oracle.compare("debian", left, right)


def _either(pattern: str) -> Holds:
    found = re.compile(pattern)
    return lambda left, right: any(found.search(text) is not None for text in (left, right))


def _one_and_the_other(pattern: str, other_pattern: str) -> Holds:
    found, other_found = re.compile(pattern), re.compile(other_pattern)
    return lambda left, right: any(
        found.search(one) is not None and other_found.search(other) is not None
        for one, other in ((left, right), (right, left))
    )


# --- libversion -------------------------------------------------------------------------------------------------------

_POST_RELEASE: Final = "(?:post|patch)[a-z]*|(?:pl|errata)(?![a-z])"
_LIBVERSION_PARTS: Final = re.compile(
    f"(?P<number>[0-9]+)|(?P<post>{_POST_RELEASE})|(?P<pre>pre[a-z]*|(?:alpha|beta|rc)(?![a-z]))"
    "|(?P<suffix>(?<=[0-9])[a-z]+(?![0-9a-z]))|[a-z]+"
)
_PADDING: Final = (1, 0, "")


def compare_libversion(left: str, right: str) -> int:
    """libversion 3, as its description of its algorithm says; missing components are zeros."""
    for mine, other in zip_longest(_libversion_parts(left), _libversion_parts(right), fillvalue=_PADDING):
        if mine != other:
            return oracle.sign(mine, other)
    return 0


def _libversion_parts(text: str) -> list[tuple[int, int, str]]:
    """Rank, number and first letter of each component."""
    parts = []
    for part in _LIBVERSION_PARTS.finditer(text.translate(oracle.ASCII_LOWER)):
        if part["number"]:
            number = int(part["number"])
            parts.append((3 if number else 1, number, ""))
        else:
            parts.append((4 if part["suffix"] else 2 if part["post"] else 0, 0, part.group()[0]))
    return parts


# --- where `auto` differs from SemVer ---------------------------------------------------------------------------------


def _semver_identifiers(text: str) -> list[str]:
    match = oracle.SEMVER.fullmatch(text)
    assert match is not None
    return match["pre"].split(".") if match["pre"] else []


def _core(text: str) -> str:
    return re.split("[-+]", text)[0]


def _at_the_first_difference(holds: Callable[[int, str, str], bool]) -> Holds:
    """Of two versions with one core: what `holds` says of the place and the identifiers that differ first."""

    def holds_there(left: str, right: str) -> bool:
        if _core(left) != _core(right):
            return False
        pairs = zip_longest(_semver_identifiers(left), _semver_identifiers(right), fillvalue="")
        return next((holds(place, *pair) for place, pair in enumerate(pairs) if pair[0] != pair[1]), False)

    return holds_there


def _mixes(*identifiers: str) -> bool:
    return any(re.search("[A-Za-z]", one) and re.search("[0-9]", one) for one in identifiers)


def _begins_with_another_word(left: str, right: str) -> bool:
    one = re.compile(f"{PRE_RELEASE}|[ab][^a-z0-9]*[0-9]", re.IGNORECASE)
    return _core(left) == _core(right) and any(
        pre != [] and one.match(".".join(pre)) is None for pre in map(_semver_identifiers, (left, right))
    )


SEMVER_CLASSES: Final[Mapping[str, Holds]] = {
    "builds": lambda left, right: left.partition("+")[0] == right.partition("+")[0] and left != right,
    "case": _at_the_first_difference(lambda _, *pair: "".join(pair) != "".join(pair).lower()),
    "letters and digits in one identifier": _at_the_first_difference(lambda _, *pair: _mixes(*pair)),
    "hyphens in an identifier": _at_the_first_difference(lambda _, *pair: any("-" in one for one in pair)),
    "other words first": _begins_with_another_word,
    "words in the order of development": _at_the_first_difference(lambda place, *pair: place == 0 and all(pair)),
    "dev, snapshot and nightly behind": _at_the_first_difference(
        lambda place, *pair: place > 0 and any(one.lower() in ("dev", "snapshot", "nightly") for one in pair)
    ),
}


# --- ... from PEP 440 -------------------------------------------------------------------------------------------------


def _of_the_main_part(holds: Holds) -> Holds:
    return lambda left, right: holds(left.lower().partition("+")[0], right.lower().partition("+")[0])


def _of_local_parts(pattern: str) -> Holds:
    """Of two versions that differ in the local part alone, where neither is without one."""

    def holds(left: str, right: str) -> bool:
        one, other = Version(left), Version(right)
        return Version(one.public) == Version(other.public) and any(
            re.search(pattern, local) is not None for local in (one.local or "", other.local or "")
        )

    return holds


PEP440_CLASSES: Final[Mapping[str, Holds]] = {
    "epochs": _either("!"),
    "a letter alone": _of_the_main_part(_either("(?<![a-z])[ab](?![a-z])(?![._-]?[0-9])")),
    "c": _of_the_main_part(_either("(?<![a-z])c(?![a-z])")),
    "pre and preview": _of_the_main_part(_either("pre")),
    "a hyphen and a number": _of_the_main_part(_either("[0-9]-[0-9]")),
    "no number and zero": _of_the_main_part(
        _one_and_the_other("(alpha|beta|rc|dev|post)(?![a-z]|[._-]?[0-9])", "[a-z][._-]?0+(?![0-9])")
    ),
    "no number and post": _of_the_main_part(_either("(alpha|beta|rc)[._-]?post")),
    "r and rev": _of_the_main_part(_either("(?<![a-z])r(ev)?(?![a-z])")),
    "words that run together": _of_the_main_part(
        _either("(?<![a-z])(?!(v|a|alpha|b|beta|c|rc|pre|preview|post|r|rev|dev)(?![a-z]))[a-z]")
    ),
    "zeros in a local part": _of_local_parts(r"(?<![^.])0+(?![^.])"),
    "letters and digits in one local word": _of_local_parts("[a-z][0-9]|[0-9][a-z]"),
    "pre-release words in a local part": _of_local_parts(f"(?<![a-z])(?:{PRE_RELEASE}|[ab][.]?[0-9])"),
}


# --- ... from Debian --------------------------------------------------------------------------------------------------

_PRE_RELEASE_OR_LETTER: Final = f"(?:{PRE_RELEASE}|[ab](?=[0-9]))"


def _pre_release_words_differ(left: str, right: str) -> bool:
    pairs = zip(*(re.findall(f"~({_PRE_RELEASE_OR_LETTER})", text) for text in (left, right)), strict=False)
    return any(one != other for one, other in pairs)


def _zeros_decide(left: str, right: str) -> bool:
    without = [re.sub(r"(?<=[0-9])(\.0+)+(?=[a-z~+]|$)", "", text) for text in (left, right)]
    return without != [left, right] and compare_debian(*without) != compare_debian(left, right)


DEBIAN_CLASSES: Final[Mapping[str, Holds]] = {
    "case": _either("[A-Z]"),
    "epochs": _either(":"),
    "hyphens": _either("-"),
    "a tilde before anything else": _either(f"~(?!{_PRE_RELEASE_OR_LETTER})"),
    "pre-release words without a tilde": _either(f"(?<![a-z~]){_PRE_RELEASE_OR_LETTER}"),
    "words in the order of development": _pre_release_words_differ,
    "separators": _either(r"(?<![0-9])\.|\.(?![0-9])|\+.*\+|\+$"),
    "zeros": _zeros_decide,
    "builds": _one_and_the_other(r"\+", "[a-z]"),
    "no number and zero": _one_and_the_other(f"~{PRE_RELEASE}(?![0-9])", f"~{PRE_RELEASE}0+(?![0-9])"),
    "words behind a pre-release word": _either(
        f"~{_PRE_RELEASE_OR_LETTER}[^+]*(?<![a-z])(?!(?:dev|snapshot|nightly)(?![a-z]))[a-z]"
    ),
}


# --- ... from libversion ----------------------------------------------------------------------------------------------

_LEADING_WORD: Final = re.compile("^[^a-z0-9]*(?:v|ver|version)(?=[^a-z0-9]*[0-9])")


def _different_ends(left: str, right: str) -> tuple[str, str]:
    """Both in lower case, from the last token that begins alike in both."""
    tokens = [list(re.finditer("[0-9]+|[a-z]+", text)) for text in (left, right)]
    alike = 0
    for mine, other in zip(*tokens, strict=False):
        if mine.group() != other.group():
            break
        alike += 1
    first, second = (
        text[found[alike - 1].start() :] if alike else text for text, found in zip((left, right), tokens, strict=True)
    )
    return first, second


def _in_different_ends(holds: Holds) -> Holds:
    return lambda left, right: holds(*_different_ends(left.lower(), right.lower()))


def _begin_alike(left: str, right: str) -> bool:
    """Whether there are two different words with one first letter."""
    return any(
        one != other and one[0] == other[0]
        for one in re.findall("[a-z]+", left)
        for other in re.findall("[a-z]+", right)
    )


def _one_has_a_leading_word(left: str, right: str) -> bool:
    found = [_LEADING_WORD.search(text.lower()) is not None for text in (left, right)]
    return found[0] != found[1]


def _zeros_before_a_word_decide(left: str, right: str) -> bool:
    without = [re.sub("(?<![0-9])0+[^a-z0-9]*(?=[a-z])", "", text.lower()) for text in (left, right)]
    return compare_libversion(*without) != compare_libversion(left, right)


_PRE_RELEASE_ANYWHERE: Final = f"(?<![a-z])(?:{PRE_RELEASE}|[ab](?=[^a-z0-9]*[0-9]))"
_WHOLE_ZERO: Final = "(?<![0-9])0+(?![0-9])"


def _in_lower_case(holds: Holds) -> Holds:
    return lambda left, right: holds(left.lower(), right.lower())


LIBVERSION_CLASSES: Final[Mapping[str, Holds]] = {
    "builds": _either(r"\+"),
    "leading words": _one_has_a_leading_word,
    "zeros before a word": _zeros_before_a_word_decide,
    "words that begin alike": _in_different_ends(_begin_alike),
    "other words": _in_different_ends(_either(f"(?<![a-z])(?!{_POST_RELEASE})(?!{PRE_RELEASE})[a-z]")),
    "pre-release words behind others": _in_lower_case(
        _either(f"{_PRE_RELEASE_ANYWHERE}.*(?<![a-z])(?:alpha|a|beta|b|pre|preview|rc)(?![a-z])")
    ),
    "words glued to a number": _in_lower_case(
        _either(f"[0-9](?!{_POST_RELEASE})(?!(?:alpha|beta|rc)(?![a-z])|pre)[a-z]+(?![a-z0-9])")
    ),
    "words in the order of development": _in_different_ends(_one_and_the_other(PRE_RELEASE, PRE_RELEASE)),
    "zeros behind a pre-release word": _in_lower_case(_either(f"{_PRE_RELEASE_ANYWHERE}.*{_WHOLE_ZERO}")),
    "post-release words behind a pre-release word": _in_lower_case(
        _one_and_the_other(f"{_PRE_RELEASE_ANYWHERE}.*(?<![a-z])(?:{_POST_RELEASE})", f"{_PRE_RELEASE_ANYWHERE}.*[0-9]")
    ),
    "post-release words and zeros": _in_different_ends(_one_and_the_other(_POST_RELEASE, _WHOLE_ZERO)),
}
