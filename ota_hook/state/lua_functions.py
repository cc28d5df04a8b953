"""The Lua functions that several scripts share: a device's record, its open offers, and how often it tried a firmware.

Owns how scripts read and write what records.py packs. Must not know which script does what with it.
"""

from __future__ import annotations

from typing import Final

from ota_hook.model import Outcome
from ota_hook.state.records import COMPACT_MAX_BYTES, EXHAUSTED_MARK, FORM_MARK, TAGS_ATTRIBUTE

HISTORY_LENGTH: Final = 20
ATTEMPT_GAP_MS: Final = 3_600_000
"""At most one attempt of a device counts in an hour."""
ATTEMPTED_MAX: Final = 16
"""Of so many firmware a device's attempts are kept, and so many are no longer offered to it; then the oldest goes."""
RANKS_LUA: Final = "".join(f"{outcome.value}={rank}," for rank, outcome in enumerate(Outcome) if not outcome.is_final)
"""The outcomes that are not final, in their order, as a Lua table."""

DEVICE_LUA: Final = f"""
local COMPACT = {COMPACT_MAX_BYTES}
local TAGS = '{TAGS_ATTRIBUTE}'
local function read_device(compact, long, identifier)
  if #identifier <= COMPACT then
    local packed = redis.call('HGET', compact, identifier)
    if packed ~= '' then return packed end
  end
  return redis.call('HGET', long, identifier)
end
local function write_device(compact, long, identifier, packed, stored)
  if #identifier <= COMPACT and #packed <= COMPACT then
    redis.call('HSET', compact, identifier, packed)
    if stored and #stored > COMPACT then redis.call('HDEL', long, identifier) end
    return
  end
  redis.call('HSET', long, identifier, packed)
  if #identifier <= COMPACT then redis.call('HSET', compact, identifier, '') end
end
local function find_attribute(device, attribute)
  for i = 2, #device, 3 do
    if device[i] == attribute then return i end
  end
  return nil
end
local function set_attribute(device, attribute, text)
  local at = find_attribute(device, attribute) or #device + 1
  device[at], device[at + 1], device[at + 2] = attribute, 0, text
end
local function forget_attribute(device, attribute)
  local at = find_attribute(device, attribute)
  for _ = 1, at and 3 or 0 do table.remove(device, at) end
end
local function trim_end(text)
  return (string.gsub(text, ' $', ''))
end
local function get_tags(device)
  local at = find_attribute(device, TAGS)
  local text = at and device[at + 2] or ''
  local mark = string.find(text, '{EXHAUSTED_MARK}', 1, true)
  if not mark then return text, '', '' end
  local marks = string.sub(text, mark)
  local form = string.match(marks, '{FORM_MARK}%S*$') or ''
  return trim_end(string.sub(text, 1, mark - 1)), trim_end(string.sub(marks, 1, #marks - #form)), form
end
local function set_tags(device, tags, exhausted, form)
  local parts = {{}}
  for _, part in ipairs({{tags, exhausted, form}}) do
    if part ~= '' then parts[#parts + 1] = part end
  end
  if #parts == 0 then forget_attribute(device, TAGS) else set_attribute(device, TAGS, table.concat(parts, ' ')) end
end
local function set_form(device, form)
  local tags, exhausted, old = get_tags(device)
  if form ~= old then set_tags(device, tags, exhausted, form) end
  return form ~= old
end
local function unpack_record(packed)
  local ok, device, more = pcall(cmsgpack.unpack, packed)
  if not ok or more ~= nil or type(device) ~= 'table' or #device % 3 ~= 1 then return nil end
  for i, value in ipairs(device) do
    if type(value) ~= (i % 3 == 0 and 'number' or 'string') then return nil end
  end
  return device
end
"""
"""`stored` is what `read_device` found. A text for tags is '' where nothing is said of them, and else '=' and the tags.

`get_tags` answers the tags, the marks of the firmware that is exhausted, and the mark of how a child was spoken of.
`unpack_record` is nil for a record that can't be read: an operator's write must be able to mend it.
"""

REPORT_LUA: Final = """
local function is_kept_by(keepers, device_type)
  return keepers == '*' or string.find(keepers, '\\n' .. device_type .. '\\n', 1, true) ~= nil
end
local function note_version(device, attribute, text, reported_at, refresh)
  local at = find_attribute(device, attribute)
  if at then
    local is_old = reported_at < device[at + 1]
    if is_old or (device[at + 2] == text and reported_at - device[at + 1] <= refresh) then return false end
  else
    at = #device + 1
    device[at] = attribute
  end
  device[at + 1], device[at + 2] = reported_at, text
  return true
end
"""
"""Needs DEVICE_LUA. `note_version` answers whether the record changed; see devices.py for `refresh`."""

