"""`ota-hook firmware` and `ota-hook check`: uploads, who may get them, and why a device would or would not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer

from ota_hook.cli_lines import TEXT, Lines, ListFormatOption, as_ndjson, open_lines, read_identifiers, split_lines
from ota_hook.cli_options import ULID_CHARS, LimitOption, TypeFilter
from ota_hook.cli_session import Session, catalogue_command, require_type
from ota_hook.errors import InputError, OtaHookError
from ota_hook.terminal import Column, count_text, local_time, size_text, yes_no

Document = dict[str, Any]

_INLINE_DEVICES_MAX: Final = 10_000
"""The API takes so many devices with the upload itself; a longer list follows it as a stream."""
_COUNTED_AT_ONCE: Final = 1000
_SOURCES_SHOWN: Final = 3
_SELECTORS: Final = ("devices", "tags", "percentage")
_REASONS: Final = {
    "unknown_gateway": "its gateway is not registered, so nobody speaks for it (`ota-hook devices put`)",
    "no_rule": "no enabled rule of its type asks for this module (`ota-hook rules add`)",
    "no_firmware": "its type has no firmware for this module",
    "no_version": "it has not reported this attribute yet, so nothing can be newer",
    "none_newer": "none of the firmware is for it as it is now",
    "attempts_exhausted": "it tried what is newer too often in vain (`ota-hook attempts list --device ID`)",
}

firmware = typer.Typer(help="Firmware: upload, say who may get it, switch on and off.", no_args_is_help=True)

FirmwareArgument = Annotated[str, typer.Argument(metavar="ID", help="The firmware's id.", show_default=False)]
TagOption = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="For devices with this tag; repeat it for others.", show_default=False),
]
PercentageOption = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="For so many per cent of the devices, 0 to 100.", show_default=False),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

_COLUMNS: Final = (
    Column("id", ULID_CHARS),
    Column("type"),
    Column("module"),
    Column("version"),
    Column("name"),
    Column("for"),
    Column("enabled"),
    Column("size", right=True),
    Column("uploaded"),
)


@firmware.command("list")
@catalogue_command
def list_firmware(session: Session, *, device_type: TypeFilter = None, limit: LimitOption = None) -> None:
    """List the firmware, oldest first, and whom each is for.

    \b
    Example: ota-hook firmware list --type tracker
    """
    require_type(session, device_type)
    entries = session.api.each(session.path("firmware"), device_type=device_type)
    session.show_list(entries, _COLUMNS, _row, limit=limit)


def _row(entry: Document) -> tuple[str, ...]:
    return (
        entry["id"],
        entry["device_type"],
        entry["module"],
        entry["version"],
        entry["name"],
        _audience(entry),
        yes_no(entry["enabled"]),
        size_text(entry["size"]),
        local_time(entry["created_at"]),
    )


def _audience(entry: Document) -> str:
    """Whom a firmware is for: `everyone`, `nobody`, `12 devices or 5 % of those tagged a`, `everyone on 1.0, 1.1`."""
    count, sources = entry["devices_count"], entry["source_versions"]
    who = " or ".join(filter(None, (count_text(count, "device") if count else "", _gray_audience(entry)))) or "nobody"
    if (count, entry["tags"], entry["percentage"]) == (None, None, None):
        who = "everyone"
    if not sources:
        return who
    return f"{who} on {', '.join(sources[:_SOURCES_SHOWN])}{', …' if len(sources) > _SOURCES_SHOWN else ''}"


def _gray_audience(entry: Document) -> str:
    """Whom tags and percentage select, empty where that is nobody, or neither is set."""
    tags, percentage = entry["tags"], entry["percentage"]
    if (tags is None and percentage is None) or tags == [] or percentage == 0:
        return ""
    of_whom = "everyone" if tags is None else f"those tagged {' or '.join(tags)}"
    return of_whom if percentage is None else f"{percentage:g} % of {of_whom}"


@firmware.command("show")
@catalogue_command
def show_firmware(session: Session, *, firmware_id: FirmwareArgument) -> None:
    """Show one firmware: its digests, its address, and how often each outcome happened.

    \b
    Example: ota-hook firmware show 01JZ0000000000000000000000
    """
    _show(session, session.api.get(session.path("firmware", firmware_id)))


def _show(session: Session, entry: Document) -> None:
    facts = [
        ("id", entry["id"]),
        ("name", entry["name"]),
        ("type", entry["device_type"]),
        ("module", entry["module"]),
        ("version", entry["version"]),
        ("for", _audience(entry) + (", downgrade allowed" if entry["allow_downgrade"] else "")),
        ("enabled", yes_no(entry["enabled"])),
        ("file", f"{entry['filename']}, {entry['size']:,} bytes{_in_units(entry['size'])}"),
        ("md5", entry["md5"]),
        ("sha256", entry["sha256"]),
        ("url", entry["url"] or "none: it wants HTTPS, and OTA_HOOK_PUBLIC_URL_HTTPS is not set"),
        ("uploaded", local_time(entry["created_at"])),
    ]
    if entry.get("stopped"):
        facts.append(("stopped itself", f"{local_time(entry['stopped']['at'])}: {entry['stopped']['reason']}"))
    facts += [(outcome, f"{count:,}") for outcome, count in entry.get("counters", {}).items()]
    session.show(entry, facts)


def _in_units(size_bytes: int) -> str:
    text = size_text(size_bytes)
    return "" if text.endswith(" B") else f" ({text})"


# ---- upload


@firmware.command("upload")
@catalogue_command
def upload_firmware(
    session: Session,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The package.", show_default=False)],
    device_type: Annotated[str, typer.Option("--type", metavar="KEY", help="Its device type.", show_default=False)],
    version: Annotated[str, typer.Option(metavar="TEXT", help="Its version.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What people call it [the file's name].", show_default=False)
    ] = None,
    module: Annotated[str, typer.Option(metavar="TEXT", help="The part of the device that it is for.")] = "main",
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Only for this device; repeat it.", show_default=False),
    ] = None,
    devices_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only for these: an identifier a line, NDJSON or CSV. An empty list: nobody.",
            show_default=False,
        ),
    ] = None,
    list_format: ListFormatOption = None,
    source_version: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Only for who runs exactly this version; repeat it.", show_default=False),
    ] = None,
    tag: TagOption = None,
    percentage: PercentageOption = None,
    https: Annotated[bool, typer.Option("--https", help="Devices download it over HTTPS.")] = False,
    disabled: Annotated[bool, typer.Option("--disabled", help="Keep it, but offer it to nobody yet.")] = False,
    allow_downgrade: Annotated[
        bool, typer.Option("--allow-downgrade", help="Also for newer versions; needs --source-version.")
    ] = False,
) -> None:
    """Upload a firmware. Without --device, --devices-file, --tag and --percentage it is for every device, at once.

    With several of them it is for the devices that are named, and besides for the percentage of those that have a tag.

    It is digested, written to disk and read back before it exists; a refused upload leaves nothing. Where the
    connection breaks it is sent again, and it is there once. A list as NDJSON or CSV, or of more than ten thousand
    devices, follows it: until that is taken the firmware is for nobody else.

    \b
    Example: ota-hook firmware upload app-1.1.0.bin --type tracker --version 1.1.0 --device DU_7VFGiJjjv8QoS
    """
    first, rest = _listed_devices(device, devices_file, list_format)
    fields: Document = {
        "device_type": device_type,
        "version": version,
        "name": name,
        "module": module,
        "devices": first,
        "tags": tag or None,
        "percentage": percentage,
        "source_versions": source_version or None,
        "use_https": https,
        "enabled": not disabled,
        "allow_downgrade": allow_downgrade,
    }
    entry = _upload(session, file, fields)
    if entry["notice"]:
        session.terminal.note(entry["notice"])
    if rest is not None:
        entry = _add_list(session, entry, rest)
    _show(session, entry)


def _listed_devices(
    device: list[str] | None, file: Path | None, list_format: str | None
) -> tuple[list[str] | None, Lines | None]:
    """The devices to send with the upload, and the list to add to them: what is no short text goes as it is."""
    if file is None:
        _refuse_format(list_format, "--devices-file")
        return device or None, None
    lines = open_lines(file, list_format, default=TEXT)
    if lines.media_type != TEXT:
        return device or [], lines
    identifiers = itertools.chain(device or (), read_identifiers(lines.chunks))
    first = list(itertools.islice(identifiers, _INLINE_DEVICES_MAX + 1))
    if len(first) <= _INLINE_DEVICES_MAX:
        return first, None
    return [], as_ndjson(itertools.chain(first, identifiers))  # for nobody until its list is there


def _refuse_format(list_format: str | None, options: str) -> None:
    if list_format is not None:
        raise InputError("--format says how a file of devices is written, and there is none.", mend=f"Give {options}.")


def _upload(session: Session, file: Path, fields: Document) -> Document:
    if file.is_dir():
        raise InputError(f"{str(file)!r} is a folder.", mend="Name the package in it.")
    if not file.is_file():
        raise InputError(f"There is no file {str(file)!r}.")
    try:
        package = file.open("rb")
        size_bytes = file.stat().st_size
    except OSError as exc:
        raise InputError(f"The file {str(file)!r} can't be read: {exc.strerror}.") from exc
    with package, session.terminal.progress(f"sending {file.name}", size_bytes) as progress:
        return session.api.upload_firmware(package, filename=file.name, fields=fields, progress=progress)


def _add_list(session: Session, entry: Document, lines: Lines) -> Document:
    try:
        answer = _send_list(session, "POST", entry["id"], lines)
    except OtaHookError as exc:
        raise type(exc)(
            f"The firmware {entry['id']} is uploaded, for {_audience(entry)}, but its list of devices was not taken:"
            f" {exc.detail}",
            mend=f"Mend the list and send it: ota-hook firmware devices {entry['id']} --add FILE.",
        ) from exc
    if answer["unknown"]:
        session.terminal.note(f"Not registered: {answer['unknown']:,} of those in the list.")
    return session.api.get(session.path("firmware", entry["id"]))


# ---- who may get it


@firmware.command("enable")
@catalogue_command
def enable_firmware(session: Session, *, firmware_id: FirmwareArgument) -> None:
    """Offer a firmware to the devices that it is for, within a second on every hook.

    \b
    Example: ota-hook firmware enable 01JZ0000000000000000000000
    """
    _switch(session, firmware_id, enabled=True)


@firmware.command("disable")
@catalogue_command
def disable_firmware(session: Session, *, firmware_id: FirmwareArgument) -> None:
    """Stop offering a firmware, within a second on every hook. Nothing is lost; `enable` brings it back.

    \b
    Example: ota-hook firmware disable 01JZ0000000000000000000000
    """
    _switch(session, firmware_id, enabled=False)


def _switch(session: Session, firmware_id: str, *, enabled: bool) -> None:
    entry = session.api.patch(session.path("firmware", firmware_id), {"enabled": enabled})
    state = f"enabled, for {_audience(entry)}" if enabled else "disabled"
    session.answer(entry, f"The firmware {_called(entry)} is {state}.")


def _called(entry: Document) -> str:
    return f"{entry['name']!r}, version {entry['version']}, {entry['id']}"


@firmware.command("release")
@catalogue_command
def release_firmware(session: Session, *, firmware_id: FirmwareArgument, yes: YesOption = False) -> None:
    """Give up a firmware's list of devices, tags and percentage: it is for every device of its type from now on.

    Its source versions stay. It asks first and says how many devices that are.

    \b
    Example: ota-hook firmware release 01JZ0000000000000000000000
    """
    path = session.path("firmware", firmware_id)
    entry = session.api.get(path)
    if all(entry[selector] is None for selector in _SELECTORS):
        session.answer(entry, f"The firmware {_called(entry)} is for {_audience(entry)} already.")
        return
    if not yes:
        state = "" if entry["enabled"] else " (It is disabled.)"
        _ask_first(
            session,
            f"Release {_called(entry)}, now for {_audience(entry)},"
            f" to the whole type {entry['device_type']!r} ({_count_of_type(session, entry['device_type'])})?{state}",
        )
    entry = session.api.patch(path, dict.fromkeys(_SELECTORS))
    session.answer(entry, f"The firmware {_called(entry)} is for {_audience(entry)}.")


@firmware.command("select")
@catalogue_command
def select_devices(
    session: Session,
    *,
    firmware_id: FirmwareArgument,
    tag: TagOption = None,
    percentage: PercentageOption = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Whatever tags they have.")] = False,
    no_percentage: Annotated[bool, typer.Option("--no-percentage", help="However many they are.")] = False,
) -> None:
    """Say by tags and percentage which devices a firmware is for. Its list of devices, if it has one, stays.

    The devices within a percentage stay within a greater one: raise it step by step. Both together select the
    percentage of the tagged devices.

    \b
    Example: ota-hook firmware select 01JZ0000000000000000000000 --percentage 10
    """
    if (tag and no_tags) or (percentage is not None and no_percentage):
        raise InputError("An option and its --no- contradict each other.", mend="Give one of them.")
    patch: Document = {}
    if tag or no_tags:
        patch["tags"] = tag or None
    if percentage is not None or no_percentage:
        patch["percentage"] = percentage
    if not patch:
        raise InputError("Nothing is selected.", mend="Give --tag, --percentage, --no-tags or --no-percentage.")
    path = session.path("firmware", firmware_id)
    before, etag = session.api.get_tagged(path)
    if all((before | patch)[selector] is None for selector in _SELECTORS):
        raise InputError(
            "Without tags, percentage and list it would be for every device of its type.",
            mend=f"If that is meant: ota-hook firmware release {firmware_id}",
        )
    # Two that take away one selector each, at the same time, must not release it between them.
    entry = session.api.patch(path, patch, etag=etag)
    session.answer(entry, f"The firmware {_called(entry)} is for {_audience(entry)}.")


def _ask_first(session: Session, question: str) -> None:
    if not session.terminal.confirm(question):
        session.terminal.note("Nothing was changed.")
        session.fail()


def _count_of_type(session: Session, device_type: str) -> str:
    """How many devices a type has, as far as one page tells."""
    page = session.api.get(session.path("devices"), type=device_type, limit=_COUNTED_AT_ONCE)
    more = "" if page["next_cursor"] is None else "more than "
    return more + count_text(len(page["items"]), "device")


@firmware.command("devices")
@catalogue_command
def firmware_devices(
    session: Session,
    *,
    firmware_id: FirmwareArgument,
    replace: Annotated[
        Path | None,
        typer.Option(
            "--set",
            metavar="FILE",
            help="Make it only for these: an identifier a line, NDJSON or CSV; - is standard input. An empty list:"
            " nobody.",
            show_default=False,
        ),
    ] = None,
    add: Annotated[
        Path | None, typer.Option("--add", metavar="FILE", help="Make it for these too.", show_default=False)
    ] = None,
    list_format: ListFormatOption = None,
) -> None:
    """Print the devices that a firmware is for, one a line, or set them. Devices that nobody knows yet are allowed.

    \b
    Example: ota-hook firmware devices 01JZ0000000000000000000000 --set trial.txt
    Example: ota-hook devices export - --tag trial | ota-hook firmware devices ID --add - --format ndjson
    """
    if replace is not None and add is not None:
        raise InputError("--set and --add contradict each other.", mend="Give one of them.")
    file = replace or add
    if file is None:
        _refuse_format(list_format, "--set or --add")
        _print_devices(session, firmware_id)
        return
    lines = open_lines(file, list_format, default=TEXT)
    if lines.media_type == TEXT:
        lines = as_ndjson(read_identifiers(lines.chunks))
    answer = _send_list(session, "PUT" if replace else "POST", firmware_id, lines)
    unknown = f", {answer['unknown']:,} of those sent not registered" if answer["unknown"] else ""
    session.answer(answer, f"The firmware {firmware_id} is for {count_text(answer['count'], 'device')}{unknown}.")


def _print_devices(session: Session, firmware_id: str) -> None:
    path = session.path("firmware", firmware_id)
    entry = session.api.get(path)
    if entry["devices_count"] is None:
        if session.terminal.as_json:
            session.terminal.write_json(None)
        else:
            session.terminal.note(f"The firmware {_called(entry)} is for {_audience(entry)}: it has no list.")
        return
    with session.api.receive_lines(f"{path}/devices") as chunks:
        identifiers = (orjson.loads(line)["identifier"] for _, line in split_lines(chunks))
        if session.terminal.as_json:
            session.terminal.write_json_list(identifiers)
        else:
            with session.terminal.raw_output() as output:
                output.writelines(identifier.encode() + b"\n" for identifier in identifiers)
    if not entry["devices_count"]:
        session.terminal.note(f"The firmware {_called(entry)} is for nobody: its list is empty.")


def _send_list(session: Session, method: str, firmware_id: str, lines: Lines) -> Document:
    path = session.path("firmware", firmware_id)
    return session.api.send_lines(method, f"{path}/devices", lines.chunks, media_type=lines.media_type)


@firmware.command("delete")
@catalogue_command
def delete_firmware(session: Session, *, firmware_id: FirmwareArgument, yes: YesOption = False) -> None:
    """Delete a firmware for good: its package goes, its address answers 410, its open offers are cancelled.

    To stop it for now, `firmware disable` it.

    \b
    Example: ota-hook firmware delete 01JZ0000000000000000000000
    """
    path = session.path("firmware", firmware_id)
    entry = session.api.get(path)
    if not yes:
        _ask_first(session, f"Delete {_called(entry)} of the type {entry['device_type']!r} for good?")
    session.api.delete(path)
    session.answer({"deleted": firmware_id}, f"The firmware {_called(entry)} is deleted.")


# ---- check

_CHECK_COLUMNS: Final = (Column("version"), Column("name"), Column("firmware", ULID_CHARS), Column("why"))


@catalogue_command
def check(
    session: Session,
    *,
    identifier: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's identifier.", show_default=False)],
    module: Annotated[str, typer.Option(metavar="TEXT", help="The part of the device that is asked for.")] = "main",
) -> None:
    """Say which firmware a device would get if it asked now, and why not each of the others. Changes nothing.

    The status is 0 whatever the answer; with --json, `offer` is null where there would be none.

    \b
    Example: ota-hook check DU_7VFGiJjjv8QoS
    """
    answer = session.api.get(session.path("check"), device=identifier, module=module)
    terminal = session.terminal
    if terminal.as_json:
        terminal.write_json(answer)
        return
    if answer["firmware"]:
        terminal.table(_CHECK_COLUMNS, map(_check_row, answer["firmware"]))
        terminal.say("")
    offer = answer["offer"]
    if offer is None:
        terminal.say(
            f"{_asks(answer)} It would get none: {_REASONS.get(answer['reason'], answer['reason'])}.", style="bold"
        )
    else:
        terminal.say(f"{_asks(answer)} It would get {offer['version']} ({offer['name']}).", style="bold green")
        if offer["url"] is not None:
            terminal.say(f"{offer['url']}  {size_text(offer['size'])}  md5 {offer['md5']}")


def _check_row(entry: Document) -> tuple[str, ...]:
    why = "It would be offered." if entry["chosen"] else " ".join(entry["explanations"])
    return entry["version"], entry["name"], entry["id"], why


def _asks(answer: Document) -> str:
    """`d1, of type tracker, runs 1.0.0 (version).`"""
    attribute = answer["version_attribute"]
    if attribute is None:
        return f"{answer['device']}, of type {answer['type']}, can't ask for {answer['module']}."
    runs = f"runs {answer['current_version']}" if answer["current_version"] else "runs an unknown version"
    asked = f"by {answer['event']!r} for {answer['module']}"
    return f"{answer['device']}, of type {answer['type']}, {runs} ({attribute}) and asks {asked}."
