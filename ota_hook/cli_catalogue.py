"""`ota-hook types`, `devices` and `rules`: what an operator types, as calls of the admin API, and its answers in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal

import typer

from ota_hook.cli_session import Session, catalogue_command, open_input
from ota_hook.errors import ConflictError, InputError, NotFound

Document = dict[str, Any]

ROWS_SHOWN: Final = 1000
_NONE: Final = "none"

types = typer.Typer(help="Device types: product lines with their versions and settings.", no_args_is_help=True)
devices = typer.Typer(help="Devices: register, look at, import, export.", no_args_is_help=True)
rules = typer.Typer(help="Rules: which event of a device type asks for which module.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The device type's key.", show_default=False)]
DeviceArgument = Annotated[str, typer.Argument(metavar="ID", help="The device's identifier.", show_default=False)]
RuleArgument = Annotated[str, typer.Argument(metavar="ID", help="The rule's id.", show_default=False)]
TypeFilter = Annotated[
    str | None, typer.Option("--type", metavar="KEY", help="Of this device type alone.", show_default=False)
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", min=0, help=f"At most so many; 0 is all [{ROWS_SHOWN}; with --json all].", show_default=False
    ),
]


def show_list(
    session: Session,
    entries: Iterable[Document],
    columns: tuple[tuple[str, int | None, bool], ...],
    row: Any,  # noqa: ANN401
    *,
    limit: int | None,
) -> None:
    raise NotImplementedError
