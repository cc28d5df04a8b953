"""Open offers, histories and counters in Redis: implements ports.offers.OfferStore.

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
from ota_hook.state.connection import (
    Argument,
    Call,
    Command,
    RedisClient,
    Script,
    redis_errors,
    run_command,
    run_commands,
    run_pipelined,
)
from ota_hook.state.keys import Keys, as_bytes, as_text
from ota_hook.state.records import pack_offer, read_offers, read_settled
from ota_hook.task import RunMove

HISTORY_LENGTH: Final = 20
RANKS_LUA: Final = "".join(f"{outcome.value}={rank}," for rank, outcome in enumerate(Outcome) if not outcome.is_final)
"""The outcomes that are not final, in their order, as a Lua table."""
RUN_EVENTS_KEPT: Final = 200_000
FAILURES: Final = frozenset({Outcome.FAILED, Outcome.TIMED_OUT})
"""Outcomes that speak against the firmware."""
CANCEL_BATCH: Final = 500

_log = structlog.get_logger("ota_hook.state.offers")

OFFERS_LUA: Final = f"""
local MODULE, FIRMWARE, ATTRIBUTE, VERSION, FROM_VERSION, OFFERED_AT, IDS, RUN, CHUNK = 1, 2, 3, 4, 5, 6, 7, 8, 9
local STEP, NOTE = 10, 11
local function is_offer(offer)
  if type(offer) ~= 'table' or type(offer[OFFERED_AT]) ~= 'number' or type(offer[IDS]) ~= 'table' then return false end
  for i = MODULE, FROM_VERSION do
    if type(offer[i]) ~= 'string' then return false end
  end
  local is_plain = type(offer[RUN] or '') == 'string' and type(offer[CHUNK] or 0) == 'number'
  return is_plain and type(offer[STEP] or '') == 'string'
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
  if (offer[RUN] or '') ~= '' then entry[11], entry[12] = offer[RUN], offer[CHUNK] end
  redis.call('LPUSH', history, cmsgpack.pack(entry))
  redis.call('LTRIM', history, 0, {HISTORY_LENGTH - 1})
