"""What the admin role works with, handed in whole by bootstrap: no globals, no concrete adapters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Final, Protocol

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry
from ulid import ULID

from ota_hook.ports.attempts import AttemptStore
from ota_hook.ports.catalogue import Catalogue
from ota_hook.ports.devices import DeviceStore
from ota_hook.ports.idempotency import IdempotencyStore
from ota_hook.ports.offers import OfferStore
from ota_hook.ports.packages import PackageStore
from ota_hook.ports.presence import Connections
from ota_hook.ports.runs import RunStore
from ota_hook.ports.stops import FirmwareStops
from ota_hook.ports.tasks import TaskStore
from ota_hook.ports.work import WorkQueue

DEFAULT_MAX_UPLOAD_BYTES: Final = 1024**3

ReadinessCheck = Callable[[], Awaitable[list[str]]]
"""Returns what keeps the deployment from answering checks, one sentence each; an empty list is ready."""


class TokenVerifier(Protocol):
    def verify(self, token: str) -> str | None:
        """Who holds the token, as a short stable name; None for a token that is not good. Constant time."""
        ...


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _new_id() -> str:
    return str(ULID())


@dataclass(frozen=True, kw_only=True)
class AdminContext:
    """The admin API's surroundings. `public_url` and `public_url_https` have no slash at their end.

    `has_broker`: whether a broker is configured that runs could publish to. `closing` is set when the service ends:
    what would go on for long ends then. `connections`: who is connected, None where the broker is not asked.
    """

    catalogue: Catalogue
    devices: DeviceStore
    offers: OfferStore
    attempts: AttemptStore
    packages: PackageStore
    tasks: TaskStore
    runs: RunStore
    work: WorkQueue
    stops: FirmwareStops
    idempotency: IdempotencyStore
    tokens: TokenVerifier
    public_url: str
    public_url_https: str | None = None
    has_broker: bool = False
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    readiness_checks: tuple[ReadinessCheck, ...] = ()
    metrics: CollectorRegistry = field(default_factory=CollectorRegistry)
    now_ms: Callable[[], int] = _now_ms
    new_id: Callable[[], str] = _new_id
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    connections: Connections | None = None


def _context_of(request: Request) -> AdminContext:
    context: AdminContext = request.app.state.context
    return context


Context = Annotated[AdminContext, Depends(_context_of)]
"""The parameter type by which a route gets its context."""
