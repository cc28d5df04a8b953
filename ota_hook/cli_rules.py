"""`ota-hook rules`: the operator's words as calls of the admin API, its answers in words."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from ota_hook.cli_options import ULID_CHARS, LimitOption, TypeFilter
from ota_hook.cli_session import Document, Session, catalogue_command, require_type
from ota_hook.terminal import Column, local_time, yes_no

rules = typer.Typer(help="Rules: which event of a device type asks for which module.", no_args_is_help=True)

RuleArgument = Annotated[str, typer.Argument(metavar="ID", help="The rule's id.", show_default=False)]

_RULE_COLUMNS: Final = (
    Column("id", ULID_CHARS),
    Column("name"),
    Column("type"),
    Column("event"),
    Column("version attribute"),
    Column("module"),
    Column("enabled"),
    Column("created"),
)


@rules.command("list")
@catalogue_command
def list_rules(session: Session, *, device_type: TypeFilter = None, limit: LimitOption = None) -> None:
    """List the rules: each makes an event of a device type a check of one version attribute for one module.

    \b
    Example: ota-hook rules list --type tracker
    """
    require_type(session, device_type)
    entries = session.api.each(session.path("rules"), device_type=device_type)
    session.show_list(entries, _RULE_COLUMNS, _rule_row, limit=limit)


def _rule_row(entry: Document) -> tuple[str, ...]:
    return (
        entry["id"],
        entry["name"],
        entry["device_type"],
        entry["event"],
        entry["version_attribute"],
        entry["module"],
        yes_no(entry["enabled"]),
        local_time(entry["created_at"]),
    )


@rules.command("add")
@catalogue_command
def add_rule(
    session: Session,
    *,
    device_type: Annotated[str, typer.Option("--type", metavar="KEY", help="Its device type.", show_default=False)],
    event: Annotated[str, typer.Option(metavar="TEXT", help="The event's name, as devices send it.")] = "otaCheck",
    version_attribute: Annotated[
        str, typer.Option(metavar="TEXT", help="The reported property that holds the version.")
    ] = "version",
    module: Annotated[str, typer.Option(metavar="TEXT", help="The part of the device that is asked for.")] = "main",
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What people call it [the event].", show_default=False)
    ] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Keep it, but don't answer by it yet.")] = False,
) -> None:
    """Add a rule; one that says the same is no error. A version attribute that is new to the type joins it.

    \b
    Example: ota-hook rules add --type tracker --event gpsCheck --version-attribute gps_version --module gps
    """
    fields: Document = {
        "device_type": device_type,
        "event": event,
        "version_attribute": version_attribute,
        "module": module,
        "enabled": not disabled,
    }
    if name is not None:
        fields["name"] = name
    document, created = session.api.post(session.path("rules"), fields)
    if document["notice"]:
        session.terminal.note(document["notice"])
    session.answer(document, f"The rule {document['id']} {'is added' if created else 'is there already'}.")


@rules.command("delete")
@catalogue_command
def delete_rule(session: Session, *, rule_id: RuleArgument) -> None:
    """Delete a rule: its event gets no answer any more.

    \b
    Example: ota-hook rules delete 01JZ0000000000000000000000
    """
    session.api.delete(session.path("rules", rule_id))
    session.answer({"deleted": rule_id}, f"The rule {rule_id} is deleted.")


@rules.command("enable")
@catalogue_command
def enable_rule(session: Session, *, rule_id: RuleArgument) -> None:
    """Answer by a rule again, within a second on every hook.

    \b
    Example: ota-hook rules enable 01JZ0000000000000000000000
    """
    _switch_rule(session, rule_id, enabled=True)


@rules.command("disable")
@catalogue_command
def disable_rule(session: Session, *, rule_id: RuleArgument) -> None:
    """Stop answering by a rule, within a second on every hook, and keep it.

    \b
    Example: ota-hook rules disable 01JZ0000000000000000000000
    """
    _switch_rule(session, rule_id, enabled=False)


def _switch_rule(session: Session, rule_id: str, *, enabled: bool) -> None:
    document = session.api.patch(session.path("rules", rule_id), {"enabled": enabled})
    session.answer(document, f"The rule {rule_id} ({document['name']}) is {'enabled' if enabled else 'disabled'}.")
