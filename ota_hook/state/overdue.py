"""Open offers that nothing came of: implements ports.overdue.OverdueOffers.

Must not know when an offer is overdue, nor whether somebody looks after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from typing import Final

from ota_hook.model import OpenOffer, Outcome
from ota_hook.state.buckets import batches_of_buckets
from ota_hook.state.connection import Call, RedisClient, Script, redis_errors, run_commands, run_pipelined
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.lua_functions import OFFERS_LUA
from ota_hook.state.offers import count_outcomes
from ota_hook.state.records import read_offers

_BUCKETS_AT_ONCE: Final = 32
_SETTLED_AT_ONCE: Final = 500

TIME_OUT: Final = Script(
    OFFERS_LUA
    + f"""
local identifier, module, firmware, run = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local offers = read_offers(identifier, KEYS[1])
local at = find_module(offers, module)
local offer = at and offers[at]
if not offer or offer[FIRMWARE] ~= firmware or offer[RUN] ~= run then return 0 end
if offer[OFFERED_AT] ~= tonumber(ARGV[5]) then return 0 end
keep_settled(KEYS[2], table.remove(offers, at), '{Outcome.TIMED_OUT}', tonumber(ARGV[6]), '')
write_offers(identifier, KEYS[1], offers)
return 1
"""
)
"""KEYS: open offers, history. An offer that was repeated since it was read, or that a run made its own, stays."""


class RedisOverdueOffers:
    """ports.overdue.OverdueOffers."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def scan(self, *, offered_before_ms: int) -> AsyncGenerator[list[tuple[str, OpenOffer]]]:
        """See ports.overdue.OverdueOffers. One round trip for 32 buckets."""
        pattern = self._keys.offers_pattern()
        with redis_errors("looking for offers that are overdue"):
            batches = batches_of_buckets(self._redis, self._keys, pattern, largest=_BUCKETS_AT_ONCE)
            async with aclosing(batches):
                async for batch in batches:
                    holders = await run_commands(
                        self._redis, [("HGETALL", self._keys.offers(bucket)) for bucket in batch]
                    )
                    yield [
                        (as_text(identifier), offer)
                        for offers in holders
                        for identifier, packed in offers.items()
                        for offer in read_offers(packed)
                        if offer.offered_at_ms <= offered_before_ms
                    ]

    async def find_open_runs(self, run_ids: Collection[str]) -> set[str]:
        """See ports.overdue.OverdueOffers."""
        wanted = list(run_ids)
        with redis_errors("looking for runs"):
            found = await run_commands(self._redis, [("HEXISTS", self._keys.open_runs, one) for one in wanted])
        return {run_id for run_id, is_open in zip(wanted, found, strict=True) if is_open}

    async def time_out(self, offers: Sequence[tuple[str, OpenOffer]], *, settled_at_ms: int) -> int:
        """See ports.overdue.OverdueOffers. They count as every timeout does."""
        settled = 0
        for start in range(0, len(offers), _SETTLED_AT_ONCE):
            batch = offers[start : start + _SETTLED_AT_ONCE]
            calls = [self._time_out_call(identifier, offer, settled_at_ms) for identifier, offer in batch]
            with redis_errors("settling offers that are overdue"):
                done, _ = await run_pipelined(self._redis, TIME_OUT, calls)
            counts = Counter(
                (offer.firmware_id, Outcome.TIMED_OUT)
                for (_, offer), is_done in zip(batch, done, strict=True)
                if is_done
            )
            settled += counts.total()
            await count_outcomes(self._redis, self._keys, counts)
        return settled

    def _time_out_call(self, identifier: str, offer: OpenOffer, settled_at_ms: int) -> Call:
        bucket = self._keys.bucket_of(identifier)
        touched = (self._keys.offers(bucket), self._keys.history(bucket, identifier))
        asked = (offer.module, offer.firmware_id, offer.run_id, offer.offered_at_ms, settled_at_ms)
        return touched, (as_bytes(identifier), *asked)
