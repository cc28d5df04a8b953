"""How texts, times and sizes look to people."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator

import pytest

from ota_hook.terminal import Column, Terminal, count_text, local_time, printable, size_text


@pytest.fixture
def shanghai(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CST-8")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("shanghai")
def test_a_time_is_shown_in_the_local_zone_which_is_named() -> None:
    assert local_time("2026-01-31T16:00:00.123Z") == "2026-02-01 00:00:00 CST"
    assert local_time(None) == "–"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("冬季版本 v1.0 é", "冬季版本 v1.0 é"),
        ("1.0\x1b[31m", "1.0\\x1b[31m"),
        ("1.0\r\n2", "1.0\\r\\n2"),
        ("a\u202eb", "a\\u202eb"),
        ("全角\u3000空格\t", "全角\u3000空格\\t"),
    ],
)
def test_what_a_device_reports_can_not_move_the_cursor(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1363713, "1.3 MiB"), (5 * 1024**4, "5120.0 GiB")],
)
def test_a_size_is_shown_in_the_unit_that_fits(size_bytes: int, shown: str) -> None:
    assert size_text(size_bytes) == shown


def test_one_is_not_many() -> None:
    assert [count_text(count, "device") for count in (0, 1, 1234)] == ["0 devices", "1 device", "1,234 devices"]


def test_a_piped_table_is_neither_cut_nor_padded_nor_coloured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    long = "很长的名字" * 40
    Terminal(as_json=False).table([Column("name"), Column("id", 4)], [(long, "1"), ("[red]b[/red]", "\x1b[0m")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{long}  1"
    assert lines[2].split() == ["[red]b[/red]", "\\x1b[0m"]
    assert lines[0] == "name" + " " * (400 - 4) + "  id"  # each of these characters fills two columns


def test_a_long_table_has_every_row_once_and_one_title(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(as_json=False).table([Column("number")], ((str(number),) for number in range(2500)))
    assert capsys.readouterr().out.split() == ["number", *map(str, range(2500))]


class Screen(io.TextIOWrapper):
    """Standard output as a terminal has it."""

    def isatty(self) -> bool:
        return True


def test_a_narrow_terminal_gets_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", Screen(written, encoding="utf-8", write_through=True))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    titles = [f"column-{number}" for number in range(12)]
    Terminal(as_json=False).table([Column(title) for title in titles], [[f"folds at blanks {n}" for n in range(12)]])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue().decode())
    assert shown.splitlines()[0].split() == titles
    assert len(shown.splitlines()) > 2
    assert shown.split().count("blanks") == 12
