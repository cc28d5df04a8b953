"""`Idempotency-Key`: a POST that is sent again under its key is answered as the first time, and done once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request, Response
from pydantic import BaseModel

from admin_api.auth import PRINCIPAL_KEY
from admin_api.context import AdminContext
from ota_hook.errors import DependencyError, InputError, OtaHookError
from ota_hook.ports.idempotency import Replay

KEY_HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"
KEY_MAX_CHARS: Final = 255
_KEPT_HEADERS: Final = ("content-type", "etag", "location")


def fingerprint_of(document: BaseModel, *more: str) -> str:
    """What two requests must share to count as the same: the meaning of the body, not its bytes."""
    text = "\0".join((document.model_dump_json(), *more))
    return hashlib.sha256(text.encode()).hexdigest()


async def answer_once(
    context: AdminContext, request: Request, fingerprint: str, answer: Callable[[], Awaitable[Response]]
) -> Response:
    """Run `answer`, or replay what it gave under the request's key. Only success is kept: a refusal changed nothing."""
    return await create_once(context, request, fingerprint, "", lambda _: answer())


async def create_once(
    context: AdminContext,
    request: Request,
    fingerprint: str,
    new_id: str,
    create: Callable[[tuple[str, ...]], Awaitable[Response]],
) -> Response:
    """`answer_once` for what is created under an id of ours.

    `create` gets the ids that earlier requests under the key may have created: it looks for these first.
    """
    key = _key_of(request)
    if key is None:
        return await create(())
    token = hashlib.sha256(str(request.scope[PRINCIPAL_KEY]).encode()).hexdigest()
    route = f"{request.method} {request.url.path}"
    begun = await context.idempotency.begin(token, route, key, fingerprint, new_id=new_id)
    if isinstance(begun, Replay):
        return Response(begun.body, begun.status, {**begun.headers, REPLAYED_HEADER: "true"})
    try:
        response = await create(begun.earlier_ids)
    except BaseException as exc:
        with contextlib.suppress(DependencyError):  # the store frees it by itself, within a minute
            await context.idempotency.abandon(begun, maybe_written=_may_have_written(exc))
        raise
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    body = bytes(response.body)
    try:
        await context.idempotency.finish(begun, status=response.status_code, headers=headers, body=body)
    except DependencyError:
        with contextlib.suppress(DependencyError):
            await context.idempotency.abandon(begun, maybe_written=True)
        raise
    return response


def _may_have_written(exc: BaseException) -> bool:
    if isinstance(exc, DependencyError):
        return exc.maybe_written
    return not isinstance(exc, OtaHookError)


def _key_of(request: Request) -> str | None:
    key = request.headers.get(KEY_HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= KEY_MAX_CHARS or not all("!" <= c <= "~" for c in key):
        raise InputError(f"An {KEY_HEADER} has 1 to {KEY_MAX_CHARS} visible ASCII characters.", field=KEY_HEADER)
    return key
