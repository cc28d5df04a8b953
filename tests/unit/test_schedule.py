"""When tasks are due, over every oddity of clocks; what users may type; how it reads."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from ota_hook.errors import InputError
from ota_hook.model import Interval, Manual, Once, Repeat, Schedule, Window
from ota_hook.rollout.schedule import (
    INTERVAL_MAX_S,
    describe,
    is_open,
    next_due,
    next_opening,
    parse_cron,
    parse_days,
    parse_interval,
    parse_moment,
    parse_repeat,
    parse_times,
    parse_window,
    parse_zone,
)

ALL_DAYS = tuple(range(7))


def ms(text: str) -> int:
    """A moment that is written with its offset."""
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo is not None
    return round(moment.timestamp() * 1000)


def shown(at_ms: int | None, zone: str) -> str:
    assert at_ms is not None
    return datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone)).isoformat(timespec="minutes")


def dues(schedule: Repeat, after: str, count: int) -> list[str]:
    found: list[str] = []
    at_ms = ms(after)
    for _ in range(count):
        due = next_due(schedule, at_ms)
        found.append(shown(due, schedule.zone))
        assert due is not None
        at_ms = due
    return found


def daily(zone: str, *times: str) -> Repeat:
    return parse_repeat(zone=zone, days=["daily"], times=times)


def cron(zone: str, line: str) -> Repeat:
    return parse_repeat(zone=zone, cron=line)


# ---- the simple kinds


def test_a_manual_schedule_is_never_due() -> None:
    assert next_due(Manual(), 0) is None


def test_once_is_due_once() -> None:
    assert next_due(Once(1000), 999) == 1000
    assert next_due(Once(1000), 1000) is None


@pytest.mark.parametrize(
    ("at_ms", "following"),
    [
        (0, 5_000),
        (4_999, 5_000),
        (5_000, 65_000),
        (64_999, 65_000),
        (65_000, 125_000),
        (5_000 + 60_000 * 10**9, 65_000 + 60_000 * 10**9),
    ],
)
def test_an_interval_counts_from_its_moment(at_ms: int, following: int) -> None:
    every_minute = Interval(60, 5_000)
    assert next_due(every_minute, at_ms) == following


def test_an_interval_keeps_its_pace_when_clocks_change() -> None:
    every_day = Interval(86_400, ms("2026-03-28T12:00+01:00"))
    assert shown(next_due(every_day, ms("2026-03-28T12:00+01:00")), "Europe/Berlin") == "2026-03-29T13:00+02:00"


# ---- days and times


def test_only_the_days_and_times_that_were_named_are_due() -> None:
    schedule = parse_repeat(zone="Asia/Shanghai", days=["mon", "thu"], times=["02:30", "14:00"])
    assert dues(schedule, "2026-05-04T02:30+08:00", 4) == [
        "2026-05-04T14:00+08:00",
        "2026-05-07T02:30+08:00",
        "2026-05-07T14:00+08:00",
        "2026-05-11T02:30+08:00",
    ]


def test_a_day_is_the_zones_own() -> None:
    schedule = parse_repeat(zone="Asia/Shanghai", days=["mon"], times=["00:10"])
    assert next_due(schedule, ms("2026-05-01T00:00+00:00")) == ms("2026-05-03T16:10+00:00")


def test_a_moment_that_is_due_is_not_the_next() -> None:
    schedule = daily("Asia/Shanghai", "02:30")
    due = ms("2026-05-04T02:30+08:00")
    assert next_due(schedule, due - 1) == due
    assert next_due(schedule, due) == due + 86_400_000


def test_one_time_a_week_is_a_week_away_when_it_is_over() -> None:
    schedule = parse_repeat(zone="UTC", days=["wed"], times=["12:00"])
    assert next_due(schedule, ms("2026-05-06T12:00+00:00")) == ms("2026-05-13T12:00+00:00")


def test_the_order_of_times_does_not_matter() -> None:
    schedule = Repeat("UTC", ALL_DAYS, (600, 60))
    assert next_due(schedule, ms("2026-05-06T00:00+00:00")) == ms("2026-05-06T01:00+00:00")


@pytest.mark.parametrize("schedule", [Repeat("UTC"), Repeat("UTC", ALL_DAYS), Repeat("UTC", (), (60,))])
def test_without_a_day_or_a_time_nothing_is_due(schedule: Repeat) -> None:
    assert next_due(schedule, 0) is None


# ---- clocks that change

CHANGES = [
    # Berlin: 2026-03-29 02:00 → 03:00, 2026-10-25 03:00 → 02:00
    ("Europe/Berlin", "02:30", "2026-03-28T12:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
    ("Europe/Berlin", "02:00", "2026-03-28T12:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
    ("Europe/Berlin", "03:00", "2026-03-28T12:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T03:00+02:00"]),
    ("Europe/Berlin", "01:59", "2026-03-28T12:00+01:00", ["2026-03-29T01:59+01:00", "2026-03-30T01:59+02:00"]),
    ("Europe/Berlin", "02:30", "2026-10-24T12:00+02:00", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
    ("Europe/Berlin", "02:00", "2026-10-24T12:00+02:00", ["2026-10-25T02:00+02:00", "2026-10-26T02:00+01:00"]),
    ("Europe/Berlin", "03:00", "2026-10-24T12:00+02:00", ["2026-10-25T03:00+01:00", "2026-10-26T03:00+01:00"]),
    # New York: 2026-03-08 02:00 → 03:00, 2026-11-01 02:00 → 01:00
    ("America/New_York", "02:15", "2026-03-07T12:00-05:00", ["2026-03-08T03:00-04:00", "2026-03-09T02:15-04:00"]),
    ("America/New_York", "01:15", "2026-10-31T12:00-04:00", ["2026-11-01T01:15-04:00", "2026-11-02T01:15-05:00"]),
    # Shanghai has no change now, and had one: 1991-04-14 02:00 → 03:00
    ("Asia/Shanghai", "02:30", "2026-03-28T12:00+08:00", ["2026-03-29T02:30+08:00", "2026-03-30T02:30+08:00"]),
    ("Asia/Shanghai", "02:30", "1991-04-13T12:00+08:00", ["1991-04-14T03:00+09:00", "1991-04-15T02:30+09:00"]),
    # Lord Howe changes by half an hour: 2026-10-04 02:00 → 02:30, 2026-04-05 02:00 → 01:30
    ("Australia/Lord_Howe", "02:15", "2026-10-03T12:00+10:30", ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
    ("Australia/Lord_Howe", "01:45", "2026-04-04T12:00+11:00", ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
    ("Australia/Lord_Howe", "02:00", "2026-04-04T12:00+11:00", ["2026-04-05T02:00+10:30", "2026-04-06T02:00+10:30"]),
    # Apia had no 30 December 2011
    ("Pacific/Apia", "10:00", "2011-12-28T12:00-10:00", ["2011-12-29T10:00-10:00", "2011-12-31T00:00+14:00"]),
    ("Pacific/Apia", "10:00", "2011-12-29T12:00-10:00", ["2011-12-31T00:00+14:00", "2011-12-31T10:00+14:00"]),
    ("Pacific/Apia", "00:00", "2011-12-29T09:00-10:00", ["2011-12-31T00:00+14:00", "2012-01-01T00:00+14:00"]),
    # a gap and an overlap at midnight
    ("America/Sao_Paulo", "00:00", "2018-11-03T12:00-03:00", ["2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"]),
    ("America/St_Johns", "00:00", "2010-11-06T12:00-02:30", ["2010-11-07T00:00-02:30", "2010-11-08T00:00-03:30"]),
    # zones off by half and quarter hours
    ("Asia/Kolkata", "02:30", "2026-03-28T12:00+05:30", ["2026-03-29T02:30+05:30"]),
    ("Asia/Kathmandu", "00:05", "2026-03-28T12:00+05:45", ["2026-03-29T00:05+05:45"]),
    # beyond the years that zones list one by one; 2100 is no leap year
    ("Europe/Berlin", "02:30", "2100-03-27T12:00+01:00", ["2100-03-28T03:00+02:00", "2100-03-29T02:30+02:00"]),
    ("Europe/Berlin", "02:30", "2100-10-30T12:00+02:00", ["2100-10-31T02:30+02:00", "2100-11-01T02:30+01:00"]),
    ("America/New_York", "12:00", "2100-02-28T11:00-05:00", ["2100-02-28T12:00-05:00", "2100-03-01T12:00-05:00"]),
]  # fmt: skip


@pytest.mark.parametrize("with_cron", [False, True], ids=["times", "cron"])
@pytest.mark.parametrize(("zone", "at", "after", "expected"), CHANGES)
def test_each_wall_time_comes_once_and_from_a_gap_at_its_end(
    *, zone: str, at: str, after: str, expected: list[str], with_cron: bool
) -> None:
    schedule = cron(zone, f"{at[3:]} {at[:2]} * * *") if with_cron else daily(zone, at)
    assert dues(schedule, after, len(expected)) == expected


def test_what_lies_in_one_gap_comes_once() -> None:
    assert dues(daily("Europe/Berlin", "02:00", "02:15", "02:59", "03:00"), "2026-03-29T01:00+01:00", 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:00+02:00",
    ]


def test_the_second_pass_of_an_overlap_brings_nothing() -> None:
    expected = ["2026-10-25T02:40+02:00", "2026-10-25T03:00+01:00"]
    every_20_minutes = cron("Europe/Berlin", "*/20 * * * *")
    assert dues(every_20_minutes, "2026-10-25T02:20+02:00", 2) == expected
    for within in ("2026-10-25T02:00+01:00", "2026-10-25T02:40+01:00", "2026-10-25T02:59:59.999+01:00"):
        assert next_due(every_20_minutes, ms(within)) == ms(expected[1])


def test_a_weekly_time_that_was_reached_before_clocks_went_back_over_midnight_is_a_week_away() -> None:
    # St. John's, 2010: at 00:01 on Sunday it became 23:01 on Saturday again.
    sundays = parse_repeat(zone="America/St_Johns", days=["sun"], times=["00:00"])
    again_saturday = ms("2010-11-06T23:30-03:30")
    assert next_due(sundays, again_saturday) == ms("2010-11-14T00:00-03:30")


def test_a_day_that_does_not_exist_leaves_its_weekday_to_the_next_moment() -> None:
    fridays = parse_repeat(zone="Pacific/Apia", days=["fri"], times=["08:00", "20:00"])
    assert dues(fridays, "2011-12-29T12:00-10:00", 2) == ["2011-12-31T00:00+14:00", "2012-01-06T08:00+14:00"]


# ---- cron lines


@pytest.mark.parametrize(
    ("line", "after", "expected"),
    [
        ("0 0 29 2 *", "2096-03-01T00:00+00:00", "2104-02-29T00:00+00:00"),
        ("0 0 29 2 *", "2026-01-01T00:00+00:00", "2028-02-29T00:00+00:00"),
        ("0 0 31 * *", "2026-04-01T00:00+00:00", "2026-05-31T00:00+00:00"),
        ("0 0 L * *", "2100-02-01T00:00+00:00", "2100-02-28T00:00+00:00"),
        ("0 4 * * mon#1", "2026-05-05T00:00+00:00", "2026-06-01T04:00+00:00"),
        ("30 2 13 * fri", "2026-05-02T00:00+00:00", "2026-05-08T02:30+00:00"),
        ("0 12 * * 7", "2026-05-02T00:00+00:00", "2026-05-03T12:00+00:00"),
        ("* * * * *", "2026-05-02T00:00:00.001+00:00", "2026-05-02T00:01+00:00"),
        ("* * * * *", "2026-05-01T23:59:59.999+00:00", "2026-05-02T00:00+00:00"),
    ],
)
def test_a_cron_line_is_due_when_cron_would_start_it(line: str, after: str, expected: str) -> None:
    schedule = cron("UTC", line)
    assert next_due(schedule, ms(after)) == ms(expected)


@pytest.mark.parametrize("line", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 */8 2 mon#5", "0 0 */31 * mon#2"])
def test_a_cron_line_that_never_comes_is_refused(line: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_cron(line)
    assert refused.value.field == "cron"


@pytest.mark.parametrize(
    "line",
    ["", "@daily", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8",
     "*/0 * * * *", "5-1 * * * *", "a * * * *", "* * * * * ; reboot", "9" * 5000 + " * * * *"],
)  # fmt: skip
def test_what_is_no_cron_line_is_refused_with_an_example(line: str) -> None:
    with pytest.raises(InputError, match=r"30 2 \* \* 1-5") as refused:
        parse_cron(line)
    assert refused.value.field == "cron"
    assert len(str(refused.value)) < 300


def test_a_cron_line_is_kept_with_single_spaces_and_in_capitals() -> None:
    assert parse_cron("  30\t2 * *  mon-fri ") == "30 2 * * MON-FRI"


# ---- windows


def opens(window: Window, after: str) -> str:
    return shown(next_opening(window, ms(after)), window.zone)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-05-08T23:59:59.999+02:00", False),  # a Friday
        ("2026-05-09T21:59:59.999+02:00", False),
        ("2026-05-09T22:00+02:00", True),
        ("2026-05-09T23:59+02:00", True),
        ("2026-05-10T00:00+02:00", True),
        ("2026-05-10T03:59:59.999+02:00", True),
        ("2026-05-10T04:00+02:00", False),
        ("2026-05-10T23:00+02:00", False),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_starts(*, at: str, expected: bool) -> None:
    window = parse_window(zone="Europe/Berlin", days=["sat"], start="22:00", end="04:00")
    assert is_open(window, ms(at)) is expected


def test_a_window_of_one_start_and_end_is_a_whole_day() -> None:
    window = parse_window(zone="Europe/Berlin", days=["sat"], start="06:00", end="06:00")
    assert not is_open(window, ms("2026-05-09T05:59:59+02:00"))
    assert is_open(window, ms("2026-05-09T06:00+02:00"))
    assert is_open(window, ms("2026-05-10T05:59:59+02:00"))
    assert not is_open(window, ms("2026-05-10T06:00+02:00"))


def test_the_next_opening_is_later_than_the_moment_even_while_it_is_open() -> None:
    window = parse_window(zone="Asia/Shanghai", days=["weekdays"], start="01:00", end="03:00")
    assert opens(window, "2026-05-07T00:59:59+08:00") == "2026-05-07T01:00+08:00"
    assert opens(window, "2026-05-07T01:00+08:00") == "2026-05-08T01:00+08:00"
    assert opens(window, "2026-05-08T02:00+08:00") == "2026-05-11T01:00+08:00"


def test_a_window_holds_both_passes_of_an_overlap_that_lies_in_it() -> None:
    window = parse_window(zone="Europe/Berlin", days=["daily"], start="01:00", end="03:00")
    for at in ("02:30:00+02:00", "02:00:00+01:00", "02:59:59+01:00"):
        assert is_open(window, ms(f"2026-10-25T{at}"))
    assert not is_open(window, ms("2026-10-25T03:00+01:00"))


def test_a_window_within_an_overlap_opens_in_the_first_pass_only() -> None:
    window = parse_window(zone="Europe/Berlin", days=["daily"], start="02:10", end="02:40")
    assert is_open(window, ms("2026-10-25T02:20+02:00"))
    assert not is_open(window, ms("2026-10-25T02:20+01:00"))
    assert opens(window, "2026-10-25T02:20+02:00") == "2026-10-26T02:10+01:00"


def test_a_window_that_starts_in_a_gap_opens_at_its_end() -> None:
    window = parse_window(zone="Europe/Berlin", days=["daily"], start="02:30", end="04:00")
    assert opens(window, "2026-03-28T12:00+01:00") == "2026-03-29T03:00+02:00"
    assert not is_open(window, ms("2026-03-29T01:59:59+01:00"))
    assert is_open(window, ms("2026-03-29T03:00+02:00"))


def test_a_window_within_a_gap_does_not_open_that_day() -> None:
    daily_window = parse_window(zone="Europe/Berlin", days=["daily"], start="02:10", end="02:50")
    assert not is_open(daily_window, ms("2026-03-29T03:00+02:00"))
    assert opens(daily_window, "2026-03-28T12:00+01:00") == "2026-03-30T02:10+02:00"
    sundays = parse_window(zone="Europe/Berlin", days=["sun"], start="02:10", end="02:50")
    assert opens(sundays, "2026-03-28T12:00+01:00") == "2026-04-05T02:10+02:00"
    fridays = parse_window(zone="Pacific/Apia", days=["fri"], start="08:00", end="20:00")
    assert opens(fridays, "2011-12-29T12:00-10:00") == "2012-01-06T08:00+14:00"


def test_a_window_that_began_before_clocks_went_back_over_midnight_stays_open() -> None:
    # St. John's, 2010: at 00:01 on Sunday it became 23:01 on Saturday again.
    sundays = parse_window(zone="America/St_Johns", days=["sun"], start="00:00", end="06:00")
    assert is_open(sundays, ms("2010-11-07T00:00:30-02:30"))
    assert is_open(sundays, ms("2010-11-06T23:30-03:30"))


def test_a_window_without_days_never_opens() -> None:
    window = Window("UTC", (), 0, 60)
    assert not is_open(window, 0)
    with pytest.raises(ValueError, match="no days"):
        next_opening(window, 0)


# ---- what users type


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("asia/shanghai", "Asia/Shanghai"),
        ("Asia/Shanghia", "Asia/Shanghai"),
        ("Shanghai", "Asia/Shanghai"),
        ("berlin", "Europe/Berlin"),
        ("New York", "America/New_York"),
    ],
)
def test_the_nearest_zone_is_suggested(typed: str, suggested: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_zone(typed)
    assert refused.value.mend == f"Did you mean {suggested}?"
    assert refused.value.field == "zone"


@pytest.mark.parametrize(
    "typed",
    ["", "GMT+8", "UTC+8", "utc", "CST", "localtime", "Factory", "../etc/passwd", "/etc/localtime", "\0", "x" * 10_000],
)
def test_what_is_no_zone_is_refused_without_a_guess(typed: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_zone(typed)
    assert "Asia/Shanghai" in refused.value.mend
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("name", ["UTC", "Asia/Shanghai", "America/Argentina/Buenos_Aires", "US/Eastern", "Etc/GMT-8"])
def test_a_zone_of_the_iana_is_taken(name: str) -> None:
    assert parse_zone(name) == name
    assert next_due(daily(name, "00:00"), 0) is not None


def test_days_are_sorted_and_counted_once() -> None:
    assert parse_days(["sun", "Mon", "sun"]) == (0, 6)
    assert parse_days(["weekdays", "wed", "sat"]) == (0, 1, 2, 3, 4, 5)
    assert parse_days(["daily"]) == ALL_DAYS


@pytest.mark.parametrize("names", [[], ["monday"], [""], ["mon", "x"], ["0"]])
def test_what_is_no_day_is_refused_with_the_days(names: list[str]) -> None:
    with pytest.raises(InputError, match="mon, tue, wed, thu, fri, sat, sun, weekdays, daily") as refused:
        parse_days(names)
    assert refused.value.field == "days"


def test_times_are_sorted_and_counted_once() -> None:
    assert parse_times(["23:59", "00:00", "02:30", "00:00"]) == (0, 150, 1439)


@pytest.mark.parametrize(
    "text", ["", "2:30", "02:3", "24:00", "23:60", "02:30:00", "02.30", "０２:30", " 02:30", "02:30\n"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="00:00") as refused:
        parse_times([text])
    assert refused.value.field == "times"


def test_no_time_and_too_many_times_are_refused() -> None:
    with pytest.raises(InputError, match="HH:MM"):
        parse_times([])
    with pytest.raises(InputError, match="cron"):
        parse_times([f"{n // 60:02}:{n % 60:02}" for n in range(49)])


def test_a_cron_line_beside_days_or_times_is_refused() -> None:
    for days, times in ((["mon"], []), ([], ["02:30"])):
        with pytest.raises(InputError, match="or a cron line") as refused:
            parse_repeat(zone="UTC", days=days, times=times, cron="0 0 * * *")
        assert refused.value.field == "cron"


def test_an_interval_has_a_minute_to_a_year() -> None:
    assert parse_interval(every_seconds=60, from_ms=7) == Interval(60, 7)
    assert parse_interval(every_seconds=INTERVAL_MAX_S, from_ms=7) == Interval(INTERVAL_MAX_S, 7)
    for wrong in (-60, 0, 59, INTERVAL_MAX_S + 1, 10**30):
        with pytest.raises(InputError, match="60 to") as refused:
            parse_interval(every_seconds=wrong, from_ms=0)
        assert refused.value.field == "every_seconds"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T08:00:00+08:00", 0),
        ("1970-01-01t00:00:01.5z", 1500),
        ("1970-01-01 00:00:00.123456789Z", 123),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_a_time_of_rfc_3339_is_read(text: str, expected: int) -> None:
    assert parse_moment(text, field="at") == expected


@pytest.mark.parametrize(
    "text",
    ["", "2026-05-04", "2026-05-04T02:30:00", "2026-05-04T02:30Z", "20260504T023000Z", "2026-W19-1T00:00:00Z",
     "2026-02-29T00:00:00Z", "2026-05-04T24:00:01Z", "2026-05-04T23:59:60Z", "2026-05-04T02:30:00+24:00",
     "1969-12-31T23:59:59.999Z", "9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00Z", "２026-05-04T02:30:00Z"],
)  # fmt: skip
def test_what_is_no_time_of_rfc_3339_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="2026-05-04T02:30:00") as refused:
        parse_moment(text, field="at")
    assert refused.value.field == "at"


@pytest.mark.parametrize(
    ("parse", "field"),
    [
        (lambda: parse_window(zone="X", days=["mon"], start="00:00", end="01:00"), "zone"),
        (lambda: parse_window(zone="UTC", days=[], start="00:00", end="01:00"), "days"),
        (lambda: parse_window(zone="UTC", days=["mon"], start="0", end="01:00"), "start"),
        (lambda: parse_window(zone="UTC", days=["mon"], start="00:00", end="1"), "end"),
    ],
)
def test_a_window_is_refused_with_the_field_that_is_wrong(parse: Callable[[], Window], field: str) -> None:
    with pytest.raises(InputError) as refused:
        parse()
    assert refused.value.field == field


# ---- how it reads


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (Manual(), "when somebody asks"),
        (Once(ms("2026-05-04T02:30:00+08:00")), "once, 2026-05-03 18:30 UTC"),
        (Once(ms("2026-05-04T02:30:15+08:00")), "once, 2026-05-03 18:30:15 UTC"),
        (Interval(6 * 3600, ms("2026-05-04T00:00:00+00:00")), "every 6 hours since 2026-05-04 00:00 UTC"),
        (Interval(86_400, 0), "every 24 hours since 1970-01-01 00:00 UTC"),
        (Interval(3600, 0), "every hour since 1970-01-01 00:00 UTC"),
        (Interval(5400, 0), "every 90 minutes since 1970-01-01 00:00 UTC"),
        (Interval(61, 0), "every 61 seconds since 1970-01-01 00:00 UTC"),
        (
            parse_repeat(zone="Asia/Shanghai", days=["mon", "thu"], times=["02:30"]),
            "Mondays and Thursdays at 02:30, Asia/Shanghai",
        ),
        (
            parse_repeat(zone="UTC", days=["fri", "sat", "sun"], times=["02:30", "12:00", "22:05"]),
            "Fridays, Saturdays and Sundays at 02:30, 12:00 and 22:05, UTC",
        ),
        (daily("UTC", "00:00"), "every day at 00:00, UTC"),
        (parse_repeat(zone="UTC", days=["weekdays"], times=["09:00"]), "weekdays at 09:00, UTC"),
        (cron("Asia/Shanghai", "30 2 * * mon-fri"), "at 02:30 on Monday through Friday, Asia/Shanghai"),
        (cron("UTC", "*/5 * * * *"), "every fifth minute of every hour, UTC"),
    ],
)
def test_a_schedule_reads_as_one_line(schedule: Schedule, line: str) -> None:
    assert describe(schedule) == line
