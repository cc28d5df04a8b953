"""`/device-types`."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from admin_api.answers import answer, answer_read, commit, documented, patch_body, problems
from admin_api.bodies import JsonRoute
from admin_api.conditions import Conditions, Preconditions, current_etag, document_etag
from admin_api.context import AdminContext, Context
from admin_api.documents.device_types import (
    DeviceTypeFields,
    DeviceTypeOut,
    NewDeviceType,
    VersionCountOut,
    VersionCountsOut,
    device_type_fields,
)
from admin_api.documents.fields import Key
from admin_api.idempotency import answer_once, fingerprint_of
from admin_api.pagination import MAX_LIMIT, Page, PageQuery, page_of
from admin_api.patches import apply_patch
from ota_hook._packed import VersionCounter
from ota_hook.admission.device_types import admit_type, remove_type, restore_type
from ota_hook.admission.refused import refuse_unusable
from ota_hook.admission.texts import check_key
from ota_hook.check_report import rule_for
from ota_hook.errors import ConflictError, InputError, NotFound
from ota_hook.model import DEFAULT_MODULE, CatalogueChange, DeviceType, DocumentKind, Rule
from ota_hook.snapshot import Snapshot

router = APIRouter(prefix="/device-types", tags=["device types"], route_class=JsonRoute)

_NAMED_DEVICES: Final = 4


class VersionsQuery(BaseModel):
    """Which version attribute is counted, and how many versions are told apart."""

    model_config = ConfigDict(extra="forbid")

    attribute: Annotated[str | None, Field(description="By default the one of the module's rule.")] = None
    module: Annotated[Key, Field(description="Its rule names the attribute.")] = DEFAULT_MODULE
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="Versions; the others are `other`.")] = 100


def _find(snapshot: Snapshot, key: str) -> DeviceType:
    device_type = snapshot.types.get(key)
    if device_type is None:
        refuse_unusable(snapshot, DocumentKind.DEVICE_TYPE, key)
        raise NotFound(f"There is no device type {key[:64]!r}.")
    return device_type


def _location(key: str) -> str:
    return f"/api/v1/device-types/{key}"


def _answer(device_type: DeviceType, *, created: bool) -> Response:
    return answer(
        DeviceTypeOut.of(device_type),
        status=HTTPStatus.CREATED if created else HTTPStatus.OK,
        etag=document_etag(device_type),
        location=_location(device_type.key) if created else None,
    )


def _written_type(written: Sequence[CatalogueChange]) -> DeviceType:
    return next(change.document for change in written if isinstance(change.document, DeviceType))


@router.get("", summary="List device types", responses=documented(Page[DeviceTypeOut], 200) | problems())
async def list_device_types(context: Context, query: Annotated[PageQuery, Query()]) -> Response:
    types, next_cursor = page_of(context.catalogue.current.types.items(), query)
    return answer(Page[DeviceTypeOut](items=[DeviceTypeOut.of(t) for t in types], next_cursor=next_cursor))


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Create a device type with its default rule",
    responses=documented(DeviceTypeOut, 201) | problems(409),
)
async def create_device_type(context: Context, request: Request, body: NewDeviceType) -> Response:
    proposed = body.to_device_type(body.key, now_ms=context.now_ms())
    rule_id = context.new_id()

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        if proposed.key in snapshot.types:
            raise ConflictError(f"The device type {proposed.key!r} exists already.", field="key")
        refuse_unusable(snapshot, DocumentKind.DEVICE_TYPE, proposed.key)
        return admit_type(snapshot, proposed, default_rule_id=rule_id)

    async def create() -> Response:
        return _answer(_written_type(await commit(context.catalogue, decide)), created=True)

    return await answer_once(context, request, fingerprint_of(body), create)


@router.get("/{key}", summary="Read a device type", responses=documented(DeviceTypeOut, 200, 304) | problems(404, 412))
async def read_device_type(context: Context, key: str, conditions: Conditions) -> Response:
    device_type = _find(context.catalogue.current, key)
    return answer_read(DeviceTypeOut.of(device_type), document_etag(device_type), conditions)


@router.get(
    "/{key}/versions",
    summary="Count the devices of a type by the version that they run",
    description="Reads every device: a million take some seconds.",
    responses=documented(VersionCountsOut, 200) | problems(404),
)
async def count_versions(context: Context, key: str, query: Annotated[VersionsQuery, Query()]) -> Response:
    snapshot = context.catalogue.current
    attribute = _choose_attribute(snapshot, _find(snapshot, key), query)
    counter = VersionCounter(key, attribute)
    async for _, bucket in context.devices.scan_buckets():
        counter.add(bucket)
    by_count = sorted(counter.counts().items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [VersionCountOut(version=version, devices=devices) for version, devices in by_count[: query.limit]]
    return answer(
        VersionCountsOut(
            device_type=key,
            attribute=attribute,
            devices=counter.devices,
            without=counter.without,
            other=counter.other + sum(devices for _, devices in by_count[query.limit :]),
            unreadable=counter.unreadable,
            versions=shown,
        )
    )


def _choose_attribute(snapshot: Snapshot, device_type: DeviceType, query: VersionsQuery) -> str:
    if query.attribute is None:
        rule = rule_for(snapshot, device_type.key, query.module)
        if rule is None:
            raise InputError(
                f"No enabled rule of the device type {device_type.key!r} is about the module {query.module!r}.",
                mend="Name the attribute.",
                field="module",
            )
        return rule.version_attribute
    if query.attribute not in device_type.version_attributes:
        raise InputError(
            f"{query.attribute!r} is not a version attribute of the device type {device_type.key!r}"
            f" ({', '.join(device_type.version_attributes)}).",
            field="attribute",
        )
    return query.attribute


@router.put(
    "/{key}",
    summary="Create or replace a device type",
    responses=documented(DeviceTypeOut, 200, 201) | problems(409, 412),
)
async def put_device_type(context: Context, key: str, body: DeviceTypeFields, conditions: Conditions) -> Response:
    try:
        check_key(key)
    except InputError as exc:
        raise InputError(exc.detail, field="key") from exc
    proposed = body.to_device_type(key, now_ms=context.now_ms())
    return await _replace(context, proposed, conditions)


async def _replace(context: AdminContext, proposed: DeviceType, conditions: Preconditions) -> Response:
    rule_id = context.new_id()
    tasks = await context.tasks.load_tasks()

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        old = snapshot.types.get(proposed.key)
        conditions.require(current_etag(snapshot, DocumentKind.DEVICE_TYPE, proposed.key, old))
        return admit_type(snapshot, proposed, default_rule_id=rule_id, tasks=tasks)

    device_type = _written_type(await commit(context.catalogue, decide))
    return _answer(device_type, created=device_type.revision == 1)


@router.patch(
    "/{key}",
    summary="Change a device type (JSON merge patch)",
    responses=documented(DeviceTypeOut, 200) | problems(404, 409, 412),
    openapi_extra=patch_body(DeviceTypeFields),
)
async def patch_device_type(
    context: Context, key: str, patch: Annotated[dict[str, Any], Body()], conditions: Conditions
) -> Response:
    rule_id = context.new_id()
    tasks = await context.tasks.load_tasks()

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        old = _find(snapshot, key)
        conditions.require(document_etag(old))
        fields = apply_patch(device_type_fields(old), patch, DeviceTypeFields, DeviceTypeOut)
        proposed = fields.to_device_type(key, now_ms=old.created_at_ms)
        return admit_type(snapshot, proposed, default_rule_id=rule_id, tasks=tasks)

    return _answer(_written_type(await commit(context.catalogue, decide)), created=False)


@router.delete(
    "/{key}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a device type that nothing refers to, and its rules",
    responses=documented(None, 204) | problems(404, 409, 412),
)
async def delete_device_type(context: Context, key: str, conditions: Conditions) -> Response:
    deleted = _find(context.catalogue.current, key)
    rules: list[Rule] = []
    devices = await _some_devices(context, key)
    tasks = await context.tasks.load_tasks()

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        nonlocal deleted, rules
        deleted = _find(snapshot, key)
        rules = [rule for rule in snapshot.rules.values() if rule.device_type == key]
        conditions.require(document_etag(deleted))
        return remove_type(snapshot, key, devices=devices, tasks=tasks)

    await commit(context.catalogue, decide)
    # Devices may have been on their way while we looked; from now on their type is not known.
    if late := await _some_devices(context, key):
        await commit(context.catalogue, lambda snapshot: restore_type(snapshot, deleted, rules))
        raise ConflictError(
            f"Devices of the type {key!r} came while it was deleted ({', '.join(late)}): it is there again.",
            mend="Delete or move those first.",
        )
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _some_devices(context: AdminContext, device_type: str) -> list[str]:
    """Some devices of a type, none where there are none.

    One that can't be read counts: its next report may mend it, under whatever type has the key by then.
    """
    devices: list[str] = []
    async for device in context.devices.scan_devices(device_type=device_type, on_unreadable=devices.append):
        devices.append(device.identifier)
        if len(devices) >= _NAMED_DEVICES:
            break
    return devices
