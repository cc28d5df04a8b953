"""Who may use the API: the admin token, where it is kept, and the check that comes before any body is read."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from admin_api.context import TokenVerifier
from admin_api.problems import problem_response
from ota_hook.errors import ConfigurationError

TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file's name
TOKEN_MIN_CHARS: Final = 16
TOKEN_MAX_CHARS: Final = 1024
API_PREFIX: Final = "/api/v1"
PRINCIPAL_KEY: Final = "ota_hook.principal"
"""Where the connection's scope says whose token it was."""


class AdminToken:
    """The deployment's one token. Implements context.TokenVerifier."""

    def __init__(self, token: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()

    def verify(self, token: str) -> str | None:
        # Digests have one length, so that the comparison does not tell the token's.
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        return "admin" if hmac.compare_digest(digest, self._digest) else None


class RequireToken:
    """ASGI: everything under /api/v1, what is not there included, needs a good bearer token before a byte is read."""

    def __init__(self, app: ASGIApp, tokens: TokenVerifier) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_guarded(scope["path"]):
            principal = self._principal(scope)
            if principal is None:
                refusal = problem_response(
                    HTTPStatus.UNAUTHORIZED,
                    "A good bearer token is needed.",
                    mend="Send `Authorization: Bearer` with the admin token.",
                    headers={"WWW-Authenticate": 'Bearer realm="ota-hook"'},
                )
                await refusal(scope, receive, send)
                return
            scope[PRINCIPAL_KEY] = principal
        await self._app(scope, receive, send)

    def _principal(self, scope: Scope) -> str | None:
        given = Headers(scope=scope).getlist("authorization")
        if len(given) != 1:
            return None
        method, _, token = given[0].partition(" ")
        return self._tokens.verify(token.strip()) if method.lower() == "bearer" else None


def _is_guarded(path: str) -> bool:
    return path == API_PREFIX or path.startswith(API_PREFIX + "/")


def load_admin_token(data_dir: Path, configured: str | None) -> tuple[str, bool]:
    """The token in force and whether it was made just now (the caller then prints it, once).

    A configured token that differs from the kept one replaces it. ConfigurationError where it is shorter than 16 or
    longer than 1024 characters, not printable ASCII without spaces, or where the file can't be read or written.
    """
    path = data_dir / TOKEN_FILE
    try:
        kept = _read_token(path)
        if configured is not None:
            _check_token(configured, "OTA_HOOK_ADMIN_TOKEN")
            if configured != kept:
                _write_token(path, configured)
            return configured, False
        if kept is not None:
            _check_token(kept, f"The token in {path}")
            return kept, False
        made = secrets.token_urlsafe(32)
        return (made, True) if _write_token(path, made, only_new=True) else (path.read_text("ascii").strip(), False)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"The admin token in {path} can't be kept: {exc}.") from exc


def _check_token(token: str, what: str) -> None:
    if not TOKEN_MIN_CHARS <= len(token) <= TOKEN_MAX_CHARS or not all("!" <= c <= "~" for c in token):
        raise ConfigurationError(
            f"{what} must have {TOKEN_MIN_CHARS} to {TOKEN_MAX_CHARS} printable ASCII characters without spaces.",
            mend="Unset it and one is made.",
        )


def _read_token(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        return None


def _write_token(path: Path, token: str, *, only_new: bool = False) -> bool:
    """Write it whole or not at all, readable by the owner alone. With `only_new`, False where one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{TOKEN_FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        if only_new:
            os.link(draft, path)  # unlike a rename it fails where another process was first
        else:
            draft.rename(path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
