"""The Lua scripts that note, settle and track offers, count attempts, and note who is connected; with their calls.

offers.py and hot.py say what runs when. Each touches one bucket.
"""

from __future__ import annotations

from typing import Final

from ota_hook.identifiers import gateway_of
from ota_hook.model import OFFER_COMMAND_IDS, OpenOffer, Outcome
from ota_hook.progress import Said
from ota_hook.state.connection import Argument, Call, Script
from ota_hook.state.keys import Keys, as_bytes
from ota_hook.state.lua_functions import ATTEMPTS_LUA, COME_BACK_LUA, DEVICE_LUA, OFFERS_LUA, RANKS_LUA
from ota_hook.state.records import EXHAUSTED_MARK, pack_offer

EXHAUSTED_CODE: Final = "attempts_exhausted"
DEFAULT_ATTEMPTS_MAX: Final = 10
_SAME_COMING_MS: Final = 10_000
CHILDREN_A_SCRIPT: Final = 1_000
"""Of a gateway that comes back; Redis is busy with that many for some milliseconds."""

RECORD: Final = Script(
    OFFERS_LUA
    + f"""
local identifier, new = ARGV[1], fill(cmsgpack.unpack(ARGV[2]))
if redis.call('HEXISTS', KEYS[3], identifier) + redis.call('HEXISTS', KEYS[4], identifier) == 0 then
  return {{'unknown', ''}}
end
local offers = read_offers(identifier, KEYS[1])
local at = find_module(offers, new[MODULE])
local old = at and offers[at]
local happened, superseded, run, chunk = 'opened', '', '', 0
local has_asked = new[RUN] == ''
if old and old[RUN] ~= '' and old[RUN] ~= new[RUN] then
  if old[FIRMWARE] == new[FIRMWARE] and has_asked then new[RUN], new[CHUNK] = old[RUN], old[CHUNK]
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
  new[STEP], new[NOTE], new[TRIED] = old[STEP], old[NOTE], old[TRIED]  -- what is known of it still holds
  if has_asked then new[NOTE] = '' end  -- it is there: that an earlier command did not arrive says nothing of this one
elseif old then
  superseded = old[FIRMWARE]
  keep_settled(KEYS[2], old, 'superseded', new[OFFERED_AT], '')
end
if has_asked then
  if new[TRIED] == WAS_AWAY then new[TRIED] = NOT_TRIED end
elseif happened == 'opened' and redis.call('HEXISTS', KEYS[5], ARGV[3]) == 0 then new[TRIED] = WAS_AWAY end
offers[at or #offers + 1] = new
write_offers(identifier, KEYS[1], offers)
return {{happened, superseded, run, chunk}}
"""
)

_CLOSE_LUA: Final = """
local function close(identifier, offers, at, outcome, settled_at, code, most)
  local offer = table.remove(offers, at)
  keep_settled(KEYS[2], offer, outcome, settled_at, code)
  if outcome ~= 'failed' then return 0 end
  return count_attempt(KEYS[3], KEYS[4], KEYS[5], identifier, offer[FIRMWARE], settled_at, most)
end
"""
"""KEYS: open offers, history, devices, long devices, attempts. A failure is an attempt."""

SETTLE: Final = Script(
    DEVICE_LUA
    + OFFERS_LUA
    + ATTEMPTS_LUA
    + _CLOSE_LUA
    + """
local identifier, module, firmware, run = ARGV[1], ARGV[2], ARGV[3], ARGV[7]
local offers = read_offers(identifier, KEYS[1])
local at = find_module(offers, module)
if not at or offers[at][FIRMWARE] ~= firmware then return {0, '', 0} end
local offer = offers[at]
if run ~= '' and offer[RUN] ~= run then return {0, '', 0} end
close(identifier, offers, at, ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[8]))
write_offers(identifier, KEYS[1], offers)
return {1, offer[RUN], offer[CHUNK]}
"""
)

TRACK: Final = Script(
    DEVICE_LUA
    + OFFERS_LUA
    + ATTEMPTS_LUA
    + _CLOSE_LUA
    + f"""
local RANKS = {{{RANKS_LUA}}}
local identifier, id, module = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local outcome, code, at = ARGV[4], ARGV[5], tonumber(ARGV[6])
local speaker = ARGV[8]
if speaker ~= identifier and redis.call('HEXISTS', KEYS[3], speaker) + redis.call('HEXISTS', KEYS[4], speaker) == 0 then
  return {{0, '', '', 0}}
end
local offers, found = read_offers(identifier, KEYS[1]), nil
for i, offer in ipairs(offers) do
  local fits = id == 0 and (module == '' or offer[MODULE] == module)
  for _, one in ipairs(offer[IDS]) do fits = fits or one == id end
  if fits and (not found or offer[OFFERED_AT] > offers[found][OFFERED_AT]) then found = i end
end
if not found then return {{0, '', '', 0}} end
local offer = offers[found]
local was_tried = offer[TRIED]
local changed = 0
if outcome == 'offered' then
  if offer[STEP] == 'offered' and offer[NOTE] ~= code then offer[NOTE], changed = code, 1 end
elseif RANKS[outcome] then
  if RANKS[outcome] > RANKS['{Outcome.DELIVERED}'] then offer[TRIED] = HAS_TRIED end
  if RANKS[outcome] > RANKS[offer[STEP]] then offer[STEP], offer[NOTE], changed = outcome, code, 1 end
else
  close(identifier, offers, found, outcome, at, code, tonumber(ARGV[7]))
  changed = 1
end
if changed == 1 or offer[TRIED] ~= was_tried then write_offers(identifier, KEYS[1], offers) end
if changed == 0 then return {{0, '', '', 0}} end
return {{1, offer[FIRMWARE], offer[RUN], offer[CHUNK]}}
"""
)
"""Brings the open offer with that command id (0: of that module, or the newest) further; an outcome never goes back.

`offered` with a code notes something and changes no outcome. Of a child nothing counts while its gateway is not
registered. Returns whether anything changed, firmware, run, chunk."""

