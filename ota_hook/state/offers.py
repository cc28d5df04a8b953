"""Open offers, histories and counters in Redis: implements ports.OfferStore."""

from __future__ import annotations

from redis.asyncio import Redis

from ota_hook.state.keys import Keys


class RedisOffers:
    """ports.OfferStore."""

    def __init__(self, redis: Redis, keys: Keys) -> None: ...

    async def cancel_offers(self, firmware_id: str, *, settled_at_ms: int) -> int:
        """Close every open offer of a firmware as cancelled (its deletion). Returns how many; idempotent."""
        raise NotImplementedError
