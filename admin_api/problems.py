"""Every error as problem JSON (RFC 9457): the one table from our errors to HTTP statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, get_type_hints

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from admin_api.faults import describe_fault
from ota_hook.errors import ConflictError, DependencyError, InputError, NotFound, OtaHookError

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 5
_ERRORS_MAX: Final = 100
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def problem_response(
    status: int,
    detail: str,
    *,
    mend: str = "",
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document. `errors` names fields; `mend` says what to do; both are left out where empty."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if mend:
        document["mend"] = mend
    if errors:
        document["errors"] = list(errors)
    # A refused text may hold lone surrogates, which JSON's UTF-8 can't: what was quoted of it is replaced.
    body = orjson.dumps(_printable(document))
    return Response(body, status, headers=dict(headers or {}), media_type=PROBLEM_MEDIA_TYPE)


def status_of(error: OtaHookError) -> int:
    """The HTTP status that says what the caller may do about `error`."""
    match error:
        case InputError():
            return HTTPStatus.UNPROCESSABLE_ENTITY
        case NotFound(gone=gone):
            return HTTPStatus.GONE if gone else HTTPStatus.NOT_FOUND
        case ConflictError(stale=stale):
            return HTTPStatus.PRECONDITION_FAILED if stale else HTTPStatus.CONFLICT
        case DependencyError():
            return HTTPStatus.SERVICE_UNAVAILABLE
        case _:
            return HTTPStatus.INTERNAL_SERVER_ERROR


def error_response(error: OtaHookError) -> Response:
    """Our own error as a problem."""
    status = status_of(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return _internal_error()
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    field = getattr(error, "field", None)
    errors = [{"field": field, "detail": error.detail}] if field else []
    return problem_response(status, error.detail, mend=error.mend, errors=errors, headers=headers)


def install_problems(app: FastAPI) -> None:
    """Answer every error of `app`, the framework's own too, with problem JSON."""

    async def on_own(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, OtaHookError)  # noqa: S101 - what the registration below says
        return error_response(exc)

    async def on_invalid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)  # noqa: S101
        return _invalid(exc, _parameters_of(request))

    async def on_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, StarletteHTTPException)  # noqa: S101
        headers = exc.headers
        if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": ", ".join(_allowed_methods(request))}
        return problem_response(exc.status_code, _http_detail(exc), headers=headers)

    async def on_disconnect(_: Request, exc: Exception) -> Response:
        return problem_response(HTTPStatus.BAD_REQUEST, "The client went away.")  # nobody reads it

    async def on_bug(_: Request, exc: Exception) -> Response:
        return _internal_error()

    app.add_exception_handler(OtaHookError, on_own)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_bug)


def too_large(detail: str) -> HTTPException:
    """413, to be raised as soon as a bound is passed."""
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)


def unsupported_media_type(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)


def _internal_error() -> Response:
    return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; its log says how.")


def _allowed_methods(request: Request) -> list[str]:
    """The methods of every route at this address: the framework names those of the first one alone."""
    scope, routes = request.scope, request.app.routes
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def _http_detail(exc: StarletteHTTPException) -> str:
    if exc.status_code == HTTPStatus.NOT_FOUND and exc.detail == "Not Found":
        return "There is nothing at this address."
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return "This address does not take that method."
    return str(exc.detail)


def _parameters_of(request: Request) -> list[str]:
    """The names in the query that the request's route reads: those of the model that it calls `query`."""
    model = get_type_hints(request.scope["endpoint"]).get("query")
    return list(getattr(model, "model_fields", ()))


def _invalid(exc: RequestValidationError, parameters: Sequence[str]) -> Response:
    faults = [describe_fault(fault, parameters=parameters) for fault in exc.errors()[:_ERRORS_MAX]]
    detail = faults[0][1] if faults else "The request is not valid."
    errors = [{"field": field, "detail": said} for field, said in faults]
    return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def _printable(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {key: _printable(item) for key, item in value.items()}
        case list():
            return [_printable(item) for item in value]
        case _:
            return value
