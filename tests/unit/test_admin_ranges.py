"""Range headers as RFC 9110 §14 has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin_api.downloads import RANGES_MAX, parse_range


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-99", [(0, 100)]),
        ("bytes=10-19", [(10, 20)]),
        ("bytes=90-", [(90, 100)]),
        ("bytes=90-1000", [(90, 100)]),
        ("bytes=-10", [(90, 100)]),
        ("bytes=-1000", [(0, 100)]),
        ("BYTES = 0-0", [(0, 1)]),
        ("bytes=0-0,,", [(0, 1)]),
        ("bytes=0-0, 50-59 ,-1", [(0, 1), (50, 60), (99, 100)]),
        ("bytes=50-59,0-9", [(0, 10), (50, 60)]),
        ("bytes=0-9,5-20", [(0, 21)]),
        ("bytes=0-9,10-20", [(0, 21)]),
        ("bytes=200-300,0-0", [(0, 1)]),
    ],
)
def test_a_good_range_is_honoured(header: str, spans: list[tuple[int, int]]) -> None:
    assert parse_range(header, 100) == spans


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=999-,-0"])
def test_a_range_outside_the_file_can_not_be_satisfied(header: str) -> None:
    assert parse_range(header, 100) == []


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=0-0,5-2",
        "bytes=--5",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes=٣-٤",
        "bytes=" + "9" * 40 + "-",
        "items=0-1",
        "bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(RANGES_MAX + 1)),
    ],
)
def test_what_is_no_range_is_ignored(header: str) -> None:
    assert parse_range(header, 100) is None


@given(st.text(alphabet="bytes=0123456789-, ", max_size=40), st.integers(min_value=1, max_value=1000))
def test_spans_lie_in_the_file_in_order_and_apart(tail: str, size_bytes: int) -> None:
    spans = parse_range("bytes=" + tail, size_bytes)
    ends = -1
    for start, end in spans or ():
        assert ends < start < end <= size_bytes
        ends = end
