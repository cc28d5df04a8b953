"""`ota-hook devices`: the operator's words as calls of the admin API, its answers in words."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from ota_hook._versions import version_key
from ota_hook.cli_lines import CSV, FormatOption, media_type_of, open_lines
from ota_hook.cli_options import ULID_CHARS, LimitOption, TypeFilter
from ota_hook.cli_session import Document, Session, catalogue_command, put_or_change, require_type
from ota_hook.errors import InputError
from ota_hook.terminal import Column, count_text, local_time, size_text, yes_no

devices = typer.Typer(help="Devices: register, look at, import, export.", no_args_is_help=True)

DeviceArgument = Annotated[str, typer.Argument(metavar="ID", help="The device's identifier.", show_default=False)]
TagFilter = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="With this tag alone.", show_default=False)]
_COUNTED_MAX: Final = 10_000
"""Of a gateway's children so many are counted: each thousand is a request."""

_DEVICE_COLUMNS: Final = (
    Column("identifier"),
    Column("type"),
    Column("versions"),
    Column("tags"),
    Column("online"),
    Column("last report"),
)


@devices.command("list")
@catalogue_command
def list_devices(
    session: Session,
    *,
    device_type: TypeFilter = None,
    tag: TagFilter = None,
    online: Annotated[
        bool | None, typer.Option("--online/--offline", help="Who is connected, or who is not.", show_default=False)
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option("--gateway", metavar="ID", help="The children of this device alone.", show_default=False),
    ] = None,
    limit: LimitOption = None,
) -> None:
    """List devices with the versions that they reported. For many, `devices export` is quicker.

    \b
    Example: ota-hook devices list --type tracker --limit 20
    Example: ota-hook devices list --offline
    Example: ota-hook devices list --gateway DU_7VFGiJjjv8QoS
    """
    require_type(session, device_type)
    path = session.path("devices")
    entries = session.api.each(path, type=device_type, tag=tag, online=online, gateway=gateway)
    session.show_list(entries, _DEVICE_COLUMNS, _device_row, limit=limit)


def _device_row(entry: Document) -> tuple[str, ...]:
    reported = max(filter(None, entry["versions_reported_at"].values()), default=None)
    tags = ", ".join(entry["tags"]) or "–"
    online = "–" if entry["online"] is None else yes_no(entry["online"])
    return entry["identifier"], entry["type"], _versions_text(entry["versions"]), tags, online, local_time(reported)


def _versions_text(versions: dict[str, str]) -> str:
    return ", ".join(f"{attribute}={text}" for attribute, text in versions.items()) or "–"


@devices.command("show")
@catalogue_command
def show_device(session: Session, *, identifier: DeviceArgument) -> None:
    """Show one device: its versions, its open offers and what became of the last ones; of a gateway how many children
    it has, of a child its gateway.

    A child is GATEWAY/ADDRESS; in an address / is spelled %2F, and % is %25.

    \b
    Example: ota-hook devices show DU_7VFGiJjjv8QoS
    Example: ota-hook devices show DU_7VFGiJjjv8QoS/ADDR1
    """
    document = session.api.get(session.path("devices", identifier))
    offers = list(session.api.each(session.path("offers"), device=identifier))
    if session.terminal.as_json:
        session.terminal.write_json({**document, "offers": offers})
        return
    reported_at = document["versions_reported_at"]
    facts = [("identifier", document["identifier"]), ("type", document["type"])]
    if document["online"] is not None:
        facts.append(("online", yes_no(document["online"])))
    if document["gateway"] is not None:
        facts.append(("gateway", document["gateway"]))
    elif children := _count_children(session, identifier):
        facts.append(("children", f"{children:,}" if children < _COUNTED_MAX else f"{children:,} and perhaps more"))
    if document["tags"]:
        facts.append(("tags", ", ".join(document["tags"])))
    for attribute, text in document["versions"].items():
        at = reported_at[attribute]
        facts.append((attribute, f"{text}   ({f'reported {local_time(at)}' if at else 'set by an operator'})"))
    session.terminal.facts(facts)
    if not document["versions"]:
        session.terminal.say("It has not reported a version.")
    if offers:
        session.terminal.say("")
        session.terminal.table(_OFFER_COLUMNS, map(_offer_row, offers))


def _count_children(session: Session, gateway: str) -> int:
    entries = session.api.each(session.path("devices"), gateway=gateway)
    return sum(1 for _ in itertools.islice(entries, _COUNTED_MAX))


_OFFER_COLUMNS: Final = (
    Column("offered"),
    Column("module"),
    Column("from"),
    Column("to"),
    Column("outcome"),
    Column("settled"),
    Column("firmware", ULID_CHARS),
)


def _offer_row(entry: Document) -> tuple[str, ...]:
    return (
        local_time(entry["offered_at"]),
        entry["module"],
        entry["from_version"],
        entry["version"],
        entry["outcome"] + (f" ({entry['code']})" if entry["code"] else ""),
        local_time(entry["settled_at"]),
        entry["firmware_id"],
    )


