"""Open offers, histories and counters in Redis: implements ports.OfferStore.

Owns the hashes of open offers, the lists of settled ones and the counters per firmware. Must not know when an offer is
settled, nor how.

An offer that is repeated keeps one entry: the newest `offered_at_ms` (attempts count since the last offer) and the last
command ids. Counters live in another slot than the device, so they follow the script that changed something: a process
that dies in between loses a count, and none is ever counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import structlog
from redis.exceptions import ResponseError

from ota_hook.model import OFFER_COMMAND_IDS, OpenOffer, Outcome, SettledOffer
from ota_hook.state.buckets import batches_of_buckets
from ota_hook.state.connection import Call, RedisClient, Script, redis_errors, run_command, run_commands, run_pipelined
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.records import pack_offer, read_offers, read_settled

HISTORY_LENGTH: Final = 20
CANCEL_BATCH: Final = 500

_log = structlog.get_logger("ota_hook.state.offers")

OFFERS_LUA: Final = f"""
local MODULE, FIRMWARE, ATTRIBUTE, VERSION, FROM_VERSION, OFFERED_AT, IDS = 1, 2, 3, 4, 5, 6, 7
local function is_offer(offer)
  if type(offer) ~= 'table' or type(offer[OFFERED_AT]) ~= 'number' or type(offer[IDS]) ~= 'table' then return false end
  for i = MODULE, FROM_VERSION do
    if type(offer[i]) ~= 'string' then return false end
  end
  return true
end
local function read_offers(identifier, key)
  local ok, stored = pcall(cmsgpack.unpack, redis.call('HGET', key, identifier) or '')
  local offers = {{}}
  if not ok or type(stored) ~= 'table' then return offers end
  for i, offer in ipairs(stored) do
    if not is_offer(offer) then return {{}} end
    offers[i] = offer
  end
  return offers
end
local function write_offers(identifier, key, offers)
  if #offers == 0 then redis.call('HDEL', key, identifier)
  else redis.call('HSET', key, identifier, cmsgpack.pack(offers)) end
end
local function find_module(offers, module)
  for i, offer in ipairs(offers) do
    if offer[MODULE] == module then return i end
  end
  return nil
end
local function keep_settled(history, offer, outcome, settled_at, code)
  local entry = {{offer[1], offer[2], offer[3], offer[4], offer[5], offer[6], offer[7], outcome, settled_at, code}}
  redis.call('LPUSH', history, cmsgpack.pack(entry))
  redis.call('LTRIM', history, 0, {HISTORY_LENGTH - 1})
