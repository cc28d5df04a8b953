"""`/devices`, `/devices-import`, `/devices-export`, `/offers`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from admin_api.answers import answer, answer_read, documented, patch_body, problems
from admin_api.bodies import CSV, NDJSON, JsonRoute, choose_accepted
from admin_api.conditions import Conditions
from admin_api.context import AdminContext, Context
from admin_api.device_import import run_import
from admin_api.device_lines import CsvOutput, DeviceOutput, LeftOut, NdjsonOutput, admit_versions
from admin_api.documents.devices import DeviceFields, DeviceOut, DevicePatch, ImportOut, NewDevice, OfferOut
from admin_api.documents.fields import validate
from admin_api.idempotency import answer_once, fingerprint_of
from admin_api.pagination import Page, PageQuery
from admin_api.patches import check_patch
from ota_hook.admission.texts import check_identifier
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.identifiers import is_direct_identifier, is_identifier
from ota_hook.model import DeviceState
from ota_hook.ports.devices import StoredDevice
from ota_hook.presence import is_online

router = APIRouter(tags=["devices"], route_class=JsonRoute)
streams = APIRouter(tags=["devices"])

_EXPORT_CHUNK: Final = 500
"""Devices; some 50 kB."""
_EMPTY_PAGES_MAX: Final = 10
"""So many pages in which nobody is as wanted are looked through at once."""


class DeviceQuery(PageQuery):
    """Which devices. `gateway`: its children alone."""

    type: str | None = None
    tag: str | None = None
    online: bool | None = None
    gateway: str | None = None


class DeletionQuery(BaseModel):
    """`children`: and every device that is behind it."""

    model_config = ConfigDict(extra="forbid")

    children: bool = False


class OfferQuery(PageQuery):
    """Whose offers."""

    device: str


class ImportQuery(BaseModel):
    """`dry_run` checks every line and writes nothing."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool = False


class ExportQuery(BaseModel):
    """Which devices."""

    model_config = ConfigDict(extra="forbid")

    type: str | None = None
    tag: str | None = None


async def _load(context: AdminContext, identifier: str) -> StoredDevice:
    device = await context.devices.load_stored(identifier) if is_identifier(identifier) else None
    if device is None:
        raise _not_there(identifier)
    return device


def _not_there(identifier: str) -> NotFound:
    return NotFound(f"There is no device {identifier[:160]!r}.")


def _etag(device: StoredDevice) -> str:
    """Devices have no revision: the tag is the digest of what is stored."""
    return f'"{device.digest}"'


async def _show(context: AdminContext, devices: Sequence[DeviceState]) -> list[DeviceOut]:
    if context.connections is None or not devices:
        return [DeviceOut.of(device) for device in devices]
    connections = await context.connections.load_connections([device.identifier for device in devices])
    now_ms = context.now_ms()
    return [
        DeviceOut.of(device, online=is_online(device, connection, now_ms=now_ms))
        for device, connection in zip(devices, connections, strict=True)
    ]


async def _answer(context: AdminContext, device: StoredDevice, *, created: bool = False) -> Response:
    (shown,) = await _show(context, [device.state])
    return answer(
        shown,
        status=HTTPStatus.CREATED if created else HTTPStatus.OK,
        etag=_etag(device),
        location=f"/api/v1/devices/{quote(device.state.identifier, safe='')}" if created else None,
    )


def _identifier_in_path(identifier: str, in_body: str | None) -> str:
    try:
        check_identifier(identifier)
    except InputError as exc:
        raise InputError(exc.detail, field="identifier") from exc
    if in_body not in (None, identifier):
        raise InputError("A device's identifier can't change.", field="identifier")
    return identifier


