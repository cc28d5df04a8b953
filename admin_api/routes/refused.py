"""`/refused-documents`: what is stored in the catalogue and can't be used."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from admin_api.answers import answer, documented, problems
from admin_api.bodies import JsonRoute
from admin_api.context import Context
from admin_api.documents.refused import RefusedDocumentOut
from admin_api.pagination import Page, PageQuery, page_of

router = APIRouter(prefix="/refused-documents", tags=["refused documents"], route_class=JsonRoute)


@router.get(
    "",
    summary="List what is stored and can't be used, with the reasons; the last good document is in force, if any",
    responses=documented(Page[RefusedDocumentOut], 200) | problems(),
)
async def list_refused_documents(context: Context, query: Annotated[PageQuery, Query()]) -> Response:
    found = (
        (f"{document.kind}/{document.shown_key}", document) for document in context.catalogue.current.refused.values()
    )
    page, next_cursor = page_of(found, query)
    items = [RefusedDocumentOut.of(document) for document in page]
    return answer(Page[RefusedDocumentOut](items=items, next_cursor=next_cursor))
