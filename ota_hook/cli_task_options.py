"""The options of tasks; how targets, spans of time, days and windows are typed. What a name means the API judges."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from ota_hook.cli_session import open_input
from ota_hook.errors import InputError

Document = dict[str, Any]

_WEEK: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN: Final = re.compile(r"([0-9]{1,9})\s*(s|m|h|d)?")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_CLOCKS: Final = re.compile(r"([0-9:]+)-([0-9:]+)")
_FIELD: Final = re.compile(r"`([a-z_.]+)`|\b([a-z]+(?:[_.][a-z]+)+)(?=:)")
"""A field that a fault is about: in back quotes, or before a colon."""
_OPTIONS: Final = {
    "version_attribute": "--attribute",
    "module": "--module",
    "at": "--at",
    "days": "--days",
    "times": "--times",
    "cron": "--cron",
    "zone": "--zone",
    "every_seconds": "--every",
    "rate_per_minute": "--rate",
    "ramp_from_per_minute": "--ramp-from",
    "max_concurrent": "--max-concurrent",
    "jitter_seconds": "--jitter",
    "timeout_seconds": "--timeout",
    "expires_seconds": "--expires",
    "retries": "--retries",
    "backoff_seconds": "--backoff",
    "stop_percent": "--stop-percent",
    "stop_after": "--stop-after",
}
_WINDOW_MEND: Final = "Give it as 'mon-fri 02:00-05:00 Asia/Shanghai'; without days it opens daily."

TypeTarget = Annotated[
    str | None, typer.Option("--type", metavar="KEY", help="For every device of this type.", show_default=False)
]
DeviceTarget = Annotated[
    list[str] | None, typer.Option("--device", metavar="ID", help="For this device; repeat it.", show_default=False)
]
FileTarget = Annotated[
    Path | None,
    typer.Option(
        "--devices",
        metavar="FILE",
        help="For the devices in this file, an identifier a line; - is standard input.",
        show_default=False,
    ),
]
AttributeOption = Annotated[
    str | None,
    typer.Option("--attribute", metavar="TEXT", help="The version attribute [the type's rule].", show_default=False),
]
ModuleOption = Annotated[
    str | None, typer.Option("--module", metavar="TEXT", help="The module [the type's rule].", show_default=False)
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help="Once: 2026-05-04T02:30, in --zone [this machine's], or with +08:00.",
        show_default=False,
    ),
]
DaysOption = Annotated[
    str | None,
    typer.Option("--days", metavar="DAYS", help="Again and again: mon-fri or sat,sun [daily].", show_default=False),
]
TimesOption = Annotated[
    str | None, typer.Option("--times", metavar="TIMES", help="… at 02:30 or 02:30,14:00.", show_default=False)
]
CronOption = Annotated[
    str | None,
    typer.Option("--cron", metavar="LINE", help="… by a cron line, in place of both.", show_default=False),
]
ZoneOption = Annotated[
    str | None,
    typer.Option("--zone", metavar="ZONE", help="The time zone of these, as Asia/Shanghai.", show_default=False),
]
EveryOption = Annotated[
    str | None,
    typer.Option("--every", metavar="TIME", help="Every so often, from now on: 90m, 6h, 7d.", show_default=False),
]
MissedOption = Annotated[
    Literal["run", "skip"] | None,
    typer.Option(
        "--missed", help="A due time while no worker ran: one run on return, or none [run].", show_default=False
    ),
]
RateOption = Annotated[
    int | None,
    typer.Option("--rate", min=0, metavar="NUMBER", help="Commands a minute; 0: unbounded [0].", show_default=False),
]
RampOption = Annotated[
    int | None,
    typer.Option(
        "--ramp-from",
        min=0,
        metavar="NUMBER",
        help="Begin so slowly, and double every minute up to --rate.",
        show_default=False,
    ),
]
ConcurrentOption = Annotated[
    int | None,
    typer.Option(
        "--max-concurrent",
        min=0,
        metavar="NUMBER",
        help="At most so many devices at a time; 0: unbounded [0].",
        show_default=False,
    ),
]
JitterOption = Annotated[
    str | None,
    typer.Option(
        "--jitter",
        metavar="TIME",
        help="Each device waits so long at most, by chance, up to 1h [0s].",
        show_default=False,
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window", metavar="TEXT", help="Send in it alone: 'mon-fri 02:00-05:00 Asia/Shanghai'.", show_default=False
    ),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="TIME", help="So long after its command a device may take [1h].", show_default=False
    ),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="TIME", help="So long a run waits for absent devices [7d].", show_default=False),
]
RetriesOption = Annotated[
    int | None,
    typer.Option("--retries", min=0, help="So often one that failed is sent it again [0].", show_default=False),
]
BackoffOption = Annotated[
    str | None,
    typer.Option("--backoff", metavar="TIME", help="Before a retry; doubles each time [5m].", show_default=False),
]
StopPercentOption = Annotated[
    int | None,
    typer.Option(
        "--stop-percent",
        min=0,
        max=100,
        help="Stop a run when so many per cent failed or timed out; 0: never [50].",
        show_default=False,
    ),
]
StopAfterOption = Annotated[
    int | None,
    typer.Option(
        "--stop-after",
        min=1,
        metavar="NUMBER",
        help="… of at least so many that are finished [20].",
        show_default=False,
    ),
]


@contextmanager
def faults_by_option() -> Iterator[None]:
    """What the API finds wrong is said of the options that were typed, not of its fields."""
    try:
        yield
    except InputError as exc:
        raise InputError(_by_option(exc.detail), mend=_by_option(exc.mend), field=exc.field) from exc


def _by_option(text: str) -> str:
    def option_of(match: re.Match[str]) -> str:
        quoted, path = match[1], match[1] or match[2]
        option = _OPTIONS.get(path.removeprefix("schedule."))
        if option is None:
            return match[0]
        return f"{option}, in seconds," if quoted and path.endswith("_seconds") else option

    return _FIELD.sub(option_of, text)


def read_seconds(text: str, option: str) -> int:
    """`90`, `90s`, `15m`, `6h` or `7d`. InputError names the option."""
    span = _SPAN.fullmatch(text.strip().lower())
    if span is None:
        raise InputError(f"{option} {text!r} is no span of time.", mend="Give it as 90s, 15m, 6h or 7d.")
    return int(span[1]) * _UNITS[span[2] or "s"]


def read_days(text: str) -> list[str]:
    """`mon-fri`, `sat,sun`, `daily`: the days' names; a range may go over the week's end."""
    days: list[str] = []
    for part in text.lower().replace(",", " ").split():
        first, dash, last = part.partition("-")
        if not dash:
            days.append(part)
            continue
        if first not in _WEEK or last not in _WEEK:
            raise InputError(f"{part!r} is no range of days.", mend="Give it as mon-fri.")
        begin, end = _WEEK.index(first), _WEEK.index(last)
        days += [_WEEK[day % 7] for day in range(begin, end + 1 if begin <= end else end + 8)]
    return list(dict.fromkeys(days))


def days_text(days: Sequence[str]) -> str:
    """`mon-fri`, `sat,sun`, and nothing for every day: as it may be typed."""
    if len(days) == len(_WEEK):
        return ""
    return "mon-fri" if tuple(days) == _WEEK[:5] else ",".join(days)


def read_window(text: str) -> dict[str, Any]:
    """`mon-fri 02:00-05:00 Asia/Shanghai` as the API has it."""
    words = text.split()
    place = next((n for n, word in enumerate(words) if _CLOCKS.fullmatch(word)), None)
    if place is None or len(words) != place + 2:
        missing = "its time zone" if place is not None and len(words) == place + 1 else ""
        said = f"--window {text!r} lacks {missing}." if missing else f"--window {text!r} is no window."
        raise InputError(said, mend=_WINDOW_MEND)
    start, _, end = words[place].partition("-")
    days = read_days(" ".join(words[:place])) or ["daily"]
    return {"zone": words[place + 1], "days": days, "start": start, "end": end}


def read_target(device_type: str | None, devices: list[str] | None, file: Path | None) -> Document | None:
    """Whom a task is for; None where nothing is said."""
    if sum(map(bool, (device_type, devices, file))) > 1:
        raise InputError("--type, --device and --devices exclude each other.")
    if file is not None:
        return {"devices": _read_identifiers(file)}
    if devices:
        return {"devices": devices}
    return {"device_type": device_type} if device_type else None


def _read_identifiers(file: Path) -> list[str]:
    chunks, _ = open_input(file)
    try:
        lines = b"".join(chunks).decode().split("\n")
    except UnicodeDecodeError as exc:
        raise InputError(f"The file {file} is no UTF-8 text.") from exc
    return [identifier for line in lines if (identifier := line.strip())]


def read_schedule(
    *,
    at: str | None,
    days: str | None,
    times: str | None,
    cron: str | None,
    zone: str | None,
    every: str | None,
    manual: bool = False,
) -> Document | None:
    """As much as is given; None where nothing is."""
    repeats = bool(days or times or cron)
    if sum((bool(at), repeats, bool(every), manual)) > 1:
        raise InputError("A task has one schedule.", mend="Give --at, or --days and --times, or --cron, or --every.")
    if manual:
        return {"kind": "manual"}
    if at:
        return {"kind": "once", "at": _read_moment(at, zone)}
    if every:
        return {"kind": "interval", "every_seconds": read_seconds(every, "--every")}
    given = {
        "days": read_days(days) if days else None,
        "times": times.replace(",", " ").split() if times else None,
        "cron": cron,
        "zone": zone,
    }
    schedule = {name: value for name, value in given.items() if value}
    return {"kind": "repeat", **schedule} if repeats else (schedule or None)


def _read_moment(text: str, zone: str | None) -> str:
    """RFC 3339. A wall time is that of the zone, or of this machine."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(zone)) if zone else moment.astimezone()
    except ZoneInfoNotFoundError as exc:
        raise InputError(f"--zone {zone!r} is no time zone.", mend="Give one as Asia/Shanghai or UTC.") from exc
    except (ValueError, OverflowError) as exc:
        raise InputError(f"--at {text!r} is no time.", mend="Give it as 2026-05-04T02:30.") from exc
    return moment.isoformat(timespec="seconds")


