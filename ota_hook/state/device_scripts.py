"""The Lua scripts that read and write devices; devices.py, device_import.py and hot.py say what runs when.

A device's state is packed as records.py says. Tags stand there under the attribute with the empty name, so that a
report, which never names it, leaves them as they are; so do the marks of exhausted firmware and of how a child was
spoken of, which an operator's write of tags leaves too. Of each script but IMPORT and SCAN, KEYS 1 and 2 are the
compact and the long hash of the device's bucket, KEYS 3 its open offers, KEYS 4 its history and KEYS 5 its attempts. A
text for tags is '' where nothing is said of them, and else '=' and the tags.
"""

from __future__ import annotations

from typing import Final

from ota_hook.state.connection import Script
from ota_hook.state.lua_functions import DEVICE_LUA, OFFERS_LUA, REPORT_LUA

LOAD: Final = Script(
    DEVICE_LUA
    + """
local packed = read_device(KEYS[1], KEYS[2], ARGV[1])
if not packed then return false end
return {packed, redis.call('HGET', KEYS[3], ARGV[1])}
"""
)

REPORT: Final = Script(
    DEVICE_LUA
    + REPORT_LUA
    + """
local identifier, reported_at, refresh = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local expected, register = ARGV[4], ARGV[5] == '1'
local speaker = string.match(identifier, '^([^/]*)/')
if speaker then
  local gateway = read_device(KEYS[1], KEYS[2], speaker)
  local speaking = gateway and unpack_record(gateway)
  if not speaking or (expected ~= '' and speaking[1] ~= expected) then return false end
  expected, register = '', false
end
local packed = read_device(KEYS[1], KEYS[2], identifier)
local device
if packed then
  device = cmsgpack.unpack(packed)
  if expected ~= '' and device[1] ~= expected then return false end
elseif register then
  device = {expected}
else
  return false
end
local changed = not packed
for i = 6, #ARGV, 3 do
  local is_kept = is_kept_by(ARGV[i + 2], device[1])
  if is_kept and note_version(device, ARGV[i], ARGV[i + 1], reported_at, refresh) then changed = true end
end
if changed then
  local stored = packed
  packed = cmsgpack.pack(device)
  write_device(KEYS[1], KEYS[2], identifier, packed, stored)
end
return {packed, redis.call('HGET', KEYS[3], identifier)}
"""
)
"""A child is reported by its gateway: the type that is expected is the gateway's, and it is never registered here."""

# '' expects nothing, '*' any device, and else the digests stand between line breaks.
_EXPECTED_LUA: Final = """
local function is_one_of(digests, digest)
  if not digest then return false end
  return digests == '*' or string.find(digests, '\\n' .. digest .. '\\n', 1, true) ~= nil
end
local function find_conflict(stored, digests, other_than)
  local digest = stored and redis.sha1hex(stored)
  if digests ~= '' and not is_one_of(digests, digest) then return 'changed' end
  if other_than ~= '' and is_one_of(other_than, digest) then return 'there' end
  return nil
end
"""

CREATE: Final = Script(
    DEVICE_LUA
    + """
if read_device(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
write_device(KEYS[1], KEYS[2], ARGV[1], ARGV[2], false)
return 1
"""
)

_PUT_LUA: Final = """
local function put_device(keys, stored, identifier, device_type, packed, tags)
  if packed == stored then return {} end
  local device = stored and unpack_record(stored)
  if stored and not device and packed == '' then return nil end
  local cancelled = {}
  if stored and not (device and device[1] == device_type) then
    cancelled = cancel_all(identifier, keys[3], keys[4])
  end
  device = device or {}
  device[1] = device_type
  local kept, exhausted, form = get_tags(device)
  if tags ~= '' then kept = string.sub(tags, 2) end
  if packed == '' then
    set_tags(device, kept, exhausted, form)
    packed = cmsgpack.pack(device)
  elseif exhausted ~= '' or form ~= '' or (tags == '' and kept ~= '') then
    device = cmsgpack.unpack(packed)
    set_tags(device, kept, exhausted, form)
    packed = cmsgpack.pack(device)
  end
  if packed ~= stored then write_device(keys[1], keys[2], identifier, packed, stored) end
  return cancelled
end
"""
"""`packed` is the whole state but for tags of which nothing is said; '' where nothing is said of versions. Answers the
firmware whose offers were cancelled; nil where something should be kept of a record that can't be read.
"""

