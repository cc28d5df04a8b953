"""`/devices`, `/devices-import`, `/devices-export`, `/offers`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from admin_api.answers import answer, answer_read, documented, patch_body, problems
from admin_api.bodies import NDJSON, JsonRoute, read_lines, require_ndjson, require_ndjson_accepted
from admin_api.conditions import Conditions
from admin_api.context import AdminContext, Context
from admin_api.documents import (
    DeviceFields,
    DeviceOut,
    DevicePatch,
    ImportOut,
    LineError,
    NewDevice,
    OfferOut,
    validate,
)
from admin_api.faults import describe_fault
from admin_api.idempotency import answer_once, fingerprint_of
from admin_api.pagination import Page, PageQuery
from admin_api.patches import check_patch
from ota_hook.admission import check_identifier, find_type
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.model import is_direct_identifier
from ota_hook.ports import StoredDevice
from ota_hook.snapshot import Snapshot

router = APIRouter(tags=["devices"], route_class=JsonRoute)
streams = APIRouter(tags=["devices"])

_BATCH: Final = 1000
_ERRORS_SHOWN: Final = 100
_EXPORT_CHUNK_BYTES: Final = 64 * 1024

_ImportLine = tuple[str, str, Mapping[str, str] | None]


class DeviceQuery(PageQuery):
    """Which devices."""

    type: str | None = None


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


async def _load(context: AdminContext, identifier: str) -> StoredDevice:
    device = await context.devices.load_stored(identifier) if is_direct_identifier(identifier) else None
    if device is None:
        raise NotFound(f"There is no device {identifier[:160]!r}.")
    return device


def _etag(device: StoredDevice) -> str:
    """Devices have no revision: the tag is the digest of what is stored."""
    return f'"{device.digest}"'


def _answer(device: StoredDevice, *, created: bool = False) -> Response:
    return answer(
        DeviceOut.of(device.state),
        status=HTTPStatus.CREATED if created else HTTPStatus.OK,
        etag=_etag(device),
        location=f"/api/v1/devices/{quote(device.state.identifier, safe='')}" if created else None,
    )


def _admit(snapshot: Snapshot, type_key: str, versions: Mapping[str, Any] | None) -> None:
    """Refuse an unknown type, and versions that the type does not keep."""
    device_type = find_type(snapshot, type_key, field="type")
    for attribute in versions or ():
        if attribute not in device_type.version_attributes:
            raise InputError(
                f"{attribute!r} is not a version attribute of the device type {type_key!r}"
                f" ({', '.join(device_type.version_attributes)}).",
                field=f"versions.{attribute}",
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
    "/devices", summary="List devices, in no useful order", responses=documented(Page[DeviceOut], 200) | problems()
)
async def list_devices(context: Context, query: Annotated[DeviceQuery, Query()]) -> Response:
    devices, next_cursor = await context.devices.page_devices(
        cursor=query.cursor, limit=query.limit, device_type=query.type
    )
    return answer(Page[DeviceOut](items=[DeviceOut.of(device) for device in devices], next_cursor=next_cursor))


@router.post(
    "/devices",
    status_code=HTTPStatus.CREATED,
    summary="Register a device",
    responses=documented(DeviceOut, 201) | problems(409),
)
async def create_device(context: Context, request: Request, body: NewDevice) -> Response:
    async def create() -> Response:
        _admit(context.catalogue.current, body.type, body.versions)
        if not await context.devices.create_device(body.identifier, body.type, body.versions or {}):
            raise ConflictError(f"The device {body.identifier!r} is registered already.", field="identifier")
        return _answer(await _load(context, body.identifier), created=True)

    return await answer_once(context, request, fingerprint_of(body), create)


@router.get(
    "/devices/{identifier:path}",
    summary="Read a device",
    responses=documented(DeviceOut, 200, 304) | problems(404, 412),
)
async def read_device(context: Context, identifier: str, conditions: Conditions) -> Response:
    device = await _load(context, identifier)
    return answer_read(DeviceOut.of(device.state), _etag(device), conditions)


@router.put(
    "/devices/{identifier:path}",
    summary="Register or replace a device; `versions` left out keeps what it reported",
    description="A `versions` that is left out or null keeps the stored ones, which are what the device said of itself;"
    " `{}` forgets them.",
    responses=documented(DeviceOut, 200, 201) | problems(412),
)
async def put_device(context: Context, identifier: str, body: DeviceFields, conditions: Conditions) -> Response:
    _identifier_in_path(identifier, body.identifier)
    _admit(context.catalogue.current, body.type, body.versions)
    created = await context.devices.put_device(
        identifier, body.type, body.versions, expected=conditions.expect_device()
    )
    return _answer(await _load(context, identifier), created=created)


@router.patch(
    "/devices/{identifier:path}",
    summary="Change a device (JSON merge patch)",
    responses=documented(DeviceOut, 200) | problems(404, 412),
    openapi_extra=patch_body(DevicePatch),
)
async def patch_device(
    context: Context, identifier: str, patch: Annotated[dict[str, Any], Body()], conditions: Conditions
) -> Response:
    check_patch(patch, DevicePatch, DeviceOut, nullable=("versions",))
    body = validate(DevicePatch, patch)
    old = await _load(context, identifier)
    _identifier_in_path(identifier, body.identifier)
    conditions.require(_etag(old))
    type_key = body.type or old.state.device_type
    versions = dict.fromkeys(old.state.versions) if body.versions is None else body.versions
    _admit(context.catalogue.current, type_key, {name: text for name, text in versions.items() if text is not None})
    device = await context.devices.patch_device(
        identifier, body.type or None, versions, expected=conditions.expect_device()
    )
    if device is None:
        raise NotFound(f"There is no device {identifier!r}.")
    return _answer(device)


@router.delete(
    "/devices/{identifier:path}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Forget a device, its offers and its history",
    responses=documented(None, 204) | problems(404, 412),
)
async def delete_device(context: Context, identifier: str, conditions: Conditions) -> Response:
    await _load(context, identifier)
    if not await context.devices.delete_device(identifier, expected=conditions.expect_device()):
        raise NotFound(f"There is no device {identifier!r}.")
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get(
    "/offers",
    summary="A device's open offers and its last outcomes, newest first",
    responses=documented(Page[OfferOut], 200) | problems(404),
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
    summary="Register or replace devices, one JSON object a line",
    description="Lines are as those of /devices-export: `identifier`, `type`, and optionally `versions`. A bad line"
    " does not stop the others. Sending the same lines again changes nothing.",
    responses=documented(ImportOut, 200) | problems(415),
    openapi_extra={"requestBody": {"required": True, "content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def import_devices(context: Context, request: Request, query: Annotated[ImportQuery, Query()]) -> Response:
    require_ndjson(request)
    done = ImportOut(created=0, replaced=0, failed=0, dry_run=query.dry_run, errors=[])
    batch: list[_ImportLine] = []
    async for number, line in read_lines(request):
        try:
            batch.append(_read_import_line(context.catalogue.current, line))
        except (InputError, ValidationError, orjson.JSONDecodeError) as exc:
            done.failed += 1
            if len(done.errors) < _ERRORS_SHOWN:
                done.errors.append(LineError(line=number, detail=_line_detail(exc)))
        if len(batch) == _BATCH:
            await _import_batch(context, batch, done)
            batch = []
    await _import_batch(context, batch, done)
    return answer(done)


def _read_import_line(snapshot: Snapshot, line: bytes) -> _ImportLine:
    device = NewDevice.model_validate(orjson.loads(line))
    _admit(snapshot, device.type, device.versions)
    return device.identifier, device.type, device.versions


def _line_detail(exc: Exception) -> str:
    match exc:
        case InputError():
            return exc.detail
        case ValidationError():
            return describe_fault(exc.errors(include_url=False)[0], whole="The line")[1]
        case _:
            return "The line is not JSON."


async def _import_batch(context: AdminContext, batch: list[_ImportLine], done: ImportOut) -> None:
    # Of one device the last line counts; written together, their order would be Redis's affair.
    latest = list({line[0]: line for line in batch}.values())
    if not latest:
        return
    if done.dry_run:
        created = await context.devices.count_unknown([line[0] for line in latest])
        replaced = len(latest) - created
    else:
        created, replaced = await context.devices.import_devices(latest)
    done.created += created
    done.replaced += replaced + len(batch) - len(latest)


@streams.get(
    "/devices-export",
    summary="Every device, one JSON object a line",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {}}}, **problems(406)},
)
async def export_devices(context: Context, request: Request, query: Annotated[ExportQuery, Query()]) -> Response:
    require_ndjson_accepted(request)
    return StreamingResponse(_export(context, query.type), media_type=NDJSON)


async def _export(context: AdminContext, device_type: str | None) -> AsyncIterator[bytes]:
    chunk = bytearray()
    async for device in context.devices.scan_devices(device_type=device_type):
        versions = {attribute: version.text for attribute, version in sorted(device.versions.items())}
        chunk += orjson.dumps({"identifier": device.identifier, "type": device.device_type, "versions": versions})
        chunk += b"\n"
        if len(chunk) >= _EXPORT_CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)
