"""The catalogue in Redis: implements ports.Catalogue and ports.SnapshotSource."""

from __future__ import annotations

from redis.asyncio import Redis

from ota_hook.snapshot import RefusedDocument, Snapshot
from ota_hook.state.durability import DurableWriter
from ota_hook.state.keys import Keys


class RedisCatalogue:
    """ports.Catalogue and ports.SnapshotSource: this process's snapshot, kept fresh by a task of its own."""

    def __init__(self, redis: Redis, keys: Keys, *, writer: DurableWriter | None = None) -> None: ...

    async def start(self) -> None:
        """Load the catalogue and keep it fresh until `close`. Raises DependencyError where it can't be loaded."""

    async def close(self) -> None: ...

    @property
    def current(self) -> Snapshot:
        raise NotImplementedError

    @property
    def refused(self) -> tuple[RefusedDocument, ...]:
        """Documents that can't be used; the last good ones are in force."""
        raise NotImplementedError

    @property
    def healthy(self) -> bool:
        """Whether the snapshot was compared with Redis within the last two seconds."""
        raise NotImplementedError

    @property
    def age_seconds(self) -> float:
        """Since the snapshot was last compared with Redis."""
        raise NotImplementedError