@router.get(
    "/devices",
    summary="List devices, in no useful order",
    description="With `gateway` the children of that device, in the order of their identifiers; the device itself need"
    " not be registered (any more). With `online` a page may have fewer entries than `limit`, or none; there are more"
    " while `next_cursor` is not null.",
    responses=documented(Page[DeviceOut], 200) | problems(),
)
async def list_devices(context: Context, query: Annotated[DeviceQuery, Query()]) -> Response:
    if query.online is not None and context.connections is None:
        raise InputError("Who is online is not known.", mend="Set OTA_HOOK_PRESENCE=true.", field="online")
    if query.gateway is not None and not is_direct_identifier(query.gateway):
        raise InputError("A gateway is a direct device: what it names is none.", field="gateway")
    cursor, pages = query.cursor, 0
    while True:
        devices, cursor = await context.devices.page_devices(
            cursor=cursor, limit=query.limit, device_type=query.type, tag=query.tag, gateway=query.gateway
        )
        shown = [device for device in await _show(context, devices) if query.online in (None, device.online)]
        pages += 1
        if shown or cursor is None or pages == _EMPTY_PAGES_MAX:
            return answer(Page[DeviceOut](items=shown, next_cursor=cursor))


@router.post(
    "/devices",
    status_code=HTTPStatus.CREATED,
    summary="Register a device",
    description="A gateway's child is `GATEWAY/ADDRESS`, or `GATEWAY/ADDRESS/ADDRESS…`; in an address `/` is spelled"
    " `%2F` and `%` is `%25`. Its gateway need not be registered yet; until it is it speaks for nobody.",
    responses=documented(DeviceOut, 201) | problems(409),
)
async def create_device(context: Context, request: Request, body: NewDevice) -> Response:
    async def create() -> Response:
        admit_versions(context.catalogue.current, body.type, body.versions)
        if not await context.devices.create_device(
            body.identifier, body.type, body.versions or {}, body.sorted_tags or ()
        ):
            raise ConflictError(f"The device {body.identifier!r} is registered already.", field="identifier")
        return await _answer(context, await _load(context, body.identifier), created=True)

    return await answer_once(context, request, fingerprint_of(body), create)


@router.get(
    "/devices/{identifier:path}",
    summary="Read a device",
    description="The identifier is one part of the address, percent-encoded: `GW/a%2Fb` is `/devices/GW%2Fa%252Fb`."
    " The `/` between a gateway and an address may stand as it is: `/devices/GW/a%252Fb`.",
    responses=documented(DeviceOut, 200, 304) | problems(404, 409, 412),
)
async def read_device(context: Context, identifier: str, conditions: Conditions) -> Response:
    device = await _load(context, identifier)
    (shown,) = await _show(context, [device.state])
    if shown.online is not None:
        # The tag does not follow who is online, so no reader is told that nothing changed.
        conditions = replace(conditions, if_none_match=None)
    return answer_read(shown, _etag(device), conditions)


@router.put(
    "/devices/{identifier:path}",
    summary="Register or replace a device; `versions` left out keeps what it reported",
    description="A `versions` that is left out or null keeps the stored ones, which are what the device said of itself;"
    " `{}` forgets them. So for `tags`: left out or null keeps them, `[]` clears them.",
    responses=documented(DeviceOut, 200, 201) | problems(409, 412),
)
async def put_device(context: Context, identifier: str, body: DeviceFields, conditions: Conditions) -> Response:
    _identifier_in_path(identifier, body.identifier)
    admit_versions(context.catalogue.current, body.type, body.versions)
    created = await context.devices.put_device(
        identifier, body.type, body.versions, body.sorted_tags, expected=conditions.expect_device()
    )
    return await _answer(context, await _load(context, identifier), created=created)


@router.patch(
    "/devices/{identifier:path}",
    summary="Change a device (JSON merge patch)",
    responses=documented(DeviceOut, 200) | problems(404, 409, 412),
    openapi_extra=patch_body(DevicePatch),
)
async def patch_device(
    context: Context, identifier: str, patch: Annotated[dict[str, Any], Body()], conditions: Conditions
) -> Response:
    check_patch(patch, DevicePatch, DeviceOut, nullable=("versions", "tags"))
    body = validate(DevicePatch, patch)
    old = await _load(context, identifier)
    _identifier_in_path(identifier, body.identifier)
    conditions.require(_etag(old))
    type_key = body.type or old.state.device_type
    versions = dict.fromkeys(old.state.versions) if body.versions is None else body.versions
    admit_versions(
        context.catalogue.current, type_key, {name: text for name, text in versions.items() if text is not None}
    )
    device = await context.devices.patch_device(
        identifier, body.type or None, versions, body.sorted_tags, expected=conditions.expect_device()
    )
    if device is None:
        raise _not_there(identifier)
    return await _answer(context, device)