ATTEMPT: Final = Script(
    DEVICE_LUA
    + OFFERS_LUA
    + ATTEMPTS_LUA
    + _CLOSE_LUA
    + f"""
local identifier, module, firmware, at_ms, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local offers = read_offers(identifier, KEYS[1])
local at = find_module(offers, module)
local offer = at and offers[at]
if not offer or offer[FIRMWARE] ~= firmware or offer[TRIED] ~= HAS_TRIED then return {{0, '', 0}} end
offer[TRIED] = NOT_TRIED
local counted = count_attempt(KEYS[3], KEYS[4], KEYS[5], identifier, firmware, at_ms, most)
if counted == 2 then
  keep_settled(KEYS[2], table.remove(offers, at), '{Outcome.FAILED}', at_ms, '{EXHAUSTED_CODE}')
end
write_offers(identifier, KEYS[1], offers)
return {{counted, offer[RUN], offer[CHUNK]}}
"""
)
"""A device came back with its old version. Answers what `count_attempt` does, run and chunk; the last one is its
failure."""

RESET: Final = Script(
    DEVICE_LUA
    + ATTEMPTS_LUA
    + f"""
local identifier, firmware = ARGV[1], ARGV[2]
local attempts, gone = read_attempts(KEYS[3], identifier), 0
for i = #attempts - 2, 1, -3 do
  if firmware == '' or attempts[i] == firmware then
    forget_attempts(attempts, i)
    gone = 1
  end
end
if #attempts == 0 then redis.call('HDEL', KEYS[3], identifier)
else redis.call('HSET', KEYS[3], identifier, cmsgpack.pack(attempts)) end
local stored = read_device(KEYS[1], KEYS[2], identifier)
local device = stored and unpack_record(stored)
if not device then return gone end
local tags, marks, form = get_tags(device)
local kept = {{}}
for mark in string.gmatch(marks, '%S+') do
  if firmware ~= '' and mark ~= '{EXHAUSTED_MARK}' .. firmware then kept[#kept + 1] = mark end
end
local left = table.concat(kept, ' ')
if left ~= marks then
  set_tags(device, tags, left, form)
  write_device(KEYS[1], KEYS[2], identifier, cmsgpack.pack(device), stored)
  gone = 1
end
return gone
"""
)
"""KEYS: devices, long devices, attempts. Forgets attempts of one firmware, or of all; whether there were any."""

_CHILDREN_COME_BACK_LUA: Final = f"""
local function children_come_back(gateway, key, now, patience, cursor, again)
  local prefix = gateway .. '/'
  local page = redis.call('HSCAN', key, cursor, 'COUNT', {CHILDREN_A_SCRIPT})
  for i = 1, #page[2], 2 do
    local identifier = page[2][i]
    if string.sub(identifier, 1, #prefix) == prefix then
      come_back(identifier, key, now, patience, false, again)
    end
  end
  return page[1]
end
"""
"""Answers where to go on, '0' at the end. Of a gateway with very many children each script run takes some."""

COME_BACK: Final = Script(
    OFFERS_LUA
    + COME_BACK_LUA
    + _CHILDREN_COME_BACK_LUA
    + f"""
local function named(connection) return string.match(connection or '', '^(.*)%z(%d+)$') end
local identifier, connection, now, patience = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HEXISTS', KEYS[2], identifier) + redis.call('HEXISTS', KEYS[3], identifier) == 0 then
  return {{'0', {{}}}}
end
local held, came_at = named(redis.call('HGET', KEYS[4], identifier) or '')
if held and held == named(connection) and math.abs(now - came_at) < {_SAME_COMING_MS} then return {{'0', {{}}}} end
redis.call('HSET', KEYS[4], identifier, connection)
local again = {{}}
come_back(identifier, KEYS[1], now, patience, true, again)
local cursor = children_come_back(identifier, KEYS[1], now, patience, '0', again)
return {{cursor, again}}
"""
)
"""KEYS: open offers, devices, long devices, presence. Notes who is connected, and that it may have tried its offers;
its children are reached again, which is no attempt of theirs. Where a session is resumed the broker tells of one
connection twice: that is one coming.

Returns where CHILDREN_COME_BACK goes on, '0' for nowhere, and identifier, run and chunk of each command that did not
reach its device."""