OFFERS_LUA: Final = f"""
local MODULE, FIRMWARE, ATTRIBUTE, VERSION, FROM_VERSION, OFFERED_AT, IDS, RUN, CHUNK = 1, 2, 3, 4, 5, 6, 7, 8, 9
local STEP, NOTE, TRIED = 10, 11, 12
local NOT_TRIED, HAS_TRIED, WAS_AWAY = 0, 1, 2
local function is_offer(offer)
  if type(offer) ~= 'table' or type(offer[OFFERED_AT]) ~= 'number' or type(offer[IDS]) ~= 'table' then return false end
  for i = MODULE, FROM_VERSION do
    if type(offer[i]) ~= 'string' then return false end
  end
  local is_plain = type(offer[RUN] or '') == 'string' and type(offer[CHUNK] or 0) == 'number'
  return is_plain and type(offer[STEP] or '') == 'string' and type(offer[TRIED] or 0) == 'number'
end
local function fill(offer)
  offer[RUN], offer[CHUNK] = offer[RUN] or '', offer[CHUNK] or 0
  offer[STEP], offer[NOTE], offer[TRIED] = offer[STEP] or 'offered', offer[NOTE] or '', offer[TRIED] or NOT_TRIED
  return offer
end
local function read_offers(identifier, key)
  local ok, stored = pcall(cmsgpack.unpack, redis.call('HGET', key, identifier) or '')
  local offers = {{}}
  if not ok or type(stored) ~= 'table' then return offers end
  for i, offer in ipairs(stored) do
    if not is_offer(offer) then return {{}} end
    offers[i] = fill(offer)
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
  if offer[RUN] ~= '' then entry[11], entry[12] = offer[RUN], offer[CHUNK] end
  redis.call('LPUSH', history, cmsgpack.pack(entry))
  redis.call('LTRIM', history, 0, {HISTORY_LENGTH - 1})
end
local function cancel_all(identifier, key, history)
  local time = redis.call('TIME')
  local settled_at = time[1] * 1000 + math.floor(time[2] / 1000)
  local firmware = {{}}
  for _, offer in ipairs(read_offers(identifier, key)) do
    keep_settled(history, offer, 'cancelled', settled_at, '')
    local run = string.format('%s %.0f', offer[RUN], offer[CHUNK])
    firmware[#firmware + 1] = offer[FIRMWARE] .. ' ' .. run .. ' ' .. identifier
  end
  redis.call('HDEL', key, identifier)
  return firmware
end
"""
"""Reading, finding and settling a device's offers. What can't be read is no offer: the next one is written over it.

An offer's `TRIED` says whether the device has tried since the last attempt that counted; WAS_AWAY is an offer to a
device that was not connected, so that its coming is no coming back.
"""

COME_BACK_LUA: Final = """
local function come_back(identifier, key, now, patience, is_itself, again)
  local offers, changed = read_offers(identifier, key), false
  for _, offer in ipairs(offers) do
    local is_undelivered = offer[NOTE] == 'undelivered'
    local tried = offer[TRIED]
    if is_itself then tried = (is_undelivered or tried == WAS_AWAY) and NOT_TRIED or HAS_TRIED
    elseif tried == WAS_AWAY then tried = NOT_TRIED end
    local waits = is_undelivered or now - offer[OFFERED_AT] > patience
    if offer[RUN] ~= '' and offer[STEP] == 'offered' and waits then
      offer[NOTE], offer[OFFERED_AT], changed = '', now, true
      again[#again + 1] = identifier
      again[#again + 1] = offer[RUN]
      again[#again + 1] = offer[CHUNK]
    end
    if offer[TRIED] ~= tried then offer[TRIED], changed = tried, true end
  end
  if changed then write_offers(identifier, key, offers) end
end
"""
"""Needs OFFERS_LUA. Notes of a device's open offers that it is there: it came back itself, and so may have tried them,
or its gateway did. Adds identifier, run and chunk of each command that did not reach it to `again`.
"""

ATTEMPTS_LUA: Final = f"""
local function read_attempts(key, identifier)
  local ok, stored = pcall(cmsgpack.unpack, redis.call('HGET', key, identifier) or '')
  if not ok or type(stored) ~= 'table' or #stored % 3 ~= 0 then return {{}} end
  for i, value in ipairs(stored) do
    if type(value) ~= (i % 3 == 1 and 'string' or 'number') then return {{}} end
  end
  return stored
end
local function forget_attempts(attempts, at)
  for _ = 1, 3 do table.remove(attempts, at) end
end
local function mark_exhausted(compact, long, identifier, firmware)
  local stored = read_device(compact, long, identifier)
  local device = stored and unpack_record(stored)
  if not device then return end
  local tags, marks, form = get_tags(device)
  local mark = '{EXHAUSTED_MARK}' .. firmware
  if string.find(marks .. ' ', mark .. ' ', 1, true) then return end
  marks = marks == '' and mark or marks .. ' ' .. mark
  local _, count = string.gsub(marks, '{EXHAUSTED_MARK}', '')
  if count > {ATTEMPTED_MAX} then marks = string.gsub(marks, '^%S+ ', '') end
  set_tags(device, tags, marks, form)
  write_device(compact, long, identifier, cmsgpack.pack(device), stored)
end
local function count_attempt(compact, long, key, identifier, firmware, at_ms, most)
  local attempts, found, oldest = read_attempts(key, identifier), nil, nil
  local function is_older(one, other)  -- what is not exhausted goes first
    local is_done, other_is_done = attempts[one + 1] >= most, attempts[other + 1] >= most
    if is_done ~= other_is_done then return other_is_done end
    return attempts[one + 2] < attempts[other + 2]
  end
  for i = 1, #attempts, 3 do
    if attempts[i] == firmware then found = i end
    if not oldest or is_older(i, oldest) then oldest = i end
  end
  if found and math.abs(at_ms - attempts[found + 2]) < {ATTEMPT_GAP_MS} then return 0 end
  if not found and #attempts >= {3 * ATTEMPTED_MAX} then forget_attempts(attempts, oldest) end
  found = found or #attempts + 1
  attempts[found], attempts[found + 1], attempts[found + 2] = firmware, (attempts[found + 1] or 0) + 1, at_ms
  redis.call('HSET', key, identifier, cmsgpack.pack(attempts))
  if attempts[found + 1] < most then return 1 end
  mark_exhausted(compact, long, identifier, firmware)
  return 2
end
"""
"""Needs DEVICE_LUA. `count_attempt` answers 0 where none counts yet, 1 where it does, 2 where it was the last."""
