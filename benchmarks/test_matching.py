"""The matcher's parts one by one, beside the same in plain Python: pytest-benchmark's table.

    python -m pytest benchmarks/test_matching.py

No part of `make test`. benchmarks/matching.py has the mixes and the goals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from packaging.version import Version
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.catalogues import TYPE, asked, compiled_entries, packed_buckets, plan_catalogue
from benchmarks.plain_matcher import PlainMatcher
from ota_hook._matcher import FirmwareIndex
from ota_hook._versions import version_key

FIRMWARE = 1_000
LISTED = 10_000
PLANNED = plan_catalogue(FIRMWARE, LISTED)
QUESTIONS = asked(2 * LISTED, 1_000)
BUCKETS = packed_buckets(16_000)
TEXTS = [f"1.{number}.0rc{number % 7}" for number in range(200_000)]


def compiled() -> FirmwareIndex:
    return FirmwareIndex("auto", compiled_entries(PLANNED))


def ask_all(matcher: FirmwareIndex | PlainMatcher) -> list[str | None]:
    return [matcher.resolve(identifier, current) for identifier, current in QUESTIONS]


def fresh_texts() -> Callable[[], tuple[tuple[list[str]], dict[str, Any]]]:
    """A thousand texts that nobody has seen yet, for each round."""
    rest = iter(range(0, len(TEXTS), 1_000))

    def take() -> tuple[tuple[list[str]], dict[str, Any]]:
        start = next(rest)
        return (TEXTS[start : start + 1_000],), {}

    return take


@pytest.mark.benchmark(group="a thousand matches, 1,000 firmware")
@pytest.mark.parametrize("make", [compiled, lambda: PlainMatcher(PLANNED)], ids=["compiled", "plain"])
def test_resolve(benchmark: BenchmarkFixture, make: Callable[[], FirmwareIndex | PlainMatcher]) -> None:
    assert benchmark(ask_all, make()) == ask_all(PlainMatcher(PLANNED))


@pytest.mark.benchmark(group="index of 1,000 firmware")
@pytest.mark.parametrize("make", [compiled, lambda: PlainMatcher(PLANNED)], ids=["compiled", "plain"])
def test_build(benchmark: BenchmarkFixture, make: Callable[[], FirmwareIndex | PlainMatcher]) -> None:
    assert ask_all(benchmark(make)) == ask_all(PlainMatcher(PLANNED))


@pytest.mark.benchmark(group="sixteen thousand devices in buckets")
def test_resolve_many(benchmark: BenchmarkFixture) -> None:
    index = compiled()
    found = benchmark(lambda: [match for bucket in BUCKETS for match in index.resolve_many(bucket, TYPE, "version")])
    plain = PlainMatcher(PLANNED)
    assert len(found) == 1_600
    assert all(plain.resolve(match.identifier, match.current) == match.firmware_id for match in found)


@pytest.mark.benchmark(group="a thousand version keys, new texts")
@pytest.mark.parametrize(
    "key",
    [lambda text: version_key("auto", text), lambda text: version_key("pep440", text), Version],
    ids=["auto", "pep440", "packaging"],
)
def test_version_keys(benchmark: BenchmarkFixture, key: Callable[[str], object]) -> None:
    keys = benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda texts: [key(text) for text in texts], setup=fresh_texts(), rounds=20
    )
    assert len(keys) == 1_000