PUT: Final = Script(
    DEVICE_LUA
    + _EXPECTED_LUA
    + OFFERS_LUA
    + _PUT_LUA
    + """
local stored = read_device(KEYS[1], KEYS[2], ARGV[3])
local conflict = find_conflict(stored, ARGV[1], ARGV[2])
if conflict then return conflict end
local cancelled = put_device(KEYS, stored, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
if not cancelled then return 'unreadable' end
return {stored and 0 or 1, cancelled}
"""
)

IMPORT: Final = Script(
    DEVICE_LUA
    + OFFERS_LUA
    + _PUT_LUA
    + """
local created, cancelled, unreadable = 0, {}, {}
for i = 1, #ARGV, 4 do
  local keys = {KEYS[i], KEYS[i + 1], KEYS[i + 2], KEYS[i + 3]}
  local stored = read_device(keys[1], keys[2], ARGV[i])
  if not stored then created = created + 1 end
  local closed = put_device(keys, stored, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  if not closed then unreadable[#unreadable + 1] = ARGV[i] end
  for _, firmware in ipairs(closed or {}) do cancelled[#cancelled + 1] = firmware end
end
return {created, cancelled, unreadable}
"""
)
"""Four keys and the last four arguments of PUT per device, for devices that one server has. Each device is written as
by PUT; how many were created, the firmware whose offers were cancelled, and the devices that PUT would refuse."""

PATCH: Final = Script(
    DEVICE_LUA
    + _EXPECTED_LUA
    + OFFERS_LUA
    + """
local identifier, device_type, tags = ARGV[3], ARGV[4], ARGV[5]
local stored = read_device(KEYS[1], KEYS[2], identifier)
if not stored then return false end
local conflict = find_conflict(stored, ARGV[1], ARGV[2])
if conflict then return conflict end
local device = unpack_record(stored)
if not device then return 'unreadable' end
local cancelled = {}
if device_type ~= '' and device[1] ~= device_type then
  cancelled = cancel_all(identifier, KEYS[3], KEYS[4])
  device[1] = device_type
end
for i = 6, #ARGV, 3 do
  if ARGV[i + 1] == '1' then set_attribute(device, ARGV[i], ARGV[i + 2]) else forget_attribute(device, ARGV[i]) end
end
local kept, exhausted, form = get_tags(device)
if tags ~= '' then set_tags(device, string.sub(tags, 2), exhausted, form) end
local packed = cmsgpack.pack(device)
if packed ~= stored then write_device(KEYS[1], KEYS[2], identifier, packed, stored) end
return {packed, redis.call('HGET', KEYS[3], identifier), cancelled}
"""
)

DELETE: Final = Script(
    DEVICE_LUA
    + _EXPECTED_LUA
    + OFFERS_LUA
    + """
local identifier = ARGV[3]
local stored = read_device(KEYS[1], KEYS[2], identifier)
local conflict = stored and find_conflict(stored, ARGV[1], ARGV[2])
if conflict then return conflict end
local cancelled = cancel_all(identifier, KEYS[3], KEYS[4])
redis.call('DEL', KEYS[4])
redis.call('HDEL', KEYS[5], identifier)
local gone = redis.call('HDEL', KEYS[1], identifier) + redis.call('HDEL', KEYS[2], identifier)
return {gone > 0 and 1 or 0, cancelled}
"""
)

COUNT: Final = Script(
    """
local known = 0
for i = 1, #KEYS do known = known + redis.call('HEXISTS', KEYS[i], ARGV[i]) end
return known
"""
)
"""How many of the identifiers are there, each under the key of its number."""

SCAN: Final = Script(
    """
local blobs = {}
for i = 1, #KEYS, 2 do
  local compact, long = redis.pcall('HGETALL', KEYS[i]), redis.pcall('HGETALL', KEYS[i + 1])
  local refusal = compact.err or long.err
  if refusal and not string.find(refusal, 'WRONGTYPE', 1, true) then return redis.error_reply(refusal) end
  if refusal then blobs[#blobs + 1] = '\\193'
  else blobs[#blobs + 1] = #compact + #long > 0 and cmsgpack.pack(compact, long) or '' end
end
return blobs
"""
)
"""KEYS are the compact and the long hash of each bucket; per bucket a blob (see records.unpack_bucket), '' where there
is no device, UNREADABLE_BUCKET where a key is no hash.
"""
