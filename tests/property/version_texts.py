"""Texts made at random that are versions of a scheme, or nearly: what the property tests draw from."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.sampled_from(["0", "1", "2", "9", "10", "00", "01", "007"]), st.text("0123456789", min_size=1, max_size=30)
)
WORDS = st.one_of(
    st.sampled_from(
        ["dev", "snapshot", "nightly", "alpha", "a", "beta", "b", "pre", "preview", "rc", "B", "RC", "Alpha"]
    ),
    st.sampled_from(["v", "V", "ver", "version", "hotfix", "post", "g", "z", "za", "r", "c", "spc"]),
    st.text("abcvz", min_size=1, max_size=4),
)
SEPARATORS = st.sampled_from(
    [".", ".", ".", "-", "-", "_", "~", " ", "+", "+", "é", "\x00", "٣", "ſ", "K", "²", "\u3000"]
)
PIECES = st.lists(st.one_of(NUMBERS, WORDS, SEPARATORS), min_size=1, max_size=12)
ANY_TEXT = st.one_of(st.text(), st.text(st.characters(), max_size=140), st.text("01ab+.- ", max_size=160))

# Few and short, so that two texts made of them often tie or nearly tie.
TOKENS = st.one_of(
    st.sampled_from([".0", ".0", ".0", ".1", ".1", ".2", ".10", ".00", "0", " ", "_", "+", "+0", "+1"]),
    st.sampled_from(["-rc", "rc1", ".a1", "b0", ".dev", "-dev1", "-snapshot", ".nightly", "-alpha", ".beta.", "-pre"]),
    st.sampled_from(["-a", "a", "-x", ".x", "x1", ".xy", "-v", "v1"]),
)

SEMVER_NUMBERS = st.sampled_from(["0", "1", "2", "9", "10", "99999999999999999999"])
SEMVER_PRE = st.lists(
    st.sampled_from(["0", "1", "2", "9", "10", "99999999999999999999", "alpha", "beta", "a", "aa", "rc", "RC", "rc1"])
    | st.sampled_from(["rc10", "x-y-z", "-", "-1", "0a", "1a", "01a"]),
    max_size=4,
)
SEMVER_BUILD = st.lists(st.sampled_from(["0", "001", "build", "-", "sha-5114f85"]), max_size=3)


@st.composite
def semver_texts(draw: st.DrawFn, *, stray: bool) -> str:
    """SemVer, often of one core so that what stands behind it decides. With `stray`, now and then it is spoiled."""
    text = draw(st.just("1.0.0") | st.lists(SEMVER_NUMBERS, min_size=3, max_size=3).map(".".join))
    if pre := draw(SEMVER_PRE):
        text += "-" + ".".join(pre)
    if build := draw(SEMVER_BUILD):
        text += "+" + ".".join(build)
    return draw(spoiled(text, ["0", ".", "-", "+", "v", " ", "_", "é", ".01", "-01", ".."])) if stray else text


PEP440_NUMBERS = st.sampled_from(["0", "1", "2", "9", "10", "00", "01", "99999999999999999999"])
PEP440_SUFFIXES = [
    [
        "a",
        "b",
        "c",
        "rc",
        "alpha",
        "Beta",
        "pre",
        "preview",
        "a1",
        "b0",
        "rc1",
        "c1",
        "rc.0",
        "alpha-1",
        "pre_2",
        "rc10",
    ],
    ["-1", "-0", "post", "r", "rev", "post1", "post0", ".post2", "-r1", "_rev-1", "post10"],
    ["dev", "dev0", "dev1", ".dev2", "-dev10", "_DEV"],
]
PEP440_LOCAL = st.lists(st.sampled_from(["0", "1", "01", "10", "a", "A", "ab", "a1", "1a", "rc9", "rc10"]), max_size=3)


@st.composite
def pep440_texts(draw: st.DrawFn, *, stray: bool) -> str:
    """PEP 440, often of one release. With `stray`, now and then it is spoiled."""
    text = draw(st.sampled_from(["", "", "", "", "v", "V", "0!", "1!", "01!"]))
    text += draw(
        st.sampled_from(["1", "1.0", "1.0.0", "1.0.1", "01.00", "0"])
        | st.lists(PEP440_NUMBERS, min_size=1, max_size=4).map(".".join)
    )
    for suffixes in PEP440_SUFFIXES:
        if draw(st.integers(0, 2)) == 0:
            text += draw(st.sampled_from(suffixes))
    if local := draw(PEP440_LOCAL):
        text += "+" + draw(st.sampled_from([".", "-", "_"])).join(local)
    return (
        draw(spoiled(text, ["1", ".", "-", "+", "!", "v", " ", "é", "\u017f", "\u212a", "٣", ".x"])) if stray else text
    )


DEBIAN_TOKENS = st.sampled_from(
    [".", ".", "0", "0", "1", "1", "2", "10", "00", "01", "99999999999999999999", "~", "~", "-", "-", "+", ":"]
) | st.sampled_from(["a", "A", "ab", "z", "rc", "~rc1", "~~", "-1", "-0", "+b1", "Z"])


@st.composite
def debian_texts(draw: st.DrawFn, *, stray: bool) -> str:
    """Debian's, often of one beginning, and a few that are none. With `stray`, now and then one is spoiled."""
    epoch = draw(st.sampled_from(["", "", "", "", "0:", "1:", "01:", "+1:", "2147483647:", "2147483648:"]))
    upstream = draw(st.sampled_from(["1", "1.0", "0", "1.0-"]))
    tokens = draw(st.lists(DEBIAN_TOKENS, max_size=5))
    text = epoch + upstream + "".join(tokens)
    return draw(spoiled(text, ["_", ":", "-", "+", "v", " ", "é", "\x00", "٣", "/", "~"])) if stray else text


@st.composite
def spoiled(draw: st.DrawFn, text: str, strays: list[str]) -> str:
    """`text` with a stray somewhere, one time in four."""
    if draw(st.integers(0, 3)) > 0:
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(strays)) + text[at:]


@st.composite
def neighbours(draw: st.DrawFn, count: int) -> list[str]:
    """Texts that begin alike and differ in few tokens, so that ties and near ties are common."""
    first = draw(st.sampled_from(["1", "0", "v1", "ver", "v", "1.0", "fw-1"]))
    beginning = first + "".join(draw(st.lists(TOKENS, max_size=4)))
    return [beginning + "".join(draw(st.lists(TOKENS, max_size=3))) for _ in range(count)]


TEXTS_OF: dict[str, Callable[..., st.SearchStrategy[str]]] = {
    "semver": semver_texts,
    "pep440": pep440_texts,
    "debian": debian_texts,
}


def versions_for(scheme: str, count: int) -> st.SearchStrategy[list[str]]:
    """Texts that are versions, all of them in `semver` and nearly all in the others."""
    if scheme in TEXTS_OF:
        return st.lists(TEXTS_OF[scheme](stray=False), min_size=count, max_size=count)
    return st.one_of(
        neighbours(count), neighbours(count), st.lists(PIECES.map("".join), min_size=count, max_size=count)
    )


def texts_for(scheme: str, count: int) -> st.SearchStrategy[list[str]]:
    strays = TEXTS_OF[scheme](stray=True) if scheme in TEXTS_OF else PIECES.map("".join)
    anything = st.lists(st.one_of(ANY_TEXT, strays), min_size=count, max_size=count)
    return st.one_of(versions_for(scheme, count), versions_for(scheme, count), anything)
