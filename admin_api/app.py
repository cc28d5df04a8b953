"""The admin role's HTTP application: the API under /api/v1, downloads, health.

Middleware from the outside in: an unread body ends the connection, then the token, then an address that can be read,
then the bound on heavy requests, then the routes.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, FastAPI

from admin_api import downloads
from admin_api.addresses import RequireUtf8
from admin_api.auth import API_PREFIX, RequireToken
from admin_api.bodies import CloseUnread
from admin_api.context import AdminContext
from admin_api.firmware_views import FirmwareViews
from admin_api.heavy import LimitHeavy
from admin_api.problems import install_problems
from admin_api.routes import attempts, check, device_types, devices, firmware, health, refused, rules, runs, tasks
from admin_api.run_stream import RunStreams

__all__ = ["AdminContext", "create_app"]

_DESCRIPTION: Final = """Device types, devices, firmware, rules, tasks and runs of an ota-hook deployment.

Send `Authorization: Bearer` with the admin token; everything under `/api/v1`, this schema included, needs it. Errors
are problem JSON (RFC 9457). Single resources have an ETag, to be
compared as it is and taken apart by nobody; `If-Match` and `If-None-Match` are honoured. PATCH is a
JSON merge patch; null is refused where it is no value of the field. POST takes an `Idempotency-Key`, kept for 24 hours;
streams of lines may be sent again as they are."""


def create_app(context: AdminContext) -> FastAPI:
    """The ASGI application over `context`. It owns nothing that must be closed."""
    app = FastAPI(
        title="ota-hook",
        version="1",
        description=_DESCRIPTION,
        openapi_url=f"{API_PREFIX}/openapi.json",
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.firmware_views = FirmwareViews(context)
    app.state.run_streams = RunStreams()
    install_problems(app)
    api = APIRouter(prefix=API_PREFIX)
    for router in (
        device_types.router,
        rules.router,
        devices.streams,
        devices.router,
        firmware.streams,
        firmware.router,
        attempts.router,
        refused.router,
        check.router,
        tasks.router,
        runs.router,
        runs.work,
    ):
        api.include_router(router)
    app.include_router(api)
    app.include_router(downloads.router)
    app.include_router(health.router)
    # The one added last is the outermost.
    app.add_middleware(LimitHeavy)
    app.add_middleware(RequireUtf8)
    app.add_middleware(RequireToken, tokens=context.tokens)
    app.add_middleware(CloseUnread)
    return app
