"""Which hook processes are alive, as the admin role's readiness asks."""

from __future__ import annotations

from redis.asyncio import Redis

from ota_hook.state.keys import Keys


class Heartbeat:
    """One process's liveness; also counts all. Times are Redis's clock. Every method raises DependencyError."""

    def __init__(self, redis: Redis, keys: Keys, *, ttl_ms: int = 5_000) -> None: ...

    async def beat(self) -> None:
        """Be alive for `ttl_ms` from now. Call it about three times per `ttl_ms`."""

    async def remove(self) -> None:
        """Be gone at once (an orderly end)."""

    async def count_live(self) -> int:
        """How many processes are alive. Asking does not need to `beat`."""
        raise NotImplementedError
