"""When a task is due and a maintenance window is open, what users may type for both, and how it reads.

Pure: what time it is comes in. Moments are epoch milliseconds. Knows nothing of tasks, runs or who waits.

A wall time comes when the clocks of its zone first show it or a later one. So what lies in a gap comes at the moment
after the gap, together; and in an overlap the second pass brings nothing.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from importlib import resources
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ota_hook.errors import InputError
from ota_hook.model import Interval, Manual, Once, Repeat, Schedule, Window

INTERVAL_MIN_S: Final = 60
INTERVAL_MAX_S: Final = 366 * 86_400
TIMES_MAX: Final = 48
CRON_MAX_CHARS: Final = 256

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_LAST_MS: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MS
_DAY: Final = timedelta(days=1)

_WEEK: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK_SPELLED: Final = ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays")
_EVERY_DAY: Final = tuple(range(7))
_WORKDAYS: Final = tuple(range(5))
_DAYS: Final = {name: (day,) for day, name in enumerate(_WEEK)} | {"weekdays": _WORKDAYS, "daily": _EVERY_DAY}
_UNITS: Final = ((3600, "hour"), (60, "minute"), (1, "second"))
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_SEARCH_FROM: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - a wall time
"""CronSim gives up after 50 years; those from here have every kind of year."""


# ---- when


def next_due(schedule: Schedule, after_ms: int) -> int | None:
    """The first due moment later than `after_ms`; None where there is none."""
    match schedule:
        case Manual():
            return None
        case Once(at_ms):
            return at_ms if at_ms > after_ms else None
        case Interval(every_s, from_ms):
            step_ms = every_s * 1000
            return from_ms + max(0, (after_ms - from_ms) // step_ms + 1) * step_ms
        case Repeat():
            zone = ZoneInfo(schedule.zone)
            dues = (_reached_ms(wall, zone) for wall in _walls(schedule, _wall(after_ms, zone)))
            return next((due for due in dues if due > after_ms), None)


def is_open(window: Window, at_ms: int) -> bool:
    """Whether the window is open at that moment: from its start, without its end.

    One that begins and ends in the same gap does not open that day.
    """
    zone = ZoneInfo(window.zone)
    today = _wall(at_ms, zone).date()
    over_midnight = _DAY if window.end <= window.start else timedelta()
    # Yesterday's may last over midnight; tomorrow's has begun already where clocks went back from past midnight.
    return any(
        _reached_ms(_at(day, window.start), zone) <= at_ms < _reached_ms(_at(day + over_midnight, window.end), zone)
        for day in (today - _DAY, today, today + _DAY)
        if day.weekday() in window.days
    )


def opening_text(window: Window, after_ms: int) -> str:
    """`2026-05-04 02:00 Asia/Shanghai`: when it opens next, as the clocks there show it."""
    opens = datetime.fromtimestamp(next_opening(window, after_ms) / 1000, ZoneInfo(window.zone))
    return f"{opens:%Y-%m-%d %H:%M} {window.zone}"


def next_opening(window: Window, after_ms: int) -> int:
    """The first moment later than `after_ms` at which the window opens."""
    starts = Repeat(window.zone, window.days, (window.start,))
    opens_ms = next_due(starts, after_ms)
    while opens_ms is not None and not is_open(window, opens_ms):
        opens_ms = next_due(starts, opens_ms)
    if opens_ms is None:
        raise ValueError(f"{window} has no days")
    return opens_ms


def _wall(at_ms: int, zone: ZoneInfo) -> datetime:
    """What the zone's clocks show."""
    return (_EPOCH + at_ms * _MS).astimezone(zone).replace(tzinfo=None)


def _reached_ms(wall: datetime, zone: ZoneInfo) -> int:
    """The first moment at which the zone's clocks show `wall` or a later time."""
    moment = (wall.replace(tzinfo=zone) - _EPOCH) // _MS
    if _wall(moment, zone) == wall:
        return moment
    # In a gap: reckoned with the offset before it, the moment lies behind the gap; with the one behind, before it.
    before = (wall.replace(tzinfo=zone, fold=1) - _EPOCH) // _MS
    return before + bisect_left(range(before, moment), wall, key=lambda at_ms: _wall(at_ms, zone))


