"""Which addresses can be read. Knows no route."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from admin_api.problems import problem_response


class RequireUtf8:
    """ASGI: an address whose bytes are not UTF-8 is 400. What comes after would take U+FFFD for them: another name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_utf8(scope.get("raw_path", b"") + scope["query_string"]):
            refusal = problem_response(HTTPStatus.BAD_REQUEST, "The address must be UTF-8, percent-encoded.")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_utf8(quoted: bytes) -> bool:
    try:
        unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError:
        return False
    return True
