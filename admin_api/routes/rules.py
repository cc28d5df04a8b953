"""`/rules`."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Query, Request, Response

from admin_api.answers import answer, answer_read, commit, documented, patch_body, problems
from admin_api.bodies import JsonRoute
from admin_api.conditions import Conditions, current_etag, document_etag
from admin_api.context import Context
from admin_api.documents.rules import RuleFields, RuleOut, rule_fields
from admin_api.idempotency import answer_once, fingerprint_of
from admin_api.pagination import Page, PageQuery, page_of
from admin_api.patches import apply_patch
from ota_hook.admission.refused import refuse_unusable
from ota_hook.admission.rules import admit_rule, find_identical_rule
from ota_hook.admission.texts import check_ulid
from ota_hook.errors import InputError, NotFound
from ota_hook.model import CatalogueChange, DeviceType, DocumentKind, Rule
from ota_hook.snapshot import Snapshot

router = APIRouter(prefix="/rules", tags=["rules"], route_class=JsonRoute)

_NOTICE: Final = (
    "The version attribute {!r} is new to the device type: devices must report once more before it is known of them."
)


class RuleQuery(PageQuery):
    """Which rules."""

    device_type: str | None = None
    event: str | None = None
    module: str | None = None
    enabled: bool | None = None


def _find(snapshot: Snapshot, rule_id: str) -> Rule:
    rule = snapshot.rules.get(rule_id)
    if rule is None:
        refuse_unusable(snapshot, DocumentKind.RULE, rule_id)
        raise NotFound(f"There is no rule {rule_id[:64]!r}.")
    return rule


def _answer_written(written: Sequence[CatalogueChange]) -> Response:
    rule = next(change.document for change in written if isinstance(change.document, Rule))
    widened = any(isinstance(change.document, DeviceType) for change in written)
    created = rule.revision == 1
    return answer(
        RuleOut.of(rule, notice=_NOTICE.format(rule.version_attribute) if widened else None),
        status=HTTPStatus.CREATED if created else HTTPStatus.OK,
        etag=document_etag(rule),
        location=f"/api/v1/rules/{rule.id}" if created else None,
    )


@router.get("", summary="List rules", responses=documented(Page[RuleOut], 200) | problems())
async def list_rules(context: Context, query: Annotated[RuleQuery, Query()]) -> Response:
    wanted = {
        name: value
        for name in ("device_type", "event", "module", "enabled")
        if (value := getattr(query, name)) is not None
    }
    found = (
        (rule.id, rule)
        for rule in context.catalogue.current.rules.values()
        if all(getattr(rule, name) == value for name, value in wanted.items())
    )
    rules, next_cursor = page_of(found, query)
    return answer(Page[RuleOut](items=[RuleOut.of(rule) for rule in rules], next_cursor=next_cursor))


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Create a rule; one that says the same is returned",
    responses=documented(RuleOut, 200, 201) | problems(409),
)
async def create_rule(context: Context, request: Request, body: RuleFields) -> Response:
    proposed = body.to_rule(context.new_id(), now_ms=context.now_ms())

    async def create() -> Response:
        same: Rule | None = None

        def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
            nonlocal same
            same = find_identical_rule(snapshot, proposed)
            return () if same else admit_rule(snapshot, proposed)

        written = await commit(context.catalogue, decide)
        if same is not None:
            return answer(RuleOut.of(same), etag=document_etag(same))
        return _answer_written(written)

    return await answer_once(context, request, fingerprint_of(body), create)


@router.get("/{rule_id}", summary="Read a rule", responses=documented(RuleOut, 200, 304) | problems(404, 412))
async def read_rule(context: Context, rule_id: str, conditions: Conditions) -> Response:
    rule = _find(context.catalogue.current, rule_id)
    return answer_read(RuleOut.of(rule), document_etag(rule), conditions)


@router.put(
    "/{rule_id}",
    summary="Create or replace a rule under an id of yours (a ULID)",
    responses=documented(RuleOut, 200, 201) | problems(409, 412),
)
async def put_rule(context: Context, rule_id: str, body: RuleFields, conditions: Conditions) -> Response:
    try:
        check_ulid(rule_id)
    except InputError as exc:
        raise InputError(exc.detail, field="id") from exc
    proposed = body.to_rule(rule_id, now_ms=context.now_ms())

    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        old = snapshot.rules.get(rule_id)
        conditions.require(current_etag(snapshot, DocumentKind.RULE, rule_id, old))
        return admit_rule(snapshot, proposed)

    return _answer_written(await commit(context.catalogue, decide))


@router.patch(
    "/{rule_id}",
    summary="Change a rule (JSON merge patch); its device type can't change",
    responses=documented(RuleOut, 200) | problems(404, 409, 412),
    openapi_extra=patch_body(RuleFields),
)
async def patch_rule(
    context: Context, rule_id: str, patch: Annotated[dict[str, Any], Body()], conditions: Conditions
) -> Response:
    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        old = _find(snapshot, rule_id)
        conditions.require(document_etag(old))
        fields = apply_patch(rule_fields(old), patch, RuleFields, RuleOut)
        return admit_rule(snapshot, fields.to_rule(rule_id, now_ms=old.created_at_ms))

    return _answer_written(await commit(context.catalogue, decide))


@router.delete(
    "/{rule_id}",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Delete a rule",
    responses=documented(None, 204) | problems(404, 412),
)
async def delete_rule(context: Context, rule_id: str, conditions: Conditions) -> Response:
    def decide(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        etag = current_etag(snapshot, DocumentKind.RULE, rule_id, snapshot.rules.get(rule_id))
        if etag is None:
            raise NotFound(f"There is no rule {rule_id[:64]!r}.")
        conditions.require(etag)
        return (CatalogueChange(DocumentKind.RULE, rule_id, None),)

    await commit(context.catalogue, decide)
    return Response(status_code=HTTPStatus.NO_CONTENT)