def _walls(repeat: Repeat, wall: datetime) -> Iterator[datetime]:
    """The due wall times after `wall`; some that are not after it may come first."""
    if repeat.cron is not None:
        # Without a zone: with one, an overlap's second pass brings lines such as */20 anew.
        return CronSim(repeat.cron, wall)
    # A week, and a day more for clocks that went back over midnight.
    days = (wall.date() + n * _DAY for n in range(9))
    return (_at(day, minute) for day in days if day.weekday() in repeat.days for minute in sorted(repeat.times))


def _at(day: date, minute: int) -> datetime:
    return datetime.combine(day, time(minute // 60, minute % 60))


# ---- what users type


def parse_repeat(*, zone: str, days: Sequence[str] = (), times: Sequence[str] = (), cron: str | None = None) -> Repeat:
    """`days` and `times`, or a `cron` line, in `zone`. InputError where one is wrong or both are there."""
    if cron is None:
        return Repeat(parse_zone(zone), parse_days(days), parse_times(times))
    if days or times:
        raise InputError(
            "A cron line says days and times itself.", mend="Give days and times, or a cron line.", field="cron"
        )
    return Repeat(parse_zone(zone), cron=parse_cron(cron))


def parse_interval(*, every_seconds: int, from_ms: int) -> Interval:
    """From a minute to a year. InputError where it is shorter or longer."""
    if not INTERVAL_MIN_S <= every_seconds <= INTERVAL_MAX_S:
        raise InputError(
            f"An interval has {INTERVAL_MIN_S} to {INTERVAL_MAX_S} seconds.",
            mend="Take a longer one." if every_seconds < INTERVAL_MIN_S else "Take a shorter one.",
            field="every_seconds",
        )
    return Interval(every_seconds, from_ms)


def parse_window(*, zone: str, days: Sequence[str], start: str, end: str) -> Window:
    """`start` and `end` as HH:MM; the same twice is a whole day."""
    return Window(parse_zone(zone), parse_days(days), parse_time(start, field="start"), parse_time(end, field="end"))


def parse_zone(text: str) -> str:
    """The name of an IANA zone. InputError names the nearest one."""
    if text in _zones():
        return text
    spellings = _spellings()
    nearest = difflib.get_close_matches(text[:64].casefold().replace(" ", "_"), spellings, n=1, cutoff=0.7)
    raise InputError(
        f"{text[:64]!r} is no time zone.",
        mend=f"Did you mean {spellings[nearest[0]]}?"
        if nearest
        else "Give an IANA name, such as Asia/Shanghai or UTC.",
        field="zone",
    )


def parse_days(names: Iterable[str]) -> tuple[int, ...]:
    """`mon` to `sun`, `weekdays`, `daily`: the days, 0 for Monday, in order. InputError where there is none."""
    mend = f"Days are {', '.join(_DAYS)}."
    days: set[int] = set()
    for name in names:
        if name.lower() not in _DAYS:
            raise InputError(f"{name[:64]!r} is no day.", mend=mend, field="days")
        days.update(_DAYS[name.lower()])
    if not days:
        raise InputError("A day is missing.", mend=mend, field="days")
    return tuple(sorted(days))


def parse_times(texts: Iterable[str]) -> tuple[int, ...]:
    """Times as minutes since midnight, in order. InputError where there is none or there are too many."""
    times = tuple(sorted({parse_time(text, field="times") for text in texts}))
    if not times:
        raise InputError("A time is missing.", mend="Give times as HH:MM, such as 02:30.", field="times")
    if len(times) > TIMES_MAX:
        raise InputError(f"There are more than {TIMES_MAX} times.", mend="Give a cron line.", field="times")
    return times


def parse_time(text: str, *, field: str) -> int:
    """`HH:MM` as minutes since midnight."""
    time_of_day = _TIME.fullmatch(text)
    if time_of_day is None:
        mend = "Midnight is 00:00." if text == "24:00" else "Give it as HH:MM, from 00:00 to 23:59."
        raise InputError(f"{text[:64]!r} is no time of day.", mend=mend, field=field)
    return int(time_of_day[1]) * 60 + int(time_of_day[2])


def parse_cron(text: str) -> str:
    """A cron line as cron itself reads it: minute, hour, day of month, month, weekday. Returned with single spaces.

    Also `L` (last day), `LW` (last weekday), `5L` (last Friday) and `1#2` (second Monday). InputError where it is none,
    or never comes (30 February).
    """
    fields = text.upper().split()
    mend = "It has minute, hour, day of month, month and weekday, as in 30 2 * * 1-5."
    if len(fields) != 5 or len(text) > CRON_MAX_CHARS:
        raise InputError(f"{text[:64]!r} is no cron line.", mend=mend, field="cron")
    line = " ".join(fields)
    try:
        comes = next(CronSim(line, _SEARCH_FROM), None)
    except CronSimError as exc:
        raise InputError(f"{text[:64]!r} is no cron line: {str(exc).lower()}.", mend=mend, field="cron") from exc
    if comes is None:
        raise InputError(f"{text[:64]!r} never comes.", mend="Name a day that one of its months has.", field="cron")
    return line


def parse_moment(text: str, *, field: str) -> int:
    """An RFC 3339 time with its offset, from 1970 to 9999; what is finer than milliseconds is cut."""
    mend = "Give it as RFC 3339 with its offset, as in 2026-05-04T02:30:00+08:00."
    try:
        moment = (datetime.fromisoformat(text.upper()) - _EPOCH) // _MS if _RFC3339.fullmatch(text) else None
    except ValueError:
        moment = None
    if moment is None or not 0 <= moment <= _LAST_MS:
        raise InputError(f"{text[:64]!r} is no time.", mend=mend, field=field)
    return moment


@cache
def _zones() -> frozenset[str]:
    """The names that every installation knows. ZoneInfo takes the system's rules where it has them, else tzdata's."""
    names = resources.files("tzdata").joinpath("zones").read_text(encoding="ascii").split()
    return frozenset(names) - {"Factory"}


@cache
def _spellings() -> dict[str, str]:
    """What to suggest, by what may have been typed: a name in any case, or its city."""
    # Not Etc: its signs are the wrong way round, and GMT+8 is not meant to become Etc/GMT+8.
    places = sorted(name for name in _zones() if "/" in name and not name.startswith("Etc/"))
    cities = {name.rpartition("/")[2].casefold(): name for name in places}
    return cities | {name.casefold(): name for name in places}


# ---- how it reads


def describe(schedule: Schedule) -> str:
    """One line for people."""
    match schedule:
        case Manual():
            return "when somebody asks"
        case Once(at_ms):
            return f"once, {_moment(at_ms)}"
        case Interval(every_s, from_ms):
            return f"{_every(every_s)} since {_moment(from_ms)}"
        case Repeat(zone, cron=str(line)):
            said = CronSim(line, _SEARCH_FROM).explain()
            return f"{said[0].lower()}{said[1:]}, {zone}"
        case Repeat(zone, days, times):
            return f"{_days(days)} at {_listed([f'{t // 60:02}:{t % 60:02}' for t in times])}, {zone}"


def _days(days: tuple[int, ...]) -> str:
    if days == _EVERY_DAY:
        return "every day"
    return "weekdays" if days == _WORKDAYS else _listed([_WEEK_SPELLED[day] for day in days])


def _every(seconds: int) -> str:
    unit_s, unit = next(pair for pair in _UNITS if seconds % pair[0] == 0)
    count = seconds // unit_s
    return f"every {unit}" if count == 1 else f"every {count} {unit}s"


def _moment(at_ms: int) -> str:
    moment = (_EPOCH + at_ms * _MS).replace(tzinfo=None)
    return f"{moment.isoformat(' ', 'seconds' if moment.second else 'minutes')} UTC"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
