"""Version keys on real versions: the table of version_pairs.py, what is no version, and where other orders differ."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import semver

from ota_hook._versions import version_key
from ota_hook.model import VERSION_MAX_BYTES, VersionScheme
from tests import oracle
from tests.other_orders import compare_dpkg, compare_pep440, dpkg_accepts, needs_dpkg
from tests.unit.version_pairs import (
    AUTO,
    DEBIAN,
    DEBIAN_INVALID,
    PEP440,
    PEP440_INVALID,
    SEMVER,
    SEMVER_INVALID,
    read_chains,
)

Chain = list[tuple[str, str]]
VERSIONS_PAGE = Path(__file__).parents[2] / "docs" / "versions.md"
MEMO_ENTRIES = 65_536
INVALID = {"semver": SEMVER_INVALID, "pep440": PEP440_INVALID, "debian": DEBIAN_INVALID}


def named(chain: Chain) -> str:
    return " ".join(f"{relation} {version}" for relation, version in chain).strip()


def key_of(text: str, scheme: str = "auto") -> bytes:
    key = version_key(scheme, text)
    assert key is not None, text
    return key


def relation_of(difference: int) -> str:
    return "<=>"[difference + 1]


def relation_by_key(one: str, another: str, scheme: str = "auto") -> str:
    return relation_of(oracle.sign(key_of(one, scheme), key_of(another, scheme)))


def pairs_of(chain: Chain) -> list[tuple[str, str, str]]:
    """Every two members, neighbours or not, with the relation between them."""
    pairs = []
    for first, last in itertools.combinations(range(len(chain)), 2):
        relation = "<" if any(chain[place][0] == "<" for place in range(first + 1, last + 1)) else "="
        pairs.append((chain[first][1], relation, chain[last][1]))
    return pairs


def test_the_table_holds_at_least_150_pairs_of_neighbours() -> None:
    pairs = {(one[1], other[1]) for chain in AUTO for one, other in itertools.pairwise(chain)}
    assert len(pairs) >= 150


@pytest.mark.parametrize("chain", AUTO, ids=named)
def test_auto_orders_versions_as_vendors_mean_them(chain: Chain) -> None:
    for one, relation, another in pairs_of(chain):
        assert relation_by_key(one, another) == relation, (one, another)
        assert relation_of(oracle.compare("auto", one, another)) == relation, (one, another)


def test_every_chain_on_the_page_about_versions_holds() -> None:
    blocks = re.findall(r"^```order (\w+)\n(.*?)^```", VERSIONS_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    checked = 0
    for scheme, lines in blocks:
        for one, relation, another in itertools.chain.from_iterable(map(pairs_of, read_chains(lines))):
            assert relation_by_key(one, another, scheme) == relation, (one, another)
            checked += 1
    assert {scheme for scheme, _ in blocks} == set(VersionScheme)
    assert checked >= 50


@pytest.mark.parametrize("chain", SEMVER, ids=named)
def test_semver_orders_versions_as_its_standard_says(chain: Chain) -> None:
    for one, relation, another in pairs_of(chain):
        assert relation_by_key(one, another, "semver") == relation, (one, another)
        assert relation_of(oracle.compare("semver", one, another)) == relation, (one, another)
        assert relation_of(semver.Version.parse(one).compare(another)) == relation, (one, another)


@pytest.mark.parametrize("chain", PEP440, ids=named)
def test_pep440_orders_versions_as_packaging_does(chain: Chain) -> None:
    for one, relation, another in pairs_of(chain):
        assert relation_by_key(one, another, "pep440") == relation, (one, another)
        assert relation_of(compare_pep440(one, another)) == relation, (one, another)


@pytest.mark.parametrize("chain", DEBIAN, ids=named)
def test_debian_orders_versions_as_its_manual_says(chain: Chain) -> None:
    for one, relation, another in pairs_of(chain):
        assert relation_by_key(one, another, "debian") == relation, (one, another)
        assert relation_of(oracle.compare("debian", one, another)) == relation, (one, another)


@needs_dpkg
@pytest.mark.parametrize("chain", DEBIAN, ids=named)
def test_debian_orders_versions_as_dpkg_does(chain: Chain) -> None:
    for one, another in itertools.pairwise(version for _, version in chain):
        assert relation_of(compare_dpkg(one, another)) == relation_by_key(one, another, "debian"), (one, another)


@pytest.mark.parametrize(
    ("scheme", "text"),
    [(scheme, text) for scheme, texts in INVALID.items() for text in texts],
    ids=ascii,
)
def test_a_strict_scheme_refuses_what_its_grammar_does_not_hold(scheme: str, text: str) -> None:
    assert version_key(scheme, text) is None
    assert not oracle.is_version(scheme, text)


@needs_dpkg
@pytest.mark.parametrize("text", [text for text in DEBIAN_INVALID if "\x00" not in text], ids=ascii)
def test_dpkg_refuses_what_debian_refuses(text: str) -> None:
    assert not dpkg_accepts(text)


@pytest.mark.parametrize("scheme", VersionScheme)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "main",
        "v",
        "+",
        "release-candidate",
        "٣.٤",
        "１.２.３",
        "x²",
        "Ⅳ",
        "1.0.0\ud800",
        "\udc80",
        "1.0." + "0" * 125,
    ],
    ids=ascii,
)
def test_a_text_without_an_ascii_digit_too_long_or_not_utf_8_is_no_version(scheme: str, text: str) -> None:
    assert version_key(scheme, text) is None


def test_128_bytes_are_a_version_and_129_are_none() -> None:
    assert VERSION_MAX_BYTES == 128
    assert version_key("auto", "1" * 128) is not None
    assert version_key("auto", " \n" + "1" * 128 + "\t ") is not None
    assert version_key("auto", "1" * 129) is None
    assert version_key("auto", "1" + "é" * 63) is not None
    assert version_key("auto", "1" + "é" * 64) is None
    assert version_key("semver", "1.0.0-" + "a" * 122) is not None
    assert version_key("semver", "1.0.0-" + "a" * 123) is None
    for scheme in ("pep440", "debian"):
        assert version_key(scheme, "1." * 63 + "10") is not None
        assert version_key(scheme, "1." * 63 + "100") is None


def test_numbers_of_any_length_are_compared_by_value() -> None:
    nines, power = "9" * 127, "1" + "0" * 127
    assert key_of(nines) < key_of(power) < key_of("2" + "0" * 127)
    assert key_of("0" * 127 + "7") == key_of("7")
    core = "9" * 123
    assert key_of(f"{core}.0.0", "semver") < key_of(f"1{core}.0.0", "semver")
    for scheme in ("pep440", "debian"):
        assert key_of(nines, scheme) < key_of(power, scheme) < key_of("2" + "0" * 127, scheme)
        assert key_of("0" * 127 + "7", scheme) == key_of("7", scheme)
    assert key_of("255") < key_of("256") < key_of("65536") < key_of("4294967296") < key_of("18446744073709551616")


def test_control_characters_separate_like_any_other() -> None:
    assert key_of("1\x000\x002") == key_of("1.0.2")
    assert key_of("\x001.2\x00") == key_of("1.2")


def test_only_ascii_letters_fold_and_make_words() -> None:
    assert key_of("1.0RC1") == key_of("1.0rc1")
    assert key_of("1.0\u212a1") == key_of("1.0.1") != key_of("1.0k1")  # the Kelvin sign folds to k elsewhere
    assert key_of("1.0\u017f1") == key_of("1.0.1")  # the long s folds to s elsewhere


def test_only_the_first_word_of_all_is_dropped_before_a_number() -> None:
    assert key_of("v1") == key_of("-V.1") == key_of("version: 1") == key_of("1")
    assert key_of("fw-v1") != key_of("fw-1")
    assert key_of("v-v1") != key_of("v1")
    assert key_of("1.0+v2") != key_of("1.0+2")
    assert key_of("vx1") != key_of("x1")


def test_white_space_around_a_version_says_nothing_in_any_scheme() -> None:
    for scheme in VersionScheme:
        assert key_of(" \t1.2.3\r\n", scheme) == key_of("1.2.3", scheme)


def test_semver_leaves_case_as_it_is() -> None:
    assert relation_by_key("1.0.0-RC", "1.0.0-rc", "semver") == "<"


def test_a_scheme_may_be_named_by_its_enumeration() -> None:
    assert version_key(VersionScheme.AUTO, "1.0") == version_key("auto", "1.0")
    assert version_key(VersionScheme.SEMVER, "1.0") is None
    assert version_key("auto", VersionScheme.AUTO) is None  # a text of a subclass is a text


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown version scheme 'calver'"):
        version_key("calver", "1.0")


def test_schemes_do_not_share_what_they_remember() -> None:
    for _ in range(2):
        assert version_key("semver", "1.7") is None
        assert version_key("auto", "1.7") is not None
        assert len({version_key(scheme, "1.7.0") for scheme in VersionScheme}) == len(VersionScheme)


@pytest.mark.parametrize("scheme", VersionScheme)
def test_a_flood_of_texts_makes_no_memory_grow_for_ever(scheme: str) -> None:
    remembered = version_key(scheme, "1.2.3-1")
    assert version_key(scheme, "1.2.3-1") is remembered
    for number in range(MEMO_ENTRIES + 1):
        version_key(scheme, f"0.{number}.0")
    again = version_key(scheme, "1.2.3-1")
    assert again == remembered
    assert again is not remembered  # it was forgotten to make room


def test_a_text_longer_than_any_version_is_not_remembered() -> None:
    padded = " " * VERSION_MAX_BYTES + "1.0"
    assert version_key("auto", padded) == key_of("1.0")
    assert version_key("auto", padded) is not version_key("auto", padded)
