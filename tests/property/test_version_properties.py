"""The order laws of versions, and the compiled version keys against the oracle, on texts made at random."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ota_hook._matcher import FirmwareIndex
from ota_hook._versions import version_key
from tests import oracle
from tests.property.version_texts import ANY_TEXT, NUMBERS, PIECES, WORDS, neighbours, texts_for, versions_for

SCHEMES = ("auto", "semver", "pep440", "debian")


def key_sign(scheme: str, left: str, right: str) -> int | None:
    left_key, right_key = version_key(scheme, left), version_key(scheme, right)
    if left_key is None or right_key is None:
        return None
    return oracle.sign(left_key, right_key)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_keys_order_and_are_equal_exactly_as_the_oracle_compares(scheme: str, data: st.DataObject) -> None:
    left, right = data.draw(texts_for(scheme, 2))
    assert (version_key(scheme, left) is not None) == oracle.is_version(scheme, left)
    assert (version_key(scheme, right) is not None) == oracle.is_version(scheme, right)
    if oracle.is_version(scheme, left) and oracle.is_version(scheme, right):
        assert key_sign(scheme, left, right) == oracle.compare(scheme, left, right)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_the_order_is_total_antisymmetric_and_transitive(scheme: str, data: st.DataObject) -> None:
    texts = data.draw(versions_for(scheme, 3))
    assume(all(oracle.is_version(scheme, text) for text in texts))

    def compare(left: str, right: str) -> int:
        return oracle.compare(scheme, left, right)

    first, second, third = texts
    for text in texts:
        assert compare(text, text) == 0
    for left, right in ((first, second), (second, third), (first, third)):
        assert compare(left, right) in (-1, 0, 1)
        assert compare(left, right) == -compare(right, left)
    for a, b, c in ((first, second, third), (second, third, first), (third, first, second)):
        if compare(a, b) <= 0 and compare(b, c) <= 0:
            assert compare(a, c) <= 0
            # Two that are equal stand in the same place towards every third.
            assert (compare(a, c) == 0) == (compare(a, b) == 0 and compare(b, c) == 0)


@st.composite
def two_spellings(draw: st.DrawFn) -> tuple[str, str]:
    """The same tokens twice: other separators, other leading zeros, other case, with and without a leading word."""
    tokens = draw(st.lists(st.one_of(NUMBERS, WORDS), min_size=1, max_size=10))
    spellings = ["", ""]
    for place, token in enumerate(tokens):
        glued = place > 0 and token.isdigit() != tokens[place - 1].isdigit()
        for side in (0, 1):
            spelled = (
                "0" * draw(st.integers(0, 2)) + token
                if token.isdigit()
                else draw(st.sampled_from([token, token.upper()]))
            )
            separators = draw(st.text(".-_ ~é/", min_size=0 if glued or not place else 1, max_size=2))
            spellings[side] += separators + spelled
    leading = draw(st.sampled_from(["", "v", "V.", "ver ", "Version:"])) if tokens[0].isdigit() else ""
    return leading + spellings[0], spellings[1]


@given(two_spellings())
def test_two_spellings_of_the_same_tokens_are_one_version(spellings: tuple[str, str]) -> None:
    assume(all(len(text.strip().encode()) <= 128 for text in spellings))
    left, right = spellings
    assert version_key("auto", left) == version_key("auto", right)


@given(
    st.lists(st.sampled_from(["0", "1", "10", "00"]), min_size=1, max_size=5),
    st.integers(0, 4),
    st.sampled_from(["", "-rc1", "-hotfix", "a", "+5", "-beta.0"]),
)
def test_zeros_before_a_word_or_the_end_say_nothing(numbers: list[str], zeros: int, behind: str) -> None:
    text = ".".join(numbers)
    assert version_key("auto", text + ".0" * zeros + behind) == version_key("auto", text + behind)


@given(PIECES.map("".join), st.text(" \t\r\n\u3000", max_size=4), st.text(" \t\r\n", max_size=4))
def test_white_space_around_a_version_and_its_case_say_nothing(text: str, before: str, after: str) -> None:
    key = version_key("auto", text)
    assert version_key("auto", before + text + after) == key
    assert version_key("auto", text.strip()) == key
    if text.isascii():
        assert version_key("auto", text.upper()) == version_key("auto", text.lower()) == key


@given(neighbours(3))
def test_a_build_part_makes_a_version_newer_but_not_newer_than_the_next(texts: list[str]) -> None:
    text, build, other = (text.replace("+", ".") for text in texts)
    plain, built, next_key = (version_key("auto", t) for t in (text, f"{text}+1{build}", other))
    assume(plain is not None and built is not None and next_key is not None)
    assert plain is not None
    assert built is not None
    assert next_key is not None
    assert plain < built
    if plain != next_key:
        assert (plain < next_key) == (built < next_key)


@given(st.sampled_from(SCHEMES), ANY_TEXT)
def test_no_text_raises(scheme: str, text: str) -> None:
    assert (version_key(scheme, text) is not None) == oracle.is_version(scheme, text)
    firmware = [oracle.Firmware("F", "1.0.0")]
    index = FirmwareIndex(scheme, oracle.compiled_entries(firmware))
    assert index.resolve(text, text) == oracle.resolve(scheme, firmware, oracle.Device(text), text)
    assert len(index.explain(text, text)) == 1