end
local function cancel_all(identifier, key, history)
  local time = redis.call('TIME')
  local settled_at = time[1] * 1000 + math.floor(time[2] / 1000)
  local firmware = {{}}
  for _, offer in ipairs(read_offers(identifier, key)) do
    keep_settled(history, offer, 'cancelled', settled_at, '')
    local run = string.format('%s %.0f', offer[RUN] or '', offer[CHUNK] or 0)
    firmware[#firmware + 1] = offer[FIRMWARE] .. ' ' .. run .. ' ' .. identifier
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
local happened, superseded, run, chunk = 'opened', '', '', 0
if old and (old[RUN] or '') ~= '' and old[RUN] ~= new[RUN] then
  if old[FIRMWARE] == new[FIRMWARE] and (new[RUN] or '') == '' then new[RUN], new[CHUNK] = old[RUN], old[CHUNK]
  else run, chunk = old[RUN], old[CHUNK] end
end
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
  new[STEP], new[NOTE] = old[STEP] or 'offered', old[NOTE] or ''  -- what it has said of it still holds
elseif old then
  superseded = old[FIRMWARE]
  keep_settled(KEYS[2], old, 'superseded', new[OFFERED_AT], '')
end
offers[at or #offers + 1] = new
write_offers(identifier, KEYS[1], offers)
return {{happened, superseded, run, chunk}}
"""
)

SETTLE: Final = Script(
    OFFERS_LUA
    + """
local identifier, module, firmware, run = ARGV[1], ARGV[2], ARGV[3], ARGV[7]
local offers = read_offers(identifier, KEYS[1])
local at = find_module(offers, module)
if not at or offers[at][FIRMWARE] ~= firmware then return {0, '', 0} end
local offer = offers[at]
if run ~= '' and offer[RUN] ~= run then return {0, '', 0} end
keep_settled(KEYS[2], offer, ARGV[4], tonumber(ARGV[5]), ARGV[6])
table.remove(offers, at)
write_offers(identifier, KEYS[1], offers)
return {1, offer[RUN] or '', offer[CHUNK] or 0}
"""
)


TRACK: Final = Script(
    OFFERS_LUA
    + f"""
local RANKS = {{{RANKS_LUA}}}
local identifier, id, module = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local outcome, code, at = ARGV[4], ARGV[5], tonumber(ARGV[6])
local offers, found = read_offers(identifier, KEYS[1]), nil
for i, offer in ipairs(offers) do
  local fits = id == 0 and (module == '' or offer[MODULE] == module)
  for _, one in ipairs(offer[IDS]) do fits = fits or one == id end
  if fits and (not found or offer[OFFERED_AT] > offers[found][OFFERED_AT]) then found = i end
end
if not found then return {{0, '', '', 0}} end
local offer = offers[found]
local step = offer[STEP] or 'offered'
if outcome == 'offered' then
  if step ~= 'offered' or offer[NOTE] == code then return {{0, '', '', 0}} end
  offer[STEP], offer[NOTE] = step, code
elseif RANKS[outcome] then
  if RANKS[outcome] <= RANKS[step] then return {{0, '', '', 0}} end
  offer[STEP], offer[NOTE] = outcome, code
else
  keep_settled(KEYS[2], offer, outcome, at, code)
  table.remove(offers, found)
end
for i = RUN, STEP do offer[i] = offer[i] or (i == CHUNK and 0 or '') end
write_offers(identifier, KEYS[1], offers)
return {{1, offer[FIRMWARE], offer[RUN], offer[CHUNK]}}
"""
)
"""Brings the open offer with that command id (0: of that module, or the newest) further; an outcome never goes back.

`offered` with a code notes something and changes no outcome. Returns whether anything changed, firmware, run, chunk."""

COME_BACK: Final = Script(
    OFFERS_LUA
    + """
local identifier, connection, now, patience = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HEXISTS', KEYS[2], identifier) + redis.call('HEXISTS', KEYS[3], identifier) == 0 then return {} end
redis.call('HSET', KEYS[4], identifier, connection)
local offers, again = read_offers(identifier, KEYS[1]), {}
for _, offer in ipairs(offers) do
  local waits = offer[NOTE] == 'undelivered' or now - offer[OFFERED_AT] > patience
  if (offer[RUN] or '') ~= '' and (offer[STEP] or 'offered') == 'offered' and waits then
    offer[NOTE], offer[OFFERED_AT] = '', now
    again[#again + 1] = offer[RUN]
    again[#again + 1] = offer[CHUNK]
  end
end
if #again > 0 then write_offers(identifier, KEYS[1], offers) end
return again
"""
)
"""KEYS: open offers, devices, long devices, presence. Notes who is connected.

Returns run and chunk of each command that did not reach the device."""

GO_AWAY: Final = Script("""
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
""")
"""Connects and disconnects may arrive out of order: only the connection that is noted can go."""


def record_call(keys: Keys, identifier: str, offer: OpenOffer) -> Call:
    """The keys and arguments of RECORD. An offer to a device that is not registered (any more) is not kept.

    It answers what happened (`opened`, `repeated`, `unknown`), the firmware that was superseded, or an empty text, and
    the run and chunk whose offer this one took the place of, be it of the same firmware.
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
    keys: Keys, identifier: str, offer: OpenOffer, outcome: Outcome, *, code: str, settled_at_ms: int, run_id: str = ""
) -> Call:
    """The keys and arguments of SETTLE, which answers 1 (0 where the offer was closed already), its run and its chunk.

    With `run_id` an offer of another run, or of none, is left alone. The history keeps the offer as stored, with every
    command id.
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
        run_id,
    )


class RedisOffers:
    """ports.offers.OfferStore."""

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
                (identifier, offer.module, firmware_id, Outcome.CANCELLED.value, settled_at_ms, "", ""),
            )
            for identifier, packed in holders.items()
            if named in packed
            for offer in read_offers(packed)
            if offer.firmware_id == firmware_id
        ]
        closed = 0
        for start in range(0, len(calls), CANCEL_BATCH):
            batch = calls[start : start + CANCEL_BATCH]
            results, _ = await run_pipelined(self._redis, SETTLE, batch)
            closed += sum(done for done, _, _ in results)
            moves = [
                RunMove(as_text(run_id), chunk, as_text(arguments[0]), Outcome.CANCELLED, at_ms=settled_at_ms)
                for (_, arguments), (_, run_id, chunk) in zip(batch, results, strict=True)
                if run_id
            ]
            await tell_runs(self._redis, self._keys, moves)
        return closed

    async def record_offers(self, offers: Sequence[tuple[str, OpenOffer]]) -> list[bool]:
        """See ports.offers.OfferStore."""
        with redis_errors("noting offers"):
            calls = [record_call(self._keys, identifier, offer) for identifier, offer in offers]
            results, _ = await run_pipelined(self._redis, RECORD, calls)
            counts: Counter[tuple[str, Outcome]] = Counter()
            moves = []
            for (identifier, offer), (happened, superseded, run_id, chunk) in zip(offers, results, strict=True):
                if happened == b"opened":
                    counts[offer.firmware_id, Outcome.OFFERED] += 1
                if superseded:
                    counts[as_text(superseded), Outcome.SUPERSEDED] += 1
                if run_id:
                    moves.append(RunMove(as_text(run_id), chunk, identifier, Outcome.SUPERSEDED))
        await count_outcomes(self._redis, self._keys, counts)
        await tell_runs(self._redis, self._keys, moves)
        return [happened != b"unknown" for happened, *_ in results]

    async def settle_offers(
        self, offers: Sequence[tuple[str, OpenOffer]], outcome: Outcome, *, code: str = "", settled_at_ms: int
    ) -> list[bool]:
        """See ports.offers.OfferStore."""
        with redis_errors("settling offers"):
            calls = [
                settle_call(
                    *(self._keys, identifier, offer, outcome),
                    code=code,
                    settled_at_ms=settled_at_ms,
                    run_id=offer.run_id,
                )
                for identifier, offer in offers
            ]
            results, _ = await run_pipelined(self._redis, SETTLE, calls)
        settled = [bool(happened) for happened, _, _ in results]
        counts = Counter((offer.firmware_id, outcome) for (_, offer), done in zip(offers, settled, strict=True) if done)
        await count_outcomes(self._redis, self._keys, counts)
        return settled

    async def load_history(self, identifier: str) -> list[SettledOffer]:
        """See ports.offers.OfferStore."""
        key = self._keys.history(self._keys.bucket_of(identifier), identifier)
        with redis_errors("reading a device's history"):
            entries: Sequence[bytes] = await run_command(self._redis, "LRANGE", key, 0, HISTORY_LENGTH - 1)
        settled = [offer for entry in entries if (offer := read_settled(entry)) is not None]
        if len(settled) < len(entries):
            _log.warning("history_unreadable", device=identifier, entries=len(entries) - len(settled))
        return settled

    async def load_counters(self, firmware_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """See ports.offers.OfferStore. A firmware that was never offered has none; what is no count is left out."""
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


async def count_cancelled(redis: RedisClient, keys: Keys, cancelled: Iterable[bytes]) -> None:
    """Count what the scripts cancelled, and tell the runs of it. Each is `FIRMWARE RUN CHUNK DEVICE`."""
    split = [as_text(one).split(" ", 3) for one in cancelled]
    await count_outcomes(redis, keys, Counter((firmware, Outcome.CANCELLED) for firmware, *_ in split))
    moves = [RunMove(run_id, int(chunk), device, Outcome.CANCELLED) for _, run_id, chunk, device in split if run_id]
    await tell_runs(redis, keys, moves)


async def tell_runs(redis: RedisClient, keys: Keys, moves: Sequence[RunMove]) -> None:
    """Put what became of offers where workers read it. May be lost: a run looks itself, when its devices time out."""
    if moves:
        with redis_errors("telling runs"):
            await run_commands(redis, [tell_command(keys, move) for move in moves])


def tell_command(keys: Keys, move: RunMove) -> tuple[Argument, ...]:
    """The command that appends to the stream of run events."""
    return (
        *("XADD", keys.run_events, "MAXLEN", "~", RUN_EVENTS_KEPT, "*"),
        *("run", move.run_id, "chunk", move.chunk, "device", as_bytes(move.identifier)),
        *("outcome", move.outcome.value, "code", as_bytes(move.code), "at", move.at_ms),
    )


async def count_outcomes(redis: RedisClient, keys: Keys, counts: Mapping[tuple[str, Outcome], int]) -> None:
    """Add to the counters of each (firmware, outcome). Not repeated on failure: better lost than counted twice."""
    if not any(counts.values()):
        return
    failing = [firmware_id for (firmware_id, outcome), count in counts.items() if count and outcome in FAILURES]
    commands: list[Command] = [
        ("HINCRBY", keys.counters(firmware_id), outcome.value, count)
        for (firmware_id, outcome), count in counts.items()
    ]
    commands += [("SADD", keys.failing, firmware_id) for firmware_id in failing]
    with redis_errors("counting outcomes"):
        try:
            await run_commands(redis, commands)
        except ResponseError as exc:  # a counter that holds something else must not keep anybody from deleting
            _log.warning("outcomes_not_counted", problem=str(exc))
