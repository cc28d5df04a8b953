"""Requests that are run once, however often they come.

Owns how a request begins and ends under its key. Must not know what requests do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Begun:
    """This request is the first under its key, or the first to be answered: run it, then `finish` or `abandon`.

    `new_id` is what it names its creation; `earlier_ids` are those of requests under the key that did not tell what
    became of them: what bears one of these was created by them.
    """

    key: str
    owner: str
    body_digest: str
    new_id: str = ""
    earlier_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """This request was answered before: answer the same."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class IdempotencyStore(Protocol):
    """Requests under an `Idempotency-Key`: run once, answered the same for 24 hours. All raise DependencyError."""

    async def begin(
        self, token_digest: str, route: str, key: str, body_digest: str, *, new_id: str = ""
    ) -> Begun | Replay:
        """Start a request, or find its answer. `route` is method and path; `new_id` what it names its creation.

        Raises InputError where the key was used with another body, ConflictError while the first request runs (a
        process that died frees it within a minute).
        """
        ...

    async def finish(self, begun: Begun, *, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Keep the answer for 24 hours."""
        ...

    async def abandon(self, begun: Begun, *, maybe_written: bool = False) -> None:
        """Forget the request (it failed and may be tried again under the same key); its `new_id` only where it
        certainly wrote nothing.
        """
        ...
