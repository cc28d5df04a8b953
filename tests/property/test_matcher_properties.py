"""The order laws of versions, and the compiled matcher against the oracle, on texts and catalogues made at random."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ota_hook._matcher import FirmwareEntry, FirmwareIndex
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
    index = FirmwareIndex(scheme, [FirmwareEntry("F", "1.0.0")])
    assert index.resolve(text, text) == oracle.resolve(scheme, [FirmwareEntry("F", "1.0.0")], text, text)
    assert len(index.explain(text, text)) == 1


# --- the index --------------------------------------------------------------------------------------------------------

KNOWN_VERSIONS = ("1.0.0", "1.0.0-rc.1", "1.0.1", "1.1.0", "1.1.0+4", "2.0.0")
VERSIONS = {
    "auto": (*KNOWN_VERSIONS, "1.0", "v1", " 1.0.1 ", "1.1.0-hotfix", "2"),
    "semver": KNOWN_VERSIONS,
    "pep440": (*KNOWN_VERSIONS, "1.0", "v1", " 1.0.1 ", "1.0rc1", "1.1.0.post1", "1!0.5"),
    "debian": (*KNOWN_VERSIONS, "1.0", "0:1.0", " 1.0.1 ", "1.0.0~rc1", "1.0.0-0", "1:0.5"),
}
EVERY_VERSION = sorted({version for versions in VERSIONS.values() for version in versions})
SOURCES = ("1.0.0", "1.0.1", " 1.0.1 ", "1.1.0", "2.0.0", "1.0", "none", "")
IDENTIFIERS = ("d1", "d2", "d3", "d4")


@st.composite
def entries_for(draw: st.DrawFn, scheme: str) -> list[FirmwareEntry]:
    entries = []
    for place in range(draw(st.integers(0, 8))):
        sources = tuple(draw(st.lists(st.sampled_from(SOURCES), max_size=3)))
        entry = FirmwareEntry(
            id=f"F{place * 7 % 11:02}",  # no two alike, and not in the order of the list
            version=draw(st.sampled_from(VERSIONS[scheme])),
            enabled=draw(st.sampled_from([True, True, True, False])),
            devices=draw(st.none() | st.frozensets(st.sampled_from(IDENTIFIERS))),
            source_versions=sources,
            allow_downgrade=bool(sources) and draw(st.booleans()),
            created_at_ms=draw(st.integers(0, 2)),
        )
        entries.append(entry)
    return entries


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_resolve_and_explain_agree_with_the_oracle(scheme: str, data: st.DataObject) -> None:
    entries = data.draw(entries_for(scheme))
    index = FirmwareIndex(scheme, entries)
    current = data.draw(st.sampled_from([*EVERY_VERSION, *SOURCES, "1.0.1\t", None]) | ANY_TEXT)
    assert len(index) == len(entries)
    for identifier in (*IDENTIFIERS, "elsewhere"):
        if current is not None:
            assert index.resolve(identifier, current) == oracle.resolve(scheme, entries, identifier, current)
        assert index.explain(identifier, current) == oracle.explain(scheme, entries, identifier, current)


@given(entries_for("auto"), st.sampled_from(IDENTIFIERS), st.sampled_from(VERSIONS["auto"]), st.randoms())
@example([], "d1", "1.0", None)
def test_the_order_of_entries_says_nothing(
    entries: list[FirmwareEntry], identifier: str, current: str, random: object
) -> None:
    shuffled = list(entries)
    if random is not None:
        random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert FirmwareIndex("auto", entries).explain(identifier, current) == FirmwareIndex("auto", shuffled).explain(
        identifier, current
    )


@given(entries_for("auto"), st.sampled_from(IDENTIFIERS), st.sampled_from(VERSIONS["auto"]))
def test_upgrades_without_downgrades_end(entries: list[FirmwareEntry], identifier: str, current: str) -> None:
    entries = [entry._replace(allow_downgrade=False) for entry in entries]
    index = FirmwareIndex("auto", entries)
    by_id = {entry.id: entry.version for entry in entries}
    steps = 0
    while (chosen := index.resolve(identifier, current)) is not None:
        assert oracle.compare("auto", current, by_id[chosen]) < 0
        current = by_id[chosen]
        steps += 1
    assert steps <= len(entries)
