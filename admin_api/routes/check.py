"""`/check`: the dry run of one device's question."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from admin_api.answers import answer, documented, problems
from admin_api.bodies import JsonRoute
from admin_api.context import Context
from admin_api.documents.check import CheckedFirmware, CheckOffer, CheckOut
from admin_api.documents.fields import Key
from admin_api.firmware_views import FirmwareViews
from ota_hook.check_report import FirmwareReport, explain_check
from ota_hook.errors import NotFound
from ota_hook.identifiers import gateway_of, is_identifier
from ota_hook.model import DEFAULT_MODULE, DeviceState, Firmware
from ota_hook.snapshot import Snapshot

router = APIRouter(tags=["check"], route_class=JsonRoute)


class CheckQuery(BaseModel):
    """Which device, which module."""

    model_config = ConfigDict(extra="forbid")

    device: str
    module: Key = DEFAULT_MODULE


@router.get(
    "/check",
    summary="Which firmware a device would get now, and why not each of the others",
    responses=documented(CheckOut, 200) | problems(404, 409),
)
async def check_device(context: Context, request: Request, query: Annotated[CheckQuery, Query()]) -> Response:
    device = await context.devices.load_device(query.device) if is_identifier(query.device) else None
    if device is None:
        raise NotFound(f"There is no device {query.device[:160]!r}.")
    gateway = gateway_of(device.identifier)
    is_known = gateway == device.identifier or await context.devices.load_device(gateway) is not None
    views: FirmwareViews = request.app.state.firmware_views
    # Ten thousand firmware are explained at length, and the event loop may be answering a broker too.
    snapshot = context.catalogue.current
    return await asyncio.to_thread(_dry_run, snapshot, device, query.module, views, gateway_is_known=is_known)


def _dry_run(
    snapshot: Snapshot, device: DeviceState, module: str, views: FirmwareViews, *, gateway_is_known: bool
) -> Response:
    report = explain_check(snapshot, device, module, gateway_is_known=gateway_is_known)
    return answer(
        CheckOut(
            device=device.identifier,
            type=device.device_type,
            module=module,
            event=report.rule.event if report.rule else None,
            version_attribute=report.rule.version_attribute if report.rule else None,
            current_version=report.current_version,
            offer=_show_offer(report.offer, views) if report.offer else None,
            reason=report.reason,
            firmware=[_show_report(entry) for entry in report.firmware],
        )
    )


def _show_offer(firmware: Firmware, views: FirmwareViews) -> CheckOffer:
    return CheckOffer(
        firmware_id=firmware.id,
        name=firmware.name,
        version=firmware.version,
        url=views.url(firmware),
        size=firmware.package.size_bytes,
        md5=firmware.package.md5,
    )


def _show_report(entry: FirmwareReport) -> CheckedFirmware:
    return CheckedFirmware(
        id=entry.firmware.id,
        name=entry.firmware.name,
        version=entry.firmware.version,
        enabled=entry.firmware.enabled,
        chosen=entry.chosen,
        reasons=list(entry.reasons),
        explanations=list(entry.explanations),
    )
