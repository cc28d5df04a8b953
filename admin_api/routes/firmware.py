"""`/firmware` and `/firmware/{id}/devices`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from admin_api.answers import answer, commit, documented, patch_body, problems
from admin_api.bodies import CSV, NDJSON, JsonRoute, choose_accepted, read_lines, require_lines
from admin_api.conditions import Conditions, Preconditions, current_etag, document_etag
from admin_api.context import AdminContext, Context
from admin_api.documents.fields import rfc3339
from admin_api.documents.firmware import (
    DeviceListOut,
    FirmwareDetail,
    FirmwareOut,
    FirmwareSettings,
    FirmwareStopOut,
    firmware_settings,
)
from admin_api.firmware_views import FirmwareViews
from admin_api.idempotency import REPLAYED_HEADER, create_once, fingerprint_of
from admin_api.list_lines import ListLines, list_header, write_list
from admin_api.one_behind import OneBehind
from admin_api.pagination import Page, PageQuery, page_of
from admin_api.patches import apply_patch
from admin_api.uploads import Upload, receive_upload
from ota_hook._device_set import DeviceSet
from ota_hook.admission.device_types import find_type
from ota_hook.admission.firmware import (
    LISTED_DEVICES_MAX,
    admit_firmware,
    check_firmware_version,
    find_firmware,
    find_mendable_firmware,
    remove_firmware,
)
from ota_hook.admission.texts import NAME_MAX_CHARS
from ota_hook.check_report import rule_for
from ota_hook.errors import ConflictError, DependencyError, InputError, NotFound, OtaHookError
from ota_hook.model import CatalogueChange, DocumentKind, Firmware
from ota_hook.packages.inspect import file_stem
from ota_hook.snapshot import Snapshot


def _refuse_query(request: Request) -> None:
    """A stream is whole or is not: a `limit` that nobody reads would be believed."""
    for name in request.query_params:
        raise InputError(f"`{name[:64]}`: there is no such parameter.", field=name[:64])


router = APIRouter(prefix="/firmware", tags=["firmware"], route_class=JsonRoute)
streams = APIRouter(prefix="/firmware", tags=["firmware"], dependencies=[Depends(_refuse_query)])

_BATCH: Final = 1000
_TYPES_COMPARED: Final = 100
"""So many devices of an upload are read to see whether they are of its type."""
_DEVICES_NAMED: Final = 3
_NULLABLE: Final = ("devices", "tags", "percentage")
"""Null is a value of these: not set."""
_EVERYONE: Final = "This firmware has no device list: it is for every device of its type."

_UPLOAD_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "device_type", "version"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "name": {"type": "string", "description": "Default: the file's name without its extension."},
                        "device_type": {"type": "string"},
                        "version": {"type": "string"},
                        "module": {"type": "string", "default": "main"},
                        "devices": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "Repeated. Left out: every device; one empty value: nobody.",
                        },
                        "tags": {"type": "array", "items": {"type": "string"}, "description": "Repeated."},
                        "percentage": {"type": "number", "minimum": 0, "maximum": 100},
                        "source_versions": {"type": "array", "items": {"type": "string"}},
                        "use_https": {"type": "boolean", "default": False},
                        "enabled": {"type": "boolean", "default": True},
                        "allow_downgrade": {"type": "boolean", "default": False},
                    },
                }
            }
        },
    }
}
_LINES: Final = {media_type: {"schema": {"type": "string"}} for media_type in (NDJSON, CSV)}
_LINES_BODY: Final = {"requestBody": {"required": True, "content": _LINES}}


class FirmwareQuery(PageQuery):
    """Which firmware."""

    device_type: str | None = None
    module: str | None = None
    version: str | None = None
    enabled: bool | None = None


def _views(request: Request) -> FirmwareViews:
    views: FirmwareViews = request.app.state.firmware_views
    return views


def _require_https_base(context: AdminContext, use_https: object) -> None:
    if use_https is True and context.public_url_https is None:
        raise InputError(
            "`use_https`: this deployment has no HTTPS address for downloads.",
            mend="Set OTA_HOOK_PUBLIC_URL_HTTPS.",
            field="use_https",
        )


async def _whole(identifiers: Sequence[str]) -> AsyncIterator[list[str]]:
    yield list(identifiers)


async def _stage(context: AdminContext, devices: Sequence[str] | None) -> tuple[str | None, DeviceSet | None]:
    """The name under which the list is written, and its members."""
    if devices is None:
        return None, None
    return await context.catalogue.stage_device_list(_whole(devices))


def _written_firmware(written: Sequence[CatalogueChange]) -> Firmware:
    return next(change.document for change in written if isinstance(change.document, Firmware))


# ---- upload


@streams.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Upload a firmware",
    description="Fields may come in any order. The file is stored and read back before the firmware exists; a refused"
    " or broken upload leaves nothing.",
    responses=documented(FirmwareOut, 201) | problems(409, 413, 415),
    openapi_extra=_UPLOAD_BODY,
)
async def upload_firmware(context: Context, request: Request) -> Response:
    firmware_id = context.new_id()

    def check_early(fields: dict[str, Any]) -> None:
        _require_https_base(context, fields.get("use_https"))
        snapshot = context.catalogue.current
        if "device_type" in fields:
            find_type(snapshot, fields["device_type"])
            if "version" in fields:
                check_firmware_version(snapshot, fields["device_type"], fields["version"])

    upload = await receive_upload(
        request, context.packages, firmware_id, max_bytes=context.max_upload_bytes, check_early=check_early
    )
    package = upload.package
    created = False

    async def create(earlier_ids: tuple[str, ...]) -> Response:
        nonlocal created
        firmware = await _create(context, firmware_id, upload, earlier_ids)
        created = firmware.id == firmware_id
        shown = await _views(request).show(firmware, context.catalogue.current)
        shown.notice = await _notice_of(context, firmware, sorted(set(upload.fields.devices or ()))) or None
        response = answer(
            shown,
            status=HTTPStatus.CREATED,
            etag=document_etag(firmware),
            location=f"/api/v1/firmware/{firmware.id}",
        )
        if not created:
            response.headers[REPLAYED_HEADER] = "true"
        return response

    try:
        fingerprint = fingerprint_of(upload.fields, package.filename, package.sha256)
        response = await create_once(context, request, fingerprint, firmware_id, create)
    except OtaHookError as exc:
        if not created and not (isinstance(exc, DependencyError) and exc.maybe_written):
            await context.packages.remove(firmware_id)
        raise
    # After any other error the firmware may exist: its package stays, and the sweep removes it if nothing names it.
    if not created:
        await context.packages.remove(firmware_id)
    return response


async def _create(
    context: AdminContext, firmware_id: str, upload: Upload, earlier_ids: tuple[str, ...] = ()
) -> Firmware:
    """Put the firmware into the catalogue, unless it is there under one of `earlier_ids`: then that one."""
    fields, package = upload
    _require_https_base(context, fields.use_https)
    device_list, members = await _stage(context, fields.devices)
    proposed = Firmware(
        id=firmware_id,
        name=fields.name or _default_name(package.filename),
        device_type=fields.device_type,
        version=fields.version,
        package=package,
        module=fields.module,
        device_list=device_list,
        tags=None if fields.tags is None else tuple(fields.tags),
        basis_points=fields.basis_points(),
        percentage_seed=secrets.randbits(64),
        source_versions=tuple(fields.source_versions),
        use_https=fields.use_https,
        enabled=fields.enabled,
        allow_downgrade=fields.allow_downgrade,
        created_at_ms=context.now_ms(),
    )
    earlier: Firmware | None = None

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        nonlocal earlier
        known = next((known for known in earlier_ids if known in snapshot.firmware), None)
        earlier = find_firmware(snapshot, known) if known else None
        return () if earlier else admit_firmware(snapshot, proposed, members)

    written = await commit(context.catalogue, decide)
    return earlier or _written_firmware(written)


async def _notice_of(context: AdminContext, firmware: Firmware, devices: Sequence[str]) -> str:
    """What keeps a firmware from devices that it is meant for, `devices` among them; empty where nothing does."""
    notices = []
    if rule_for(context.catalogue.current, firmware.device_type, firmware.module) is None:
        notices.append(
            f"No enabled rule of the device type {firmware.device_type!r} asks for the module {firmware.module!r}, so"
            " no device gets it: add one (`ota-hook rules add`)."
        )
    unknown = await context.devices.count_unknown(devices)
    if unknown:
        notices.append(f"Not registered: {unknown:,} of the {len(devices):,} listed.")
    known = await asyncio.gather(*map(context.devices.load_device, devices[:_TYPES_COMPARED]))
    strange = [device.identifier for device in known if device and device.device_type != firmware.device_type]
    if strange:
        named = ", ".join(map(repr, strange[:_DEVICES_NAMED])) + (", …" if len(strange) > _DEVICES_NAMED else "")
        notices.append(f"Of another device type, and so never offered it: {named}.")
    return " ".join(notices)


# ---- one firmware


@router.get("", summary="List firmware, oldest first", responses=documented(Page[FirmwareOut], 200) | problems())
async def list_firmware(context: Context, request: Request, query: Annotated[FirmwareQuery, Query()]) -> Response:
    wanted = {
        name: value
        for name in ("device_type", "module", "version", "enabled")
        if (value := getattr(query, name)) is not None
    }
    snapshot = context.catalogue.current
    found = (
        (firmware.id, firmware)
        for firmware in snapshot.firmware.values()
        if firmware.deleted_at_ms is None and all(getattr(firmware, name) == value for name, value in wanted.items())
    )
    page, next_cursor = page_of(found, query)
    views = _views(request)
    items = [await views.show(firmware, snapshot) for firmware in page]
    return answer(Page[FirmwareOut](items=items, next_cursor=next_cursor))


@router.get(
    "/{firmware_id}",
    summary="Read a firmware, with how often each outcome happened",
    responses=documented(FirmwareDetail, 200) | problems(404, 410),
)
async def read_firmware(context: Context, request: Request, firmware_id: str) -> Response:
    snapshot = context.catalogue.current
    firmware = find_firmware(snapshot, firmware_id)
    counters = await context.offers.load_counters([firmware.id])
    shown = await _views(request).show(firmware, snapshot)
    detail = FirmwareDetail(**shown.model_dump(), counters=counters.get(firmware.id, {}))
    (stop,) = await context.stops.load_stops([firmware.id])
    if stop is not None and not firmware.enabled:
        detail.stopped = FirmwareStopOut(at=rfc3339(stop.at_ms), reason=stop.reason)
    # The tag is for If-Match. It does not follow the counters, so that no reader is told that nothing changed.
    return answer(detail, etag=document_etag(firmware))


@router.patch(
    "/{firmware_id}",
    summary="Change a firmware (JSON merge patch): all but file, device type, version and module",
    responses=documented(FirmwareOut, 200) | problems(404, 409, 410, 412),
    openapi_extra=patch_body(FirmwareSettings),
)
async def patch_firmware(
    context: Context,
    request: Request,
    firmware_id: str,
    patch: Annotated[dict[str, Any], Body()],
    conditions: Conditions,
) -> Response:
    current = find_firmware(context.catalogue.current, firmware_id)
    conditions.require(document_etag(current))
    fields = _patched(current, patch)
    if "use_https" in patch:
        _require_https_base(context, fields.use_https)
    device_list, members = await _stage(context, fields.devices)

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        old = find_firmware(snapshot, firmware_id)
        conditions.require(document_etag(old))
        proposed = _with_settings(old, _patched(old, patch))
        if "devices" not in patch:
            return admit_firmware(snapshot, proposed, None)
        return admit_firmware(snapshot, replace(proposed, device_list=device_list), members)

    firmware = _written_firmware(await commit(context.catalogue, decide))
    shown = await _views(request).show(firmware, context.catalogue.current)
    return answer(shown, etag=document_etag(firmware))


def _patched(firmware: Firmware, patch: dict[str, Any]) -> FirmwareSettings:
    return apply_patch(firmware_settings(firmware), patch, FirmwareSettings, FirmwareOut, nullable=_NULLABLE)


def _with_settings(firmware: Firmware, fields: FirmwareSettings) -> Firmware:
    return replace(
        firmware,
        name=fields.name or _default_name(firmware.package.filename),
        enabled=fields.enabled,
        tags=None if fields.tags is None else tuple(fields.tags),
        basis_points=fields.basis_points(),
        source_versions=tuple(fields.source_versions),
        use_https=fields.use_https,
        allow_downgrade=fields.allow_downgrade,
    )


def _default_name(filename: str) -> str:
    return file_stem(filename)[:NAME_MAX_CHARS]


@router.delete(
    "/{firmware_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a firmware; its history stays, its address answers 410. Deleting it again changes nothing",
    responses=documented(None, 204) | problems(404, 412),
)
async def delete_firmware(context: Context, firmware_id: str, conditions: Conditions) -> Response:
    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        firmware = snapshot.firmware.get(firmware_id)
        if firmware is not None and firmware.deleted_at_ms is not None:
            return ()
        etag = current_etag(snapshot, DocumentKind.FIRMWARE, firmware_id, firmware)
        if etag is not None:
            conditions.require(etag)
        return remove_firmware(snapshot, firmware_id, now_ms=context.now_ms())

    await commit(context.catalogue, decide)
    # Each of these may be repeated: who asks again after a failure finds them done.
    await context.offers.cancel_offers(firmware_id, settled_at_ms=context.now_ms())
    await context.attempts.reset_firmware(firmware_id)
    await context.packages.remove(firmware_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


# ---- its device list


@streams.get(
    "/{firmware_id}/devices",
    summary="The device list, one JSON object a line; with `Accept: text/csv` as CSV",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {}, CSV: {}}}, **problems(404, 406, 410)},
)
async def export_device_list(context: Context, request: Request, firmware_id: str) -> Response:
    media_type = choose_accepted(request, (NDJSON, CSV))
    firmware = find_firmware(context.catalogue.current, firmware_id)
    if firmware.device_list is None:
        raise NotFound(_EVERYONE if not firmware.has_selector else "This firmware has no device list.")
    shown = f"{CSV}; charset=utf-8" if media_type == CSV else NDJSON
    stored = context.catalogue.read_device_list(firmware.device_list)
    # A list that is gone is refused while there is a status to say so; one that breaks off ends without its last chunk.
    first: list[str] = await anext(stored, [])
    return StreamingResponse(_list_lines(first, stored, media_type), media_type=shown)


async def _list_lines(first: list[str], rest: AsyncGenerator[list[str]], media_type: str) -> AsyncIterator[bytes]:
    yield list_header(media_type) + write_list(first, media_type)
    async with aclosing(rest) as pieces:
        async for piece in pieces:
            yield write_list(piece, media_type)


@streams.put(
    "/{firmware_id}/devices",
    summary="Replace the device list; each line is an identifier or an object with one, or CSV with such a column",
    responses=documented(DeviceListOut, 200) | problems(404, 409, 410, 412, 415),
    openapi_extra=_LINES_BODY,
)
async def put_device_list(context: Context, request: Request, firmware_id: str, conditions: Conditions) -> Response:
    given = _GivenDevices(context, request)
    firmware = find_mendable_firmware(context.catalogue.current, firmware_id)
    conditions.require(document_etag(firmware))
    return await _set_list(context, firmware_id, given, given.identifiers(), conditions)


@streams.post(
    "/{firmware_id}/devices",
    summary="Add to the device list",
    responses=documented(DeviceListOut, 200) | problems(404, 409, 410, 412, 415),
    openapi_extra=_LINES_BODY,
)
async def add_to_device_list(context: Context, request: Request, firmware_id: str, conditions: Conditions) -> Response:
    given = _GivenDevices(context, request)
    firmware = find_firmware(context.catalogue.current, firmware_id)
    conditions.require(document_etag(firmware))
    if not firmware.has_selector:
        raise ConflictError(_EVERYONE, mend="PUT a list to restrict it.")
    stored = context.catalogue.read_device_list(firmware.device_list or "")

    async def joined() -> AsyncGenerator[list[str]]:
        async with aclosing(stored) as pieces:
            async for piece in pieces:
                yield piece
        async with aclosing(given.identifiers()) as pieces:
            async for piece in pieces:
                yield piece

    return await _set_list(context, firmware_id, given, joined(), conditions, adds_to=firmware)


class _GivenDevices:
    """The identifiers of a body, counted on their way: how many, and how many of them are not registered."""

    def __init__(self, context: AdminContext, request: Request) -> None:
        self._context = context
        self._request = request
        self._media_type = require_lines(request)
        self.unknown = 0

    async def identifiers(self) -> AsyncGenerator[list[str]]:
        piece: list[str] = []
        seen = 0
        lines = ListLines(self._media_type)
        async with OneBehind(self._count) as counting:
            async for numbered in read_lines(self._request):
                read = lines.read(numbered)
                seen += len(read)
                if seen > LISTED_DEVICES_MAX:
                    raise InputError(f"A device list has at most {LISTED_DEVICES_MAX} entries.")
                piece += read
                if len(piece) >= _BATCH:
                    await counting.start(piece)
                    yield piece
                    piece = []
            lines.end()
            await counting.start(piece)
            await counting.finish()
        yield piece

    async def _count(self, piece: list[str]) -> None:
        self.unknown += await self._context.devices.count_unknown(piece)


async def _set_list(
    context: AdminContext,
    firmware_id: str,
    given: _GivenDevices,
    identifiers: AsyncGenerator[list[str]],
    conditions: Preconditions,
    *,
    adds_to: Firmware | None = None,
) -> Response:
    """Write the list and make it the firmware's. It adds to the list of `adds_to`, which must be the newest still."""
    async with aclosing(identifiers) as pieces:
        name, members = await context.catalogue.stage_device_list(pieces)

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        old = find_mendable_firmware(snapshot, firmware_id) if adds_to is None else find_firmware(snapshot, firmware_id)
        conditions.require(document_etag(old))
        if adds_to is not None and (old.device_list != adds_to.device_list or not old.has_selector):
            raise ConflictError("The device list was changed meanwhile.", mend="Send it again.")
        return admit_firmware(snapshot, replace(old, device_list=name), members)

    changed = _written_firmware(await commit(context.catalogue, decide))
    return answer(DeviceListOut(count=len(members), unknown=given.unknown), etag=document_etag(changed))
