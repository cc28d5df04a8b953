"""`ota-hook versions`: which of two versions is newer. Asks nobody."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from ota_hook.admission.texts import key_in_scheme
from ota_hook.model import VersionScheme
from ota_hook.terminal import Terminal

_ORDERS: Final = {-1: "older than", 0: "equal to", 1: "newer than"}

versions = typer.Typer(help="Versions: which of two is newer.", no_args_is_help=True)


@versions.command("compare")
def compare_versions(
    *,
    first: Annotated[str, typer.Argument(metavar="A", help="A version.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)],
    scheme: Annotated[VersionScheme, typer.Option(help="How they are ordered.")] = VersionScheme.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Say whether version A is older than B, equal to it, or newer. The status is 0 whatever the answer.

    \b
    Example: ota-hook versions compare 1.0.0-rc1 1.0.0
    Example: ota-hook versions compare 1.0.0+4 1.0.0+5 --scheme semver
    """
    ours, theirs = (key_in_scheme(scheme, text) for text in (first, second))
    order = (ours > theirs) - (ours < theirs)
    terminal = Terminal(as_json=as_json)
    if as_json:
        terminal.write_json({"scheme": scheme.value, "a": first, "b": second, "order": order})
    else:
        terminal.say(f"{first} is {_ORDERS[order]} {second} in the scheme {scheme.value}.")
