"""Answers made of documents, and the routes' shared words for OpenAPI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import Response
from pydantic import BaseModel

from admin_api.conditions import Preconditions
from ota_hook.model import CatalogueChange
from ota_hook.ports.catalogue import Catalogue
from ota_hook.snapshot import Snapshot

_PROBLEM_CONTENT: Final = {
    "application/problem+json": {
        "schema": {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "mend": {"type": "string"},
                "errors": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
                    },
                },
            },
        }
    }
}

_MEANINGS: Final = {
    400: "The request can't be read.",
    401: "No good token.",
    404: "It does not exist.",
    406: "It is not available in what Accept names.",
    409: "It contradicts what exists.",
    410: "It was deleted.",
    412: "It is not as If-Match or If-None-Match expects.",
    413: "Too large.",
    415: "The body's media type is not one that is read.",
    416: "No requested range lies in the file.",
    422: "It is not acceptable as it stands.",
    503: "Redis or the package store does not answer; try again.",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """The problems that a route may answer, for OpenAPI; 401, 422 and 503 are always among them."""
    return {
        status: {"description": _MEANINGS[status], "content": _PROBLEM_CONTENT}
        for status in sorted({*statuses, 401, 422, 503})
    }


def documented(model: type[BaseModel] | None, *statuses: int) -> Responses:
    """Success with `model`, for OpenAPI."""
    descriptions = {200: "Done.", 201: "Created.", 202: "Accepted.", 204: "Deleted.", 304: "Unchanged."}
    return {
        status: {"description": descriptions[status]} | ({"model": model} if model and status < 204 else {})
        for status in statuses
    }


def patch_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a merge patch of `model`."""
    content = {"schema": model.model_json_schema() | {"required": []}}
    media_types = ("application/merge-patch+json", "application/json")
    return {"requestBody": {"required": True, "content": dict.fromkeys(media_types, content)}}


def answer(
    document: BaseModel, *, status: int = HTTPStatus.OK, etag: str | None = None, location: str | None = None
) -> Response:
    """The document as JSON."""
    response = Response(document.model_dump_json(by_alias=True), status, media_type="application/json")
    if etag is not None:
        response.headers["ETag"] = etag
    if location is not None:
        response.headers["Location"] = location
    return response


def answer_read(document: BaseModel, etag: str, conditions: Preconditions) -> Response:
    """The document, or 304 where the client has it; 412 where If-Match is about another state."""
    if conditions.is_fresh(etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    conditions.require(etag)
    return answer(document, etag=etag)


async def commit(
    catalogue: Catalogue, decide: Callable[[Snapshot], Sequence[CatalogueChange]]
) -> Sequence[CatalogueChange]:
    """Change the catalogue; returns the changes that were written in the end (`decide` may have run more than once)."""
    written: Sequence[CatalogueChange] = ()

    def note(snapshot: Snapshot) -> Sequence[CatalogueChange]:
        nonlocal written
        written = decide(snapshot)
        return written

    await catalogue.change(note)
    return written
