"""`ota-hook attempts`: what devices tried in vain, and the reset behind which they are offered it again."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from ota_hook.cli_options import ULID_CHARS, LimitOption
from ota_hook.cli_session import Session, catalogue_command
from ota_hook.errors import InputError
from ota_hook.terminal import Column, local_time, yes_no

attempts = typer.Typer(help="Attempts: what devices tried in vain, and their reset.", no_args_is_help=True)

_DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="ID", help="Of this device.", show_default=False)
]
_FirmwareOption = Annotated[
    str | None, typer.Option("--firmware", metavar="ID", help="Of this firmware.", show_default=False)
]

_COLUMNS: Final = (
    Column("device"),
    Column("firmware", ULID_CHARS),
    Column("attempts", right=True),
    Column("last"),
    Column("exhausted"),
)


@attempts.command("list")
@catalogue_command
def list_attempts(
    session: Session,
    *,
    device: _DeviceOption = None,
    firmware: _FirmwareOption = None,
    exhausted: Annotated[bool, typer.Option("--exhausted", help="Only what is not offered any more.")] = False,
    limit: LimitOption = None,
) -> None:
    """List what a device tried in vain, or which devices tried a firmware in vain.

    An attempt is a failure, or a device that comes back with its old version; one an hour at most counts. Behind the
    last of them (`OTA_HOOK_ATTEMPTS_MAX`) the firmware is not offered to the device any more.

    \b
    Example: ota-hook attempts list --device DU_7VFGiJjjv8QoS
    Example: ota-hook attempts list --firmware 01JB2S6R1T9VCFJ3Y4W5X6Z7A8 --exhausted
    """
    _require_one(device, firmware)
    path = session.path("attempts")
    wanted = {"exhausted": "true"} if exhausted else {}
    entries = session.api.each(path, device=device, firmware=firmware, **wanted)
    session.show_list(entries, _COLUMNS, _row, limit=limit)


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    last_at = entry["last_at"]
    return (
        entry["device"],
        entry["firmware_id"],
        str(entry["attempts"]),
        local_time(last_at) if last_at else "–",
        yes_no(entry["exhausted"]),
    )


@attempts.command("reset")
@catalogue_command
def reset_attempts(session: Session, *, device: _DeviceOption = None, firmware: _FirmwareOption = None) -> None:
    """Forget attempts: of one device, of one firmware on every device, or of both. It may be offered again.

    \b
    Example: ota-hook attempts reset --device DU_7VFGiJjjv8QoS
    Example: ota-hook attempts reset --firmware 01JB2S6R1T9VCFJ3Y4W5X6Z7A8
    """
    _require_one(device, firmware)
    session.api.delete(session.path("attempts"), device=device, firmware=firmware)
    whose = " and ".join(
        f"the {kind} {name!r}" for kind, name in (("device", device), ("firmware", firmware)) if name is not None
    )
    session.answer({"reset": True, "device": device, "firmware": firmware}, f"The attempts of {whose} are reset.")


def _require_one(device: str | None, firmware: str | None) -> None:
    if device is None and firmware is None:
        raise InputError("Whose attempts are meant is not said.", mend="Give --device, or --firmware, or both.")
