"""`ota-hook types`: the operator's words as calls of the admin API, its answers in words."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer

from ota_hook.admission.texts import check_key
from ota_hook.cli_options import LimitOption
from ota_hook.cli_session import Document, Session, catalogue_command, put_or_change
from ota_hook.terminal import Column, count_text, local_time, yes_no

types = typer.Typer(help="Device types: product lines with their versions and settings.", no_args_is_help=True)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="The device type's key.", show_default=False, callback=check_key)
]

_TYPE_COLUMNS: Final = (
    Column("key"),
    Column("name"),
    Column("scheme"),
    Column("version attributes"),
    Column("extras"),
    Column("auto-register"),
    Column("created"),
)


@types.command("list")
@catalogue_command
def list_types(session: Session, *, limit: LimitOption = None) -> None:
    """List the device types.

    \b
    Example: ota-hook types list
    """
    session.show_list(session.api.each(session.path("device-types")), _TYPE_COLUMNS, _type_row, limit=limit)


def _type_row(entry: Document) -> tuple[str, ...]:
    return (
        entry["key"],
        entry["name"],
        entry["version_scheme"],
        ", ".join(entry["version_attributes"]),
        ", ".join(entry["command_extras"]) or "–",
        yes_no(entry["auto_register"]),
        local_time(entry["created_at"]),
    )


@types.command("show")
@catalogue_command
def show_type(session: Session, *, key: KeyArgument) -> None:
    """Show one device type.

    \b
    Example: ota-hook types show tracker
    """
    document = session.api.get(session.path("device-types", key))
    session.show(document, [*zip((column.title for column in _TYPE_COLUMNS), _type_row(document), strict=True)])


@types.command("put")
@catalogue_command
def put_type(
    session: Session,
    *,
    key: KeyArgument,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What people call it [the key].", show_default=False)
    ] = None,
    scheme: Annotated[
        Literal["auto", "semver", "pep440", "debian"] | None,
        typer.Option(help="How its versions are ordered [auto].", show_default=False),
    ] = None,
    version_attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="A reported property that holds a version, in place of those that it has; repeat it [version].",
            show_default=False,
        ),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What upgrade commands say beside md5: sha256, crc32; repeat it; '' takes them away.",
            show_default=False,
        ),
    ] = None,
    auto_register: Annotated[
        bool | None,
        typer.Option(
            "--auto-register/--no-auto-register",
            help="Register a device at its first report, where its topic names the type [no].",
            show_default=False,
        ),
    ] = None,
    children_register: Annotated[
        bool | None,
        typer.Option(
            "--children-register/--no-children-register",
            help="Register a child where its gateway says that it is of this type [yes].",
            show_default=False,
        ),
    ] = None,
    responses: Annotated[
        bool | None,
        typer.Option(
            "--responses/--no-responses",
            help="Tell its devices, and its gateways, that each message was received, or refused [no].",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Create a device type, or change what is given of one that exists and leave the rest of it.

    A new type comes with its default rule: the event otaCheck asks for the module main by the first version attribute.

    \b
    Example: ota-hook types put tracker --name "GPS tracker" --version-attribute fw_version --extra sha256
    """
    given: Document = {
        "name": name,
        "version_scheme": scheme,
        "version_attributes": version_attribute or None,
        "command_extras": ([] if extra == [""] else extra) if extra else None,
        "auto_register": auto_register,
        "children_register": children_register,
        "responses_enabled": responses,
    }
    fields = {field: value for field, value in given.items() if value is not None}
    document, done = put_or_change(session.api, session.path("device-types", key), fields, fields)
    session.answer(document, f"The device type {key!r} is {done}.")


@types.command("delete")
@catalogue_command
def delete_type(session: Session, *, key: KeyArgument) -> None:
    """Delete a device type and its rules. One that devices or firmware refer to is refused.

    \b
    Example: ota-hook types delete tracker
    """
    session.api.delete(session.path("device-types", key))
    session.answer({"deleted": key}, f"The device type {key!r} is deleted.")


_BAR_WIDTH: Final = 20


@types.command("versions")
@catalogue_command
def count_versions(
    session: Session,
    *,
    key: KeyArgument,
    attribute: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of this version attribute [the one of the module].", show_default=False),
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of this module's version attribute [main].", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Tell so many versions apart [100].", show_default=False)
    ] = None,
) -> None:
    """Count the devices of a type by the version that they run, the most common first.

    \b
    Example: ota-hook types versions tracker
    """
    path = session.path("device-types", key, "versions")
    document = session.api.get(path, attribute=attribute, module=module, limit=limit)
    if session.terminal.as_json:
        session.terminal.write_json(document)
        return
    counts = [(entry["version"], entry["devices"]) for entry in document["versions"]]
    counts += [(f"({name})", document[field]) for name, field in _REST.items() if document[field]]
    total = document["devices"]
    columns = (Column(document["attribute"]), Column("devices", right=True), Column("share", right=True), Column(""))
    session.terminal.table(columns, ((text, f"{count:,}", *_share(count, total)) for text, count in counts))
    session.terminal.note(f"{count_text(total, 'device')} of the type {key!r}.")


_REST: Final = {"other versions": "other", "not reported": "without"}


def _share(count: int, total: int) -> tuple[str, str]:
    """In per cent and as a bar, which something always shows of."""
    share = f"{count / total:.1%}"
    return "<0.1%" if share == "0.0%" else share, "█" * max(1, round(_BAR_WIDTH * count / total))
