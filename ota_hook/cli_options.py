"""Options that commands on several resources take alike, and how wide their columns of ids are.

It must not know any command.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from ota_hook.cli_session import ROWS_SHOWN

ULID_CHARS: Final = 26
"""The width of a column of ids that people copy."""

TypeFilter = Annotated[
    str | None, typer.Option("--type", metavar="KEY", help="Of this device type alone.", show_default=False)
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", min=0, help=f"At most so many; 0 is all [{ROWS_SHOWN}; all with --json].", show_default=False
    ),
]