end
local function cancel_all(identifier, key, history)
  local time = redis.call('TIME')
  local settled_at = time[1] * 1000 + math.floor(time[2] / 1000)
  local firmware = {{}}
  for _, offer in ipairs(read_offers(identifier, key)) do
    keep_settled(history, offer, 'cancelled', settled_at, '')
    firmware[#firmware + 1] = offer[FIRMWARE]
  end
  redis.call('HDEL', key, identifier)
  return firmware
end
"""
"""Reading, finding and settling a device's offers, for the scripts of this module and of devices.py. What can't be read
is no offer: the next one is written over it.
"""

RECORD: Final = Script(
    OFFERS_LUA
    + f"""
local identifier, new = ARGV[1], cmsgpack.unpack(ARGV[2])
if redis.call('HEXISTS', KEYS[3], identifier) + redis.call('HEXISTS', KEYS[4], identifier) == 0 then
  return {{'unknown', ''}}
end
local offers = read_offers(identifier, KEYS[1])
local at = find_module(offers, new[MODULE])
local old = at and offers[at]
local happened, superseded = 'opened', ''
if old and old[FIRMWARE] == new[FIRMWARE] then
  happened = 'repeated'
  local ids = {{}}
  local is_new = {{}}
  for _, id in ipairs(new[IDS]) do is_new[id] = true end
  for _, id in ipairs(old[IDS]) do
    if not is_new[id] then ids[#ids + 1] = id end
  end
  for _, id in ipairs(new[IDS]) do ids[#ids + 1] = id end
  while #ids > {OFFER_COMMAND_IDS} do table.remove(ids, 1) end
  new[IDS] = ids
  new[OFFERED_AT] = math.max(old[OFFERED_AT], new[OFFERED_AT])
elseif old then
  superseded = old[FIRMWARE]
  keep_settled(KEYS[2], old, 'superseded', new[OFFERED_AT], '')
end
offers[at or #offers + 1] = new
write_offers(identifier, KEYS[1], offers)
return {{happened, superseded}}
"""
)

SETTLE: Final = Script(
    OFFERS_LUA
    + """
local identifier, module, firmware = ARGV[1], ARGV[2], ARGV[3]
local offers = read_offers(identifier, KEYS[1])
local at = find_module(offers, module)
if not at or offers[at][FIRMWARE] ~= firmware then return 0 end
keep_settled(KEYS[2], offers[at], ARGV[4], tonumber(ARGV[5]), ARGV[6])
table.remove(offers, at)
write_offers(identifier, KEYS[1], offers)
return 1
"""
)


def record_call(keys: Keys, identifier: str, offer: OpenOffer) -> Call:
    """The keys and arguments of RECORD. An offer to a device that is not registered (any more) is not kept.

    It answers what happened (`opened`, `repeated`, `unknown`) and the firmware that was superseded, or an empty text.
    """
    bucket = keys.bucket_of(identifier)
    touched = (
        keys.offers(bucket),
        keys.history(bucket, identifier),
        keys.devices(bucket),
        keys.long_devices(bucket),
    )
    return touched, (as_bytes(identifier), pack_offer(offer))


def settle_call(
    keys: Keys, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int
) -> Call:
    """The keys and arguments of SETTLE, which answers 1, or 0 where the offer was closed already.

    The history keeps the offer as stored, with every command id.
    """
    bucket = keys.bucket_of(identifier)
    touched = (keys.offers(bucket), keys.history(bucket, identifier))
    return touched, (
        as_bytes(identifier),
        offer.module,
        offer.firmware_id,
        outcome.value,
        settled_at_ms,
        as_bytes(code),
    )


class RedisOffers:
    """ports.OfferStore."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def cancel_offers(self, firmware_id: str, *, settled_at_ms: int) -> int:
        """Close every open offer of a firmware as cancelled (it was deleted). Returns how many; idempotent.

        Reads every bucket that holds open offers.
        """
        cancelled = 0
        with redis_errors("cancelling offers"):
            pattern = self._keys.offers_pattern()
            async with aclosing(batches_of_buckets(self._redis, self._keys, pattern)) as batches:
                async for batch in batches:
                    holders = await run_commands(
                        self._redis, [("HGETALL", self._keys.offers(bucket)) for bucket in batch]
                    )
                    for bucket, offers in zip(batch, holders, strict=True):
                        cancelled += await self._cancel_in(bucket, offers, firmware_id, settled_at_ms)
            await count_outcomes(self._redis, self._keys, {(firmware_id, Outcome.CANCELLED): cancelled})
        return cancelled

    async def _cancel_in(
        self, bucket: int, holders: Mapping[bytes, bytes], firmware_id: str, settled_at_ms: int
    ) -> int:
        named = firmware_id.encode()
        calls = [
            (
                (self._keys.offers(bucket), self._keys.history_of(bucket, identifier)),
                (identifier, offer.module, firmware_id, Outcome.CANCELLED.value, settled_at_ms, ""),
            )
            for identifier, packed in holders.items()
            if named in packed
            for offer in read_offers(packed)
            if offer.firmware_id == firmware_id
        ]
        closed = 0
        for start in range(0, len(calls), CANCEL_BATCH):
            results, _ = await run_pipelined(self._redis, SETTLE, calls[start : start + CANCEL_BATCH])
            closed += sum(results)
        return closed

    async def load_history(self, identifier: str) -> list[SettledOffer]:
        """See ports.OfferStore."""
        key = self._keys.history(self._keys.bucket_of(identifier), identifier)
        with redis_errors("reading a device's history"):
            entries: Sequence[bytes] = await run_command(self._redis, "LRANGE", key, 0, HISTORY_LENGTH - 1)
        settled = [offer for entry in entries if (offer := read_settled(entry)) is not None]
        if len(settled) < len(entries):
            _log.warning("history_unreadable", device=identifier, entries=len(entries) - len(settled))
        return settled

    async def load_counters(self, firmware_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """See ports.OfferStore. A firmware that was never offered has no counters; what is no count is left out."""
        wanted = list(firmware_ids)
        with redis_errors("reading counters"):
            found = await run_commands(
                self._redis, [("HGETALL", self._keys.counters(firmware_id)) for firmware_id in wanted]
            )
        return {
            firmware_id: {
                outcome.decode(): int(count)
                for outcome, count in counters.items()
                if outcome.isascii() and count.isdigit()
            }
            for firmware_id, counters in zip(wanted, found, strict=True)
        }


async def count_cancelled(redis: RedisClient, keys: Keys, firmware_ids: Iterable[bytes]) -> None:
    """Count one cancelled offer of each; a firmware may be there several times."""
    await count_outcomes(redis, keys, Counter((as_text(firmware), Outcome.CANCELLED) for firmware in firmware_ids))


async def count_outcomes(redis: RedisClient, keys: Keys, counts: Mapping[tuple[str, Outcome], int]) -> None:
    """Add to the counters of each (firmware, outcome). Not repeated on failure: better lost than counted twice."""
    if not any(counts.values()):
        return
    commands = [
        ("HINCRBY", keys.counters(firmware_id), outcome.value, count)
        for (firmware_id, outcome), count in counts.items()
    ]
    with redis_errors("counting outcomes"):
        try:
            await run_commands(redis, commands)
        except ResponseError as exc:  # a counter that holds something else must not keep anybody from deleting
            _log.warning("outcomes_not_counted", problem=str(exc))
