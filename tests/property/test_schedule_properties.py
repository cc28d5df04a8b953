"""Due moments and windows against one who watches the zone's clock minute by minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from ota_hook.errors import InputError
from ota_hook.model import Interval, Once, Repeat, Schedule, Window
from ota_hook.rollout.schedule import (
    describe,
    is_open,
    next_due,
    next_opening,
    parse_cron,
    parse_moment,
    parse_zone,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE_MS = 60_000
DAY_MS = 86_400_000
WATCHED_DAYS = 2
ZONES = (
    "UTC", "Europe/Berlin", "Europe/Dublin", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe", "Pacific/Apia",
    "America/St_Johns", "America/Sao_Paulo", "America/Havana", "Asia/Kathmandu", "Africa/Casablanca", "Asia/Tehran",
    "Antarctica/Troll", "Pacific/Kwajalein", "America/Scoresbysund", "Asia/Pyongyang", "Europe/Moscow",
)  # fmt: skip


def local(at_ms: int, zone: str) -> datetime:
    return (EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(zone)).replace(tzinfo=None)


@cache
def changes(zone: str) -> tuple[int, ...]:
    """The moments since 1973 (before, offsets had seconds) to 2110 at which the zone's offset changes."""

    def offset(at_ms: int) -> timedelta:
        return local(at_ms, zone) - local(at_ms, "UTC")

    found = []
    for week_ms in range(3 * 365 * DAY_MS, 140 * 365 * DAY_MS, 7 * DAY_MS):
        low, high = week_ms, week_ms + 7 * DAY_MS
        if offset(low) != offset(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
            found.append(high)
    return tuple(found)


@st.composite
def moments(draw: st.DrawFn, zone: str) -> int:
    """Anywhen, but mostly where clocks change."""
    anywhen = st.integers(4 * 365 * DAY_MS, 139 * 365 * DAY_MS)
    if not changes(zone) or draw(st.integers(0, 3)) == 0:
        return draw(anywhen)
    change = draw(st.sampled_from(changes(zone)))
    return change + draw(st.one_of(st.integers(-2 * DAY_MS, 2 * DAY_MS), st.sampled_from([-1, 0, 1])))


zones = st.sampled_from(ZONES)
minutes = st.one_of(st.integers(0, 1439), st.integers(0, 240))
some_days = st.frozensets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days)))


@dataclass(frozen=True)
class Wanted:
    """A Repeat, and what says of a wall time whether it is one of its own, in the oracle's words."""

    repeat: Repeat
    fits: Callable[[datetime], bool]


@st.composite
def repeats(draw: st.DrawFn, zone: str) -> Wanted:
    if draw(st.booleans()):
        days, times = draw(some_days), tuple(draw(st.lists(minutes, min_size=1, max_size=4)))
        return Wanted(
            Repeat(zone, days, times), lambda wall: wall.weekday() in days and wall.hour * 60 + wall.minute in times
        )
    return draw(cron_lines(zone).filter(lambda wanted: comes(wanted.repeat)))


def comes(repeat: Repeat) -> bool:
    try:
        return parse_cron(str(repeat.cron)) == repeat.cron
    except InputError:
        return False


@st.composite
def cron_lines(draw: st.DrawFn, zone: str) -> Wanted:
    def field(least: int, most: int) -> tuple[str, set[int]]:
        kind = draw(st.sampled_from(["any", "listed", "stepped", "span"]))
        if kind == "any":
            return "*", set(range(least, most + 1))
        if kind == "stepped":
            step = draw(st.integers(1, most))
            return f"*/{step}", set(range(least, most + 1, step))
        if kind == "span":
            first, last = sorted((draw(st.integers(least, most)), draw(st.integers(least, most))))
            return f"{first}-{last}", set(range(first, last + 1))
        listed = draw(st.sets(st.integers(least, most), min_size=1, max_size=4))
        return ",".join(map(str, sorted(listed))), listed

    fields = [field(0, 59), field(0, 23), field(1, 31), ("*", set(range(1, 13))), field(0, 6)]
    line = " ".join(text for text, _ in fields)
    minute, hour, day, _, weekday = (values for _, values in fields)
    both = fields[2][0].startswith("*") or fields[4][0].startswith("*")

    def fits(wall: datetime) -> bool:
        days = (wall.day in day, (wall.weekday() + 1) % 7 in weekday)
        return wall.minute in minute and wall.hour in hour and (all(days) if both else any(days))

    return Wanted(Repeat(zone, cron=line), fits)


def watched(zone: str, from_ms: int, until_ms: int) -> Iterator[tuple[int, list[datetime]]]:
    """Each minute, with the wall times that the clock reaches there for the first time."""
    start_ms = from_ms - from_ms % MINUTE_MS - DAY_MS // 4  # no zone went back further
    furthest = local(start_ms, zone)
    for at_ms in range(start_ms + MINUTE_MS, until_ms + 1, MINUTE_MS):
        now = local(at_ms, zone)
        reached = []
        while furthest < now:
            furthest += timedelta(minutes=1)
            reached.append(furthest)
        if at_ms >= from_ms:
            yield at_ms, reached