@devices.command("put")
@catalogue_command
def put_device(
    session: Session,
    *,
    identifier: DeviceArgument,
    device_type: Annotated[str, typer.Option("--type", metavar="KEY", help="Its device type.", show_default=False)],
    version: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ATTR=TEXT",
            help="Set a version that it did not report; ATTR= forgets one. Repeat it.",
            show_default=False,
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG",
            help="Its tags, in place of those that it has; repeat it; '' takes them away.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Register a device, or change its type, its tags and the given versions. What it reported otherwise stays.

    \b
    Example: ota-hook devices put DU_7VFGiJjjv8QoS --type tracker --tag trial --tag 上海
    """
    tags = {"tags": [] if tag == [""] else tag} if tag else {}
    versions = dict(_read_version(text) for text in version or ())
    known = {attribute: text for attribute, text in versions.items() if text is not None}
    document, done = put_or_change(
        session.api,
        session.path("devices", identifier),
        {"type": device_type, "versions": known} | tags,
        {"type": device_type, "versions": versions} | tags,
    )
    _note_unreadable(session, device_type, known)
    session.answer(document, f"The device {identifier!r} is {done}.")


def _note_unreadable(session: Session, device_type: str, versions: dict[str, str]) -> None:
    """Say which of the given versions the type's scheme can't compare: the device would get no upgrade."""
    if not versions:
        return
    scheme = session.api.get(session.path("device-types", device_type))["version_scheme"]
    for text in versions.values():
        if version_key(scheme, text) is None:
            session.terminal.note(f"{text!r} is not a version in the scheme {scheme}: nothing is newer than it.")


def _read_version(text: str) -> tuple[str, str | None]:
    attribute, separator, version = text.partition("=")
    if not separator or not attribute:
        raise InputError(f"--version {text!r} names no attribute.", mend="Give ATTR=TEXT, as in version=1.0.0.")
    return attribute, version or None


@devices.command("delete")
@catalogue_command
def delete_device(
    session: Session,
    *,
    identifier: DeviceArgument,
    children: Annotated[bool, typer.Option("--children", help="And every device that is behind it.")] = False,
) -> None:
    """Forget a device, its offers and its history. A gateway's children stay, unless --children says otherwise.

    \b
    Example: ota-hook devices delete DU_7VFGiJjjv8QoS
    """
    session.api.delete(session.path("devices", identifier), children=children or None)
    what = "and all behind it are" if children else "is"
    session.answer({"deleted": identifier}, f"The device {identifier!r} {what} deleted.")


@devices.command("import")
@catalogue_command
def import_devices(
    session: Session,
    *,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="*.ndjson, *.jsonl or *.csv; - is standard input.", show_default=False),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line and write nothing.")] = False,
    line_format: FormatOption = None,
) -> None:
    """Register or replace many devices, one a line.

    NDJSON has a JSON object a line, with `identifier`, `type` and perhaps `versions` and `tags`. CSV has a first line
    that names its columns, of `identifier`, `type`, `tags` (separated by spaces) and `versions.NAME`.

    A bad line is told and does not stop the others; the status is then 1. The same lines again change nothing, so
    that a file with some mended lines can be sent as a whole.

    \b
    Example: ota-hook devices import fleet.ndjson --dry-run
    Example: ota-hook devices import fleet.csv
    Example: echo '{"identifier": "d1", "type": "tracker"}' | ota-hook devices import -
    """
    lines = open_lines(file, line_format)
    with session.terminal.progress(f"sending {file}", lines.size_bytes) as progress:
        done = session.api.send_lines(
            "POST",
            session.path("devices-import"),
            _counted(lines.chunks, progress),
            media_type=lines.media_type,
            dry_run=dry_run or None,
        )
    for error in done["errors"]:
        session.terminal.note(f"line {error['line']}: {error['detail']}")
    if done["failed"] > len(done["errors"]):
        session.terminal.note(f"… and {done['failed'] - len(done['errors']):,} more")
    would = "would be " if done["dry_run"] else ""
    session.answer(
        done, f"{done['created']:,} {would}created, {done['replaced']:,} {would}replaced, {done['failed']:,} failed."
    )
    if done["failed"]:
        session.fail()


def _counted(chunks: Iterator[bytes], progress: Any) -> Iterator[bytes]:  # noqa: ANN401
    sent_bytes = 0
    for chunk in chunks:
        yield chunk
        sent_bytes += len(chunk)
        progress(sent_bytes)


@devices.command("export")
@catalogue_command
def export_devices(
    session: Session,
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to; - is standard output.", show_default=False)
    ] = Path("-"),
    device_type: TypeFilter = None,
    tag: TagFilter = None,
    line_format: FormatOption = None,
) -> None:
    """Write every device, one a line, as `devices import` reads them. A file appears when all of it is there.

    \b
    Example: ota-hook devices export fleet.ndjson --type tracker
    Example: ota-hook devices export trial.csv --tag trial
    """
    media_type = media_type_of(file, line_format)
    to_stdout = str(file) == "-"
    if to_stdout and session.terminal.as_json:
        raise InputError("With --json, standard output is for the summary.", mend="Name a file for the devices.")
    require_type(session, device_type)
    lines = written_bytes = 0
    path = session.path("devices-export")
    with (
        session.api.receive_lines(path, media_type=media_type, type=device_type, tag=tag) as chunks,
        session.terminal.progress(f"receiving {file}", None, shown=not to_stdout) as progress,
        session.terminal.raw_output() if to_stdout else _whole_file(file) as output,
    ):
        for chunk in chunks:
            output.write(chunk)
            lines += chunk.count(b"\n")
            written_bytes += len(chunk)
            progress(written_bytes)
    if not to_stdout:
        count = lines - (media_type == CSV)
        summary = {"file": str(file), "devices": count, "bytes": written_bytes}
        session.answer(summary, f"{count_text(count, 'device')} in {file} ({size_text(written_bytes)}).")


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the context ends well; else there is nothing, or what was there before."""
    try:
        if path.exists() and not path.is_file():  # a device, a pipe: there is nothing to replace
            with path.open("wb") as output:
                yield output
            return
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with draft.open("xb") as output:
                yield output
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as exc:
        raise InputError(f"The file {path} can't be written: {exc.strerror}.") from exc
