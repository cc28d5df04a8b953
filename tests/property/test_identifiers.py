"""A child's identifier and its way from the gateway say the same, whatever its addresses are made of."""

from __future__ import annotations

import string
from urllib.parse import quote, unquote

from hypothesis import example, given
from hypothesis import strategies as st

from ota_hook.admission.texts import check_identifier
from ota_hook.errors import InputError
from ota_hook.identifiers import (
    CHILD_MAX_BYTES,
    DEPTH_MAX,
    child_identifier,
    gateway_of,
    is_address,
    is_direct_identifier,
    is_identifier,
    path_of,
)
from ota_hook.state.keys import Keys, as_bytes, as_text

# What addresses may hold and what may not, and what the encoding gives a meaning to, more often than by chance.
_GOOD = ["/", "%", "%2F", "%25", "%2f", "2F", "25", "+", "#", " ", "仪表", "é", "\u2028", "a", "b" * 60]
_BAD = ["\x00", "\x85", "\ud800"]
texts = st.lists(st.sampled_from(_GOOD + _BAD) | st.text(max_size=3), max_size=8).map("".join)
gateways = st.text(string.ascii_letters + "上海 -_:@", min_size=1, max_size=40)
printable = st.characters(exclude_categories=("Cc", "Cs"))
addresses = (
    st.lists(st.sampled_from(_GOOD) | printable, min_size=1, max_size=8)
    .map(lambda pieces: "".join(pieces).strip() or "x")
    .filter(is_address)
)
paths = st.lists(addresses, min_size=1, max_size=DEPTH_MAX).map(tuple)


@given(gateways, paths)
@example("g", ("a/b",))
@example("g", ("a%2Fb",))
@example("g", ("a%252Fb", "%", "/", "%25", "+", "#", "a b", "仪表"))
def test_a_childs_identifier_leads_back_to_its_gateway_and_its_way(gateway: str, path: tuple[str, ...]) -> None:
    identifier = child_identifier(gateway, path)
    if identifier is None:
        assert sum(len(address.encode()) for address in path) + len(gateway.encode()) > CHILD_MAX_BYTES // 4
        return
    assert (gateway_of(identifier), path_of(identifier)) == (gateway, path)
    assert is_identifier(identifier)
    assert check_identifier(identifier) == identifier
    assert not is_direct_identifier(identifier)
    assert len(identifier.encode()) <= CHILD_MAX_BYTES


@given(gateways, paths, paths)
@example("g", ("a", "b"), ("a/b",))
@example("g", ("a/b",), ("a%2Fb",))
@example("g", ("%",), ("%25",))
def test_no_two_ways_share_an_identifier(gateway: str, one: tuple[str, ...], other: tuple[str, ...]) -> None:
    first, second = child_identifier(gateway, one), child_identifier(gateway, other)
    assert (first == second) == (one == other) or None in {first, second}


@given(texts | st.builds("{}/{}".format, gateways, texts) | st.builds("{}/{}/{}".format, gateways, texts, texts))
@example("g/%2f")
@example("g/%2F")
@example("g/")
@example("/a")
@example("g/ ")
@example("g/a" + "/a" * (DEPTH_MAX - 1))
@example("g/a" + "/a" * DEPTH_MAX)
def test_what_is_an_identifier_is_one_that_some_way_has(text: str) -> None:
    is_child = "/" in text and is_direct_identifier(gateway_of(text)) and _is_made(text)
    assert is_identifier(text) == (is_direct_identifier(text) or is_child)
    try:
        assert check_identifier(text) == text
    except InputError:
        assert not is_identifier(text)


def _is_made(text: str) -> bool:
    return child_identifier(gateway_of(text), path_of(text)) == text


@given(gateways, paths)
def test_an_identifier_survives_an_address_of_the_api_and_redis(gateway: str, path: tuple[str, ...]) -> None:
    identifier = child_identifier(gateway, path)
    if identifier is not None:
        assert unquote(quote(identifier, safe="")) == identifier
        assert unquote(quote(identifier, safe="/")) == identifier
        assert as_text(as_bytes(identifier)) == identifier


@given(gateways, paths, st.integers(1, 2**24))
def test_a_child_is_in_its_gateways_bucket(gateway: str, path: tuple[str, ...], buckets: int) -> None:
    identifier = child_identifier(gateway, path)
    keys = Keys("ota", buckets)
    if identifier is not None:
        assert keys.bucket_of(identifier) == keys.bucket_of(gateway)
        assert keys.bucket_of_name(as_bytes(identifier)) == keys.bucket_of(gateway)
