"""Our schemes and the orders of others: the strict ones are the same, `auto` differs where docs/versions.md says."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import pytest
import semver
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from packaging.version import InvalidVersion, Version

from ota_hook._versions import version_key
from tests import oracle
from tests.other_orders import (
    DEBIAN_CLASSES,
    LIBVERSION_CLASSES,
    PEP440_CLASSES,
    SEMVER_CLASSES,
    Compare,
    Holds,
    compare_debian,
    compare_dpkg,
    compare_libversion,
    compare_pep440,
    compare_semver,
    dpkg_accepts,
    needs_dpkg,
)
from tests.property.version_texts import debian_texts, neighbours, pep440_texts, semver_texts

PROCESS_PER_EXAMPLE = settings(max_examples=max(100, settings().max_examples // 10))
"""dpkg is started anew for each question."""


def installed_libversion() -> Compare | None:
    """libversion's own comparison; its Python package is built with its C library, which `make build` can't bring."""
    try:
        compare: Compare = importlib.import_module("libversion").version_compare
    except ImportError:
        return None
    return compare


def auto(left: str, right: str) -> int:
    return key_sign("auto", left, right)


def key_sign(scheme: str, left: str, right: str) -> int:
    left_key, right_key = version_key(scheme, left), version_key(scheme, right)
    assert left_key is not None
    assert right_key is not None
    return oracle.sign(left_key, right_key)


def fits(text: str) -> bool:
    """Whether it is short enough for every scheme of ours; others have no bound."""
    return oracle.trim_version(text) is not None


# --- semver, pep440 and debian: the same ------------------------------------------------------------------------------


@given(semver_texts(stray=True), semver_texts(stray=True))
def test_semver_keys_order_as_the_semver_package_compares(left: str, right: str) -> None:
    for text in (left, right):
        assert (version_key("semver", text) is not None) == (fits(text) and semver.Version.is_valid(text.strip()))
    assume(version_key("semver", left) is not None and version_key("semver", right) is not None)
    assert key_sign("semver", left, right) == compare_semver(left.strip(), right.strip())


def packaging_accepts(text: str) -> bool:
    """Whether it is PEP 440's, which is ASCII; older releases of packaging fold other letters to it."""
    try:
        Version(text)
    except InvalidVersion:
        return False
    return text.strip().isascii()


@given(pep440_texts(stray=True), pep440_texts(stray=True))
def test_pep440_keys_order_as_packaging_compares(left: str, right: str) -> None:
    for text in (left, right):
        assert (version_key("pep440", text) is not None) == (fits(text) and packaging_accepts(text))
    assume(version_key("pep440", left) is not None and version_key("pep440", right) is not None)
    assert key_sign("pep440", left, right) == compare_pep440(left, right)


@needs_dpkg
@PROCESS_PER_EXAMPLE
@given(debian_texts(stray=True).filter(lambda text: "\x00" not in text) | st.text("01a~.+-:", min_size=1, max_size=8))
def test_debian_takes_what_dpkg_takes(text: str) -> None:
    assume(not text.startswith("-"))  # dpkg would read an option
    assert (version_key("debian", text) is not None) == (fits(text) and dpkg_accepts(text))


@needs_dpkg
@PROCESS_PER_EXAMPLE
@given(debian_texts(stray=False), debian_texts(stray=False))
def test_debian_keys_order_as_dpkg_compares(left: str, right: str) -> None:
    assume(version_key("debian", left) is not None and version_key("debian", right) is not None)
    assert key_sign("debian", left, right) == compare_dpkg(left, right)


# --- auto: the same but for the listed classes ------------------------------------------------------------------------

NUMBERS = st.sampled_from(["0", "0", "1", "1", "2", "9", "10", "01"])
WORDS = st.sampled_from(
    ["rc1", "rc2", "rc10", "rc", "rc0", "beta1", "alpha2", "beta", "dev1", "dev", "a1", "b2", "snapshot", "pre1"]
) | st.sampled_from(["post1", "patch2", "post", "a", "b", "z", "hotfix", "hotfix2", "p1", "pl3", "x", "xy", "errata"])


@st.composite
def plain_texts(draw: st.DrawFn, *, before_word: list[str]) -> str:
    """Numbers between dots, then perhaps a word or two, then perhaps a build: most orders agree about most of these."""
    text = draw(st.sampled_from(["1", "1.0", "1.1", "2"])) + "".join(
        draw(st.lists(NUMBERS.map(".{}".format), max_size=2))
    )
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        text += draw(st.sampled_from(before_word)) + draw(WORDS)
        if draw(st.integers(0, 3)) == 0:
            text += "." + draw(NUMBERS)
    if draw(st.integers(0, 5)) == 0:
        text += "+" + draw(st.sampled_from(["1", "4", "5", "10", "a", "4.1"]))
    return text


def assert_listed(left: str, right: str, compare_other: Compare, classes: Mapping[str, Holds]) -> None:
    """`auto` and the other order agree, or the pair is in a class on the page."""
    assume(fits(left) and fits(right))
    here, other = auto(left, right), compare_other(left, right)
    names = [name for name, holds in classes.items() if holds(left, right)]
    event(f"{'the same' if here == other else 'different'}, {'in' if names else 'in no'} class")
    assert here == other or names, f"auto says {here}, the other order {other}"


@given(semver_texts(stray=False), semver_texts(stray=False))
def test_auto_differs_from_semver_in_the_listed_classes_alone(left: str, right: str) -> None:
    assert_listed(left, right, compare_semver, SEMVER_CLASSES)


@given(pep440_texts(stray=False), pep440_texts(stray=False))
def test_auto_differs_from_pep_440_in_the_listed_classes_alone(left: str, right: str) -> None:
    assert_listed(left, right, compare_pep440, PEP440_CLASSES)


@given(st.data())
def test_auto_differs_from_debian_in_the_listed_classes_alone(data: st.DataObject) -> None:
    tilde = plain_texts(before_word=["~", "~", ""])
    texts = st.one_of(tilde, tilde, debian_texts(stray=False))
    left, right = data.draw(texts), data.draw(texts)
    assume(oracle.is_version("debian", left) and oracle.is_version("debian", right))
    assert_listed(left, right, compare_debian, DEBIAN_CLASSES)


@given(st.data())
def test_auto_differs_from_libversion_in_the_listed_classes_alone(data: st.DataObject) -> None:
    left, right = data.draw(
        st.one_of(neighbours(2), st.lists(plain_texts(before_word=["-", ".", ""]), min_size=2, max_size=2))
    )
    assume(oracle.is_version("auto", left) and oracle.is_version("auto", right))
    assert_listed(left, right, compare_libversion, LIBVERSION_CLASSES)


# --- libversion itself ------------------------------------------------------------------------------------------------


LIBVERSION = installed_libversion()


@pytest.mark.skipif(LIBVERSION is None, reason="libversion is not installed; make build can't bring its C library")
@given(st.data())
def test_our_reading_of_libversion_is_libversion(data: st.DataObject) -> None:
    assert LIBVERSION is not None
    left, right = data.draw(
        st.one_of(neighbours(2), st.lists(plain_texts(before_word=["-", ".", ""]), min_size=2, max_size=2))
    )
    assert oracle.sign(LIBVERSION(left, right), 0) == compare_libversion(left, right)