def read_settings(
    *,
    attribute: str | None,
    module: str | None,
    schedule: Document | None,
    missed: str | None,
    rate: int | None,
    ramp_from: int | None,
    max_concurrent: int | None,
    jitter: str | None,
    window: str | None,
    timeout: str | None,
    expires: str | None,
    retries: int | None,
    backoff: str | None,
    stop_percent: int | None,
    stop_after: int | None,
) -> Document:
    """The API's fields of what is given. 0 and "" become null: not set."""
    given: Document = {
        "version_attribute": attribute,
        "module": module,
        "schedule": schedule,
        "missed": missed,
        "rate_per_minute": rate,
        "ramp_from_per_minute": ramp_from,
        "max_concurrent": max_concurrent,
        "jitter_seconds": jitter and read_seconds(jitter, "--jitter"),
        "window": window and read_window(window),
        "timeout_seconds": timeout and read_seconds(timeout, "--timeout"),
        "expires_seconds": expires and read_seconds(expires, "--expires"),
        "retries": retries,
        "backoff_seconds": backoff and read_seconds(backoff, "--backoff"),
        "stop_percent": stop_percent,
        "stop_after": stop_after,
    }
    cleared = {"version_attribute", "module", "window", "rate_per_minute", "ramp_from_per_minute", "max_concurrent"}
    cleared.add("stop_percent")
    return {
        field: (value or None) if field in cleared else value for field, value in given.items() if value is not None
    }
