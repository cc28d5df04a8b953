"""Which roles there are, and what has started. Commands read it; it must not know what a role is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a process does."""

    HOOK = "hook"
    ADMIN = "admin"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What has started. Addresses are the real ones, where a setting left the port to the system."""

    hook_address: str | None = None
    admin_url: str | None = None
    admin_tls_url: str | None = None
    public_url: str
    mqtt_url: str | None = None
    token: str | None = None
    token_was_made: bool = False
    runs_pushes: bool = False