def watched_dues(wanted: Wanted, from_ms: int, until_ms: int) -> list[int]:
    zone = wanted.repeat.zone
    return [at_ms for at_ms, walls in watched(zone, from_ms, until_ms) if any(map(wanted.fits, walls))]


@given(st.data())
def test_the_next_due_moment_is_the_first_that_one_who_watches_the_clock_sees(data: st.DataObject) -> None:
    zone = data.draw(zones)
    wanted, after_ms = data.draw(repeats(zone)), data.draw(moments(zone))
    until_ms = after_ms + WATCHED_DAYS * DAY_MS
    seen = watched_dues(wanted, after_ms + 1, until_ms)
    due = next_due(wanted.repeat, after_ms)
    assert due is not None
    assert due == seen[0] if seen else due > until_ms


@given(st.data())
def test_a_window_is_open_while_its_hours_are_on_the_clock(data: st.DataObject) -> None:
    zone = data.draw(zones)
    window = Window(zone, data.draw(some_days), data.draw(minutes), data.draw(minutes))
    at_ms = data.draw(moments(zone))
    from_ms = at_ms - at_ms % MINUTE_MS
    until_ms = from_ms + WATCHED_DAYS * DAY_MS

    def holds(furthest: datetime) -> bool:
        midnight = furthest.replace(hour=0, minute=0, second=0, microsecond=0)
        length = (window.end - window.start) % 1440 or 1440
        for day in (midnight - timedelta(days=1), midnight):
            start = day + timedelta(minutes=window.start)
            if day.weekday() in window.days and start <= furthest < start + timedelta(minutes=length):
                return True
        return False

    furthest, openings = EPOCH.replace(tzinfo=None), []
    for minute_ms, walls in watched(zone, from_ms - DAY_MS // 4, until_ms):
        furthest = max([furthest, *walls])
        if minute_ms == from_ms:
            assert is_open(window, at_ms) == holds(furthest)
        begins = any(window.start == wall.hour * 60 + wall.minute and wall.weekday() in window.days for wall in walls)
        if minute_ms > at_ms and begins and holds(furthest):
            openings.append(minute_ms)
    opening = next_opening(window, at_ms)
    assert opening == openings[0] if openings else opening > until_ms


@st.composite
def schedules(draw: st.DrawFn, zone: str) -> Schedule:
    kind = draw(st.sampled_from([Once, Interval, Repeat]))
    if kind is Once:
        return Once(draw(moments(zone)))
    if kind is Interval:
        return Interval(draw(st.integers(60, 40 * 86_400)), draw(moments(zone)))
    return draw(repeats(zone)).repeat


@given(st.data())
def test_what_is_due_next_is_later_and_still_next_right_before_it(data: st.DataObject) -> None:
    zone = data.draw(zones)
    schedule, at_ms = data.draw(schedules(zone)), data.draw(moments(zone))
    following = next_due(schedule, at_ms)
    if following is not None:
        assert following > at_ms
        assert next_due(schedule, following - 1) == following


@given(st.data())
def test_a_later_question_never_has_an_earlier_answer(data: st.DataObject) -> None:
    zone = data.draw(zones)
    schedule, first_ms = data.draw(schedules(zone)), data.draw(moments(zone))
    later_ms = first_ms + data.draw(st.integers(0, 3 * DAY_MS))
    first, later = next_due(schedule, first_ms), next_due(schedule, later_ms)
    if later is not None:
        assert first is not None
        assert first <= later
        assert first == later or first <= later_ms


@given(
    st.one_of(
        st.text(max_size=40),
        st.from_regex(r"[0-9*/,L#-]{1,6}( [0-9*/,L#-]{1,6}){3} [0-9*/,L#WMONFRI-]{1,6}", fullmatch=True),
        st.tuples(
            *[st.sampled_from(["*", "*/7", "3", "1,5/9", "2-4", "29", "31", "L", "LW", "5L", "1#5", "FEB", "SUN"])] * 5
        ).map(" ".join),
    )
)
def test_any_text_is_a_cron_line_that_comes_and_reads_or_is_refused(text: str) -> None:
    try:
        line = parse_cron(text)
    except InputError:
        return
    assert parse_cron(line) == line
    repeat = Repeat("Asia/Shanghai", cron=line)
    assert next_due(repeat, 0) is not None
    assert describe(repeat).endswith(", Asia/Shanghai")


@given(st.text(max_size=40))
def test_any_text_is_a_zone_or_a_time_or_is_refused(text: str) -> None:
    for parse in (parse_zone, lambda text: parse_moment(text, field="at")):
        with suppress(InputError):
            parse(text)


@given(st.integers(0, 253_402_300_799_999), st.integers(-1439, 1439))
def test_a_time_is_read_as_it_was_written(at_ms: int, offset_minutes: int) -> None:
    moment = EPOCH + timedelta(milliseconds=at_ms)
    try:
        text = (moment + timedelta(minutes=offset_minutes)).replace(tzinfo=None).isoformat(timespec="milliseconds")
    except OverflowError:
        return
    sign, minutes_off = "-" if offset_minutes < 0 else "+", abs(offset_minutes)
    assert parse_moment(f"{text}{sign}{minutes_off // 60:02}:{minutes_off % 60:02}", field="at") == at_ms
