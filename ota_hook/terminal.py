"""What a command prints: JSON or tables on standard output; notes, questions and progress on standard error.

Owns the forms of texts, times and sizes for people. It must not know the API or what is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, BinaryIO, Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ota_hook.errors import InputError

_WIDE: Final = 100_000
"""Columns where nothing is cut or folded."""
_ROWS_AT_ONCE: Final = 1000
_SIZE_UNITS: Final = ("KiB", "MiB", "GiB")


class Column(NamedTuple):
    """A column of a table. `min_width` keeps what people copy, an id for one, in one piece."""

    title: str
    min_width: int = 0
    right: bool = False


def printable(text: str) -> str:
    """The text with everything that could move the cursor, colour or reorder the line spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\u3000" else ascii(c)[1:-1] for c in text)


def local_time(rfc3339: str | None, *, zone: str | None = None) -> str:
    """`2026-01-31 16:00:00 CST`: the time in the zone, else in the local one, which is named.

    A zone that this machine does not know is taken for the local one.
    """
    if rfc3339 is None:
        return "–"
    try:
        place = None if zone is None else ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        place = None
    return datetime.fromisoformat(rfc3339).astimezone(place).strftime("%Y-%m-%d %H:%M:%S %Z")


def size_text(size_bytes: int) -> str:
    """`1.3 MiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in _SIZE_UNITS:
        size /= 1024
        if size < 1024 or unit == _SIZE_UNITS[-1]:
            break
    return f"{size:.1f} {unit}"


def yes_no(value: object) -> str:
    """`yes` for what is true."""
    return "yes" if value else "no"


def count_text(count: int, noun: str) -> str:
    """`1 device`, `2 devices`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class Terminal:
    """The two streams of one command. With `as_json`, standard output gets exactly one JSON document."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")  # a name that this locale can't show must not end the command
        # Its columns are not the terminal's: what may be folded is decided table by table.
        self._out = _console(sys.stdout, width=_WIDE)
        self._err = _console(sys.stderr)
        self._terminal_columns = _console(sys.stdout).width if sys.stdout.isatty() else _WIDE

    # ---- standard output

    def say(self, text: str, *, style: str = "") -> None:
        """A line for people."""
        self._print(Text(printable(text), style=style))

    def write_json(self, document: object) -> None:
        _write_bytes(orjson.dumps(document) + b"\n")

    def write_json_list(self, entries: Iterable[object]) -> None:
        """One JSON array, written as its entries come. Nothing is written before the first has come."""
        opening = b"["
        for entry in entries:
            _write_bytes(opening + orjson.dumps(entry))
            opening = b",\n "
        _write_bytes(b"[]\n" if opening == b"[" else b"]\n")

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Rows under titles; a long table comes in pieces, so that it need not be held whole."""
        piece: list[Sequence[str]] = []
        begun = False
        for row in rows:
            piece.append(row)
            if len(piece) == _ROWS_AT_ONCE:
                self._print(self._fit(_make_table(columns, piece, titled=not begun)))
                piece, begun = [], True
        if piece or not begun:
            self._print(self._fit(_make_table(columns, piece, titled=not begun)))

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one below the other. Values stay in one piece, for who copies an address."""
        table = Table.grid(padding=(0, 3))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True)
        for name, value in pairs:
            table.add_row(name, Text(printable(value)))
        self._print(table)

    def _fit(self, table: Table) -> Table:
        """Fold cells where the table is wider than the terminal."""
        natural = Measurement.get(self._out, self._out.options, table)
        if natural.maximum > self._terminal_columns:
            # rich leaves out the columns that don't fit. Lines that are too long are the lesser evil.
            table.width = max(natural.minimum, self._terminal_columns)
        return table

    def _print(self, what: Table | Text) -> None:
        with self._out.capture() as captured:
            self._out.print(what, soft_wrap=isinstance(what, Text))
        # Cells are filled up with blanks to their column's width; the last one's are of no use to anyone.
        sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
        sys.stdout.flush()

    @contextmanager
    def raw_output(self) -> Iterator[BinaryIO]:
        """Standard output for bytes."""
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()

    # ---- standard error

    def note(self, text: str) -> None:
        """A line beside the answer."""
        self._err.print(Text(printable(text)), soft_wrap=True)

    def confirm(self, question: str) -> bool:
        """Ask and wait for a line that begins with y; anything else is no. InputError where nobody can be asked."""
        if not sys.stdin.isatty():
            raise InputError(f"{question} Nobody is there to ask.", mend="Say --yes.")
        sys.stderr.write(f"{printable(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    @contextmanager
    def progress(self, label: str, total_bytes: int | None, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
        """A bar where standard error is a terminal; the context's value is told the bytes so far."""
        if not (shown and sys.stderr.isatty()):
            yield lambda _: None
            return
        from rich import progress as bars  # noqa: PLC0415 - only people at a terminal wait for it

        columns: tuple[Any, ...] = (bars.TextColumn("{task.description}", markup=False), bars.DownloadColumn())
        if total_bytes is not None:
            columns = (columns[0], bars.BarColumn(), columns[1], bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
        with bars.Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(printable(label), total=total_bytes)
            yield lambda done: bar.update(task, completed=done)

    @contextmanager
    def tally(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        """A bar where standard error is a terminal; the value is told how many are done, of how many, and a text."""
        if not sys.stderr.isatty():
            yield lambda _done, _total, _text: None
            return
        from rich import progress as bars  # noqa: PLC0415 - as above

        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[text]}", markup=False),
        )
        with bars.Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(printable(label), total=None, text="")
            yield lambda done, total, text: bar.update(task, completed=done, total=total or None, text=printable(text))


def _console(stream: Any, *, width: int | None = None) -> Console:  # noqa: ANN401 - whatever replaces a stream
    return Console(
        file=stream,
        force_terminal=stream.isatty(),
        width=width,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _make_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, titled: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=titled, header_style="bold")
    for column in columns:
        # A width of its own keeps rich from folding a title, or an id, for the sake of another column.
        min_width = max(column.min_width, cell_len(column.title))
        table.add_column(
            column.title, min_width=min_width, overflow="fold", justify="right" if column.right else "left"
        )
    for row in rows:
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    return table


def _write_bytes(data: bytes) -> None:
    """JSON is UTF-8 in every locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