CHILDREN_COME_BACK: Final = Script(
    OFFERS_LUA
    + COME_BACK_LUA
    + _CHILDREN_COME_BACK_LUA
    + """
local again = {}
local cursor = children_come_back(ARGV[1], KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], again)
return {cursor, again}
"""
)
"""KEYS: open offers. Answers as COME_BACK does."""

GO_AWAY: Final = Script("""
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or string.sub(held .. '\\0', 1, #ARGV[2] + 1) ~= ARGV[2] .. '\\0' then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
""")
"""Connects and disconnects may arrive out of order: only the connection that is noted can go."""


def record_call(keys: Keys, identifier: str, offer: OpenOffer) -> Call:
    """The keys and arguments of RECORD. An offer to a device that is not registered (any more) is not kept. A child is
    there where its gateway is.

    It answers what happened (`opened`, `repeated`, `unknown`), the firmware that was superseded, or an empty text, and
    the run and chunk whose offer this one took the place of, be it of the same firmware.
    """
    bucket = keys.bucket_of(identifier)
    touched = (
        keys.offers(bucket),
        keys.history(bucket, identifier),
        keys.devices(bucket),
        keys.long_devices(bucket),
        keys.presence(bucket),
    )
    return touched, (as_bytes(identifier), pack_offer(offer), as_bytes(gateway_of(identifier)))


def settle_call(
    keys: Keys,
    identifier: str,
    offer: OpenOffer,
    outcome: Outcome,
    *,
    code: str,
    settled_at_ms: int,
    attempts_max: int,
    run_id: str = "",
) -> Call:
    """The keys and arguments of SETTLE, which answers 1 (0 where the offer was closed already), its run and its chunk.

    With `run_id` an offer of another run, or of none, is left alone. The history keeps the offer as stored, with every
    command id. A failure is an attempt, and behind `attempts_max` of them the firmware is exhausted.
    """
    named = as_bytes(identifier)
    return _touched_by_outcome(keys, named), (
        *(named, offer.module, offer.firmware_id, outcome.value),
        *(settled_at_ms, as_bytes(code), run_id, attempts_max),
    )


def cancel_call(keys: Keys, identifier: bytes, offer: OpenOffer, *, settled_at_ms: int) -> Call:
    """`settle_call` as cancelled, for an identifier as it was read from Redis."""
    arguments = (identifier, offer.module, offer.firmware_id, Outcome.CANCELLED.value, settled_at_ms, "", "", 0)
    return _touched_by_outcome(keys, identifier), arguments


def track_call(keys: Keys, identifier: str, said: Said, *, at_ms: int, attempts_max: int) -> Call:
    """The keys and arguments of TRACK."""
    named = as_bytes(identifier)
    return _touched_by_outcome(keys, named), (
        *(named, said.command_id or 0, as_bytes(said.module or "")),
        *(said.outcome.value, as_bytes(said.code), at_ms, attempts_max, as_bytes(gateway_of(identifier))),
    )


def attempt_call(keys: Keys, identifier: str, offer: OpenOffer, *, at_ms: int, attempts_max: int) -> Call:
    """The keys and arguments of ATTEMPT."""
    named = as_bytes(identifier)
    return _touched_by_outcome(keys, named), (named, offer.module, offer.firmware_id, at_ms, attempts_max)


def come_back_call(keys: Keys, identifier: str, connection: str, *, at_ms: int, patience_ms: int) -> Call:
    """The keys and arguments of COME_BACK."""
    bucket = keys.bucket_of(identifier)
    touched = (keys.offers(bucket), keys.devices(bucket), keys.long_devices(bucket), keys.presence(bucket))
    return touched, (as_bytes(identifier), as_bytes(connection), at_ms, patience_ms)


def children_come_back_call(keys: Keys, gateway: str, cursor: bytes, *, at_ms: int, patience_ms: int) -> Call:
    """The keys and arguments of CHILDREN_COME_BACK, from where COME_BACK or an earlier run of it ended."""
    touched = (keys.offers(keys.bucket_of(gateway)),)
    return touched, (as_bytes(gateway), at_ms, patience_ms, cursor)


def reset_call(keys: Keys, identifier: bytes, firmware_id: str) -> Call:
    """The keys and arguments of RESET; `firmware_id` "" for every firmware."""
    bucket = keys.bucket_of_name(identifier)
    touched = (keys.devices(bucket), keys.long_devices(bucket), keys.attempts(bucket))
    return touched, (identifier, firmware_id)


def _touched_by_outcome(keys: Keys, identifier: bytes) -> tuple[Argument, ...]:
    bucket = keys.bucket_of_name(identifier)
    return (
        *(keys.offers(bucket), keys.history_of(bucket, identifier)),
        *(keys.devices(bucket), keys.long_devices(bucket), keys.attempts(bucket)),
    )