@router.delete(
    "/devices/{identifier:path}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Forget a device, its offers and its history",
    description="The children of a gateway stay, and nobody speaks for them until it is registered again. With"
    " `children=true` they are forgotten too, after the gateway, some hundred at a time: where the request breaks off,"
    " the same one again forgets the others. Conditions are those of the device itself.",
    responses=documented(None, 204) | problems(404, 412),
)
async def delete_device(
    context: Context, identifier: str, query: Annotated[DeletionQuery, Query()], conditions: Conditions
) -> Response:
    if not is_identifier(identifier):
        raise _not_there(identifier)
    # In this order: what is not registered registers no children.
    existed = await context.devices.delete_device(identifier, expected=conditions.expect_device())
    had_children = query.children and await context.devices.delete_children(identifier) > 0
    if not existed and not had_children:
        raise _not_there(identifier)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get(
    "/offers",
    summary="A device's open offers and its last outcomes, newest first",
    responses=documented(Page[OfferOut], 200) | problems(404, 409),
)
async def list_offers(context: Context, query: Annotated[OfferQuery, Query()]) -> Response:
    device = (await _load(context, query.device)).state
    if query.cursor is not None:
        raise InputError("This list has one page.", field="cursor")
    settled = await context.offers.load_history(device.identifier)
    offers = [OfferOut.of(offer) for offer in sorted(device.open_offers, key=lambda offer: -offer.offered_at_ms)]
    offers += [OfferOut.of(entry.offer, entry) for entry in settled]
    return answer(Page[OfferOut](items=offers[: query.limit], next_cursor=None))


@streams.post(
    "/devices-import",
    summary="Register or replace devices, one a line",
    description="Lines are as those of /devices-export. NDJSON: a JSON object with `identifier`, `type`, and optionally"
    " `versions` and `tags`; what is left out of these keeps what is stored. CSV (UTF-8): a first line that names the"
    " columns, of `identifier`, `type`, `tags` (separated by spaces) and `versions.NAME` for each version attribute;"
    " without a column `tags`, or without any for versions, what is stored is kept; an empty cell is no tag, or no such"
    " version. No value spans lines. A bad line does not stop the others, nor does a second one about a device. Sending"
    " the same lines again changes nothing.",
    responses=documented(ImportOut, 200) | problems(415),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {NDJSON: {"schema": {"type": "string"}}, CSV: {"schema": {"type": "string"}}},
        }
    },
)
async def import_devices(context: Context, request: Request, query: Annotated[ImportQuery, Query()]) -> Response:
    return answer(await run_import(context, request, dry_run=query.dry_run))


@streams.get(
    "/devices-export",
    summary="Every device, one a line",
    description="As NDJSON, or with `Accept: text/csv` as CSV, which has a column for each version attribute that the"
    " types keep. What it gives /devices-import takes. Where devices were left out, for what is stored of them can't be"
    " read, it ends with a line that names them, which is refused there.",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {}, CSV: {}}}, **problems(406)},
)
async def export_devices(context: Context, request: Request, query: Annotated[ExportQuery, Query()]) -> Response:
    if choose_accepted(request, (NDJSON, CSV)) == NDJSON:
        return StreamingResponse(_export(context, query, NdjsonOutput()), media_type=NDJSON)
    kept = context.catalogue.current.kept_by_type
    types = kept if query.type is None else {query.type} & kept.keys()
    attributes = {attribute for device_type in types for attribute in kept[device_type]}
    return StreamingResponse(_export(context, query, CsvOutput(attributes)), media_type=f"{CSV}; charset=utf-8")


async def _export(context: AdminContext, query: ExportQuery, output: DeviceOutput) -> AsyncIterator[bytes]:
    count = 0
    left_out = LeftOut()
    devices = context.devices.scan_devices(device_type=query.type, tag=query.tag, on_unreadable=left_out.add)
    async for device in devices:
        output.add(device)
        count += 1
        if count % _EXPORT_CHUNK == 0:
            yield output.take()
            await asyncio.sleep(0)  # a client that takes all at once must not keep others from their turn
    output.end(left_out)
    yield output.take()
