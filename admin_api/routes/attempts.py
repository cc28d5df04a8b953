"""`/attempts`: which devices tried a firmware in vain, and the reset that lets them have it again."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict

from admin_api.answers import answer, documented, problems
from admin_api.bodies import JsonRoute
from admin_api.context import AdminContext, Context
from admin_api.documents.attempts import AttemptsOut
from admin_api.pagination import Page, PageQuery
from ota_hook.errors import InputError, NotFound
from ota_hook.identifiers import is_identifier

router = APIRouter(prefix="/attempts", tags=["devices"], route_class=JsonRoute)


class AttemptsQuery(PageQuery):
    """Of a device, or of a firmware, or of both. `exhausted`: only those that are not offered the firmware any more."""

    device: str | None = None
    firmware: str | None = None
    exhausted: bool = False


class ResetQuery(BaseModel):
    """Of a device every firmware, of a firmware every device, or of both one."""

    model_config = ConfigDict(extra="forbid")

    device: str | None = None
    firmware: str | None = None


@router.get(
    "",
    summary="List what devices tried in vain: of one device the newest first, of a firmware in no useful order",
    responses=documented(Page[AttemptsOut], 200) | problems(404),
)
async def list_attempts(context: Context, query: Annotated[AttemptsQuery, Query()]) -> Response:
    if query.device is not None:
        await _require_device(context, query.device)
        if query.firmware is not None:
            _require_firmware(context, query.firmware)
        items = [
            AttemptsOut.of(query.device, one)
            for one in await context.attempts.load_attempts(query.device)
            if query.firmware in (None, one.firmware_id) and (one.is_exhausted or not query.exhausted)
        ]
        return answer(Page[AttemptsOut](items=items[: query.limit], next_cursor=None))
    _require_firmware(context, query.firmware)
    page, next_cursor = await context.attempts.page_attempts(
        query.firmware or "", cursor=query.cursor, limit=query.limit, only_exhausted=query.exhausted
    )
    items = [AttemptsOut.of(device, one) for device, one in page]
    return answer(Page[AttemptsOut](items=items, next_cursor=next_cursor))


@router.delete(
    "",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Reset attempts: the firmware may be offered again",
    responses=problems(404),
)
async def reset_attempts(context: Context, query: Annotated[ResetQuery, Query()]) -> Response:
    if query.device is not None:
        await _require_device(context, query.device)
        if query.firmware is not None:
            _require_firmware(context, query.firmware)
        await context.attempts.reset_attempts(query.device, query.firmware)
    else:
        _require_firmware(context, query.firmware)
        await context.attempts.reset_firmware(query.firmware or "")
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _require_device(context: AdminContext, identifier: str) -> None:
    if not is_identifier(identifier) or await context.devices.load_device(identifier) is None:
        raise NotFound(f"There is no device {identifier[:160]!r}.")


def _require_firmware(context: AdminContext, firmware_id: str | None) -> None:
    if firmware_id is None:
        raise InputError("Whose attempts are meant is not said.", mend="Name `device`, or `firmware`, or both.")
    if firmware_id not in context.catalogue.current.firmware:
        raise NotFound(f"There is no firmware {firmware_id[:160]!r}.")
