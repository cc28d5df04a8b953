"""Where `auto` differs from other orders: the examples of docs/versions.md, and that they speak of every class."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
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
    needs_dpkg,
)
from tests.unit.version_pairs import (
    AUTO,
    DEBIAN_DIFFERS,
    LIBVERSION_DIFFERS,
    PEP440_DIFFERS,
    SEMVER_DIFFERS,
    read_chains,
)

Examples = tuple[tuple[str, str, str, str], ...]
VERSIONS_PAGE = Path(__file__).parents[2] / "docs" / "versions.md"
ORDERS: Mapping[str, tuple[Compare, Mapping[str, Holds], Examples]] = {
    "semver": (compare_semver, SEMVER_CLASSES, SEMVER_DIFFERS),
    "pep440": (compare_pep440, PEP440_CLASSES, PEP440_DIFFERS),
    "debian": (compare_debian, DEBIAN_CLASSES, DEBIAN_DIFFERS),
    "libversion": (compare_libversion, LIBVERSION_CLASSES, LIBVERSION_DIFFERS),
}


def relation_of(difference: int) -> str:
    return "<=>"[difference + 1]


def relation_in_auto(one: str, another: str) -> str:
    return relation_of(oracle.sign(version_key("auto", one) or b"", version_key("auto", another) or b""))


@pytest.mark.parametrize(
    ("order", "one", "here", "other", "another"),
    [(order, *example) for order, (_, _, examples) in ORDERS.items() for example in examples],
)
def test_auto_differs_where_it_means_to(order: str, one: str, here: str, other: str, another: str) -> None:
    compare_other, classes, _ = ORDERS[order]
    assert relation_of(compare_other(one, another)) == other
    assert relation_in_auto(one, another) == here != other
    assert any(holds(one, another) for holds in classes.values())
    assert f"| `{one} {here} {another}` | `{one} {other} {another}` |" in VERSIONS_PAGE.read_text()


@needs_dpkg
@pytest.mark.parametrize(("one", "here", "debian", "another"), DEBIAN_DIFFERS)
def test_dpkg_itself_says_what_the_page_says_of_debian(one: str, here: str, debian: str, another: str) -> None:
    assert relation_of(compare_dpkg(one, another)) == debian != here


@pytest.mark.parametrize("order", ORDERS)
def test_every_class_of_differences_has_an_example_on_the_page(order: str) -> None:
    _, classes, examples = ORDERS[order]
    without = [name for name, holds in classes.items() if not any(holds(one, other) for one, _, _, other in examples)]
    assert without == []


def test_the_reading_of_libversion_holds_its_own_example() -> None:
    (chain,) = read_chains("1.0alpha1 < 1.0beta1 < 1.0 < 1.0patch1 < 1.0.1 < 1.0a < 1.0b < 1.1 < 1.2")
    for (_, one), (_, another) in itertools.combinations(chain, 2):
        assert compare_libversion(one, another) == -1
        assert compare_libversion(another, one) == 1


def is_version(order: str, text: str) -> bool:
    if order == "libversion":
        return True
    if order == "pep440":
        try:
            Version(text)
        except InvalidVersion:
            return False
        return True
    return oracle.is_version(order, text)


@pytest.mark.parametrize(
    ("order", "at_least"), [("semver", 100), ("pep440", 400), ("debian", 150), ("libversion", 300)]
)
def test_many_versions_of_vendors_are_in_no_class_and_in_the_same_order_everywhere(order: str, at_least: int) -> None:
    """Classes that took in everything would explain everything."""
    compare_other, classes, _ = ORDERS[order]
    agreed = 0
    for chain in AUTO:
        for (_, one), (_, another) in itertools.combinations(chain, 2):
            comparable = is_version(order, one) and is_version(order, another)
            if comparable and not any(holds(one, another) for holds in classes.values()):
                assert relation_in_auto(one, another) == relation_of(compare_other(one, another)), (one, another)
                agreed += 1
    assert agreed >= at_least
