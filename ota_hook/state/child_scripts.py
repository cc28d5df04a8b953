"""The Lua scripts of a gateway's messages about its children, with their calls; hot_children.py says what runs when.

A gateway and its children are in one bucket. KEYS 1 and 2 of each script are its compact and its long hash of devices,
KEYS 3 its open offers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ota_hook.model import ChildForm
from ota_hook.ports.device_messages import ChildCame, ChildComing, ChildrenReported
from ota_hook.state.connection import Argument, Call, Script
from ota_hook.state.keys import Keys, as_bytes
from ota_hook.state.lua_functions import COME_BACK_LUA, DEVICE_LUA, OFFERS_LUA, REPORT_LUA
from ota_hook.state.records import form_mark

DEFAULT_CHILDREN_MAX: Final = 1_000
_FIELDS_A_LOOK: Final = 1_000
"""Lua's stack holds some thousands."""
_FEW_LOOKS: Final = 40
_COMPACT_ENTRIES: Final = 512
"""Redis's `hash-max-ziplist-entries`. Each look into the compact encoding goes through it from the start; beyond so
many looks it is quicker to read all of it once.
"""

_MANY_LUA: Final = f"""
local function look_up(key, identifiers, found)
  for first = 1, #identifiers, {_FIELDS_A_LOOK} do
    local last = math.min(first + {_FIELDS_A_LOOK} - 1, #identifiers)
    local values = redis.call('HMGET', key, unpack(identifiers, first, last))
    for at = first, last do found[identifiers[at]] = values[at - first + 1] end
  end
  return found
end
local function read_devices(compact, long, identifiers)
  local short, found = {{}}, {{}}
  for _, identifier in ipairs(identifiers) do
    if #identifier <= COMPACT then short[#short + 1] = identifier
    else found[identifier] = redis.call('HGET', long, identifier) end
  end
  if #short > {_FEW_LOOKS} and redis.call('HLEN', compact) <= {_COMPACT_ENTRIES} then
    local all = redis.call('HGETALL', compact)
    for at = 1, #all, 2 do found[all[at]] = all[at + 1] end
  else
    look_up(compact, short, found)
  end
  for _, identifier in ipairs(short) do
    if found[identifier] == '' then found[identifier] = redis.call('HGET', long, identifier) end
  end
  return found
end
"""
"""Needs DEVICE_LUA. `read_device` for many."""

STORE_CHILDREN: Final = Script(
    DEVICE_LUA
    + REPORT_LUA
    + _MANY_LUA
    + """
local gateway, reported_at, refresh = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local expected = ARGV[4]
local speaker = read_device(KEYS[1], KEYS[2], gateway)
if not speaker then return false end
local speaking = unpack_record(speaker)
if not speaking then return {speaker, 0, 0, {}, {}} end
if expected ~= '' and speaking[1] ~= expected then return false end
local function each_child(visit)
  local at = 5
  while at <= #ARGV do
    local count, width = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    local attributes, first, stride = at + 2, at + 2 + 2 * width, 2 + width
    at = first + count * stride
    for i = first, at - 1, stride do visit(i, attributes, width) end
  end
end
local identifiers = {}
each_child(function(i) identifiers[#identifiers + 1] = ARGV[i] end)
local found = read_devices(KEYS[1], KEYS[2], identifiers)
local known, unknown, unreadable = {}, 0, {}
each_child(function(i, attributes, width)
  local identifier, stored = ARGV[i], found[ARGV[i]]
  local device = stored and unpack_record(stored)
  if not stored then unknown = unknown + 1
  elseif not device then unreadable[#unreadable + 1] = identifier
  else
    local changed = set_form(device, ARGV[i + 1])
    for at = 0, width - 1 do
      local attribute, keepers, text = ARGV[attributes + 2 * at], ARGV[attributes + 2 * at + 1], ARGV[i + 2 + at]
      local is_kept = is_kept_by(keepers, device[1])
      if is_kept and note_version(device, attribute, text, reported_at, refresh) then changed = true end
    end
    if changed then
      found[identifier] = cmsgpack.pack(device)
      write_device(KEYS[1], KEYS[2], identifier, found[identifier], stored)
    end
    known[#known + 1] = identifier
  end
end)
local offers, offered = look_up(KEYS[3], known, {}), {}
for _, identifier in ipairs(known) do
  if offers[identifier] then
    offered[#offered + 1] = identifier
    offered[#offered + 1] = found[identifier]
    offered[#offered + 1] = offers[identifier]
  end
end
return {speaker, #known, unknown, unreadable, offered}
"""
)
"""REPORT for each child, and how it was spoken of. False where the gateway is not there, or is of another type.

Answers the gateway's record, how many children are there and how many are not, whose record can't be read, and
identifier, record and open offers of those that have some.
"""

CHILDREN_CAME: Final = Script(
    DEVICE_LUA
    + OFFERS_LUA
    + COME_BACK_LUA
    + _MANY_LUA
    + f"""
local gateway, expected = ARGV[1], ARGV[2]
local now, patience, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local first, stride = 6, 3
local words, again, identifiers = {{}}, {{}}, {{}}
for i = first, #ARGV, stride do identifiers[#identifiers + 1] = ARGV[i] end
local speaker = read_device(KEYS[1], KEYS[2], gateway)
local speaking = speaker and unpack_record(speaker)
if not speaking or (expected ~= '' and speaking[1] ~= expected) then
  for at = 1, #identifiers do words[at] = '{ChildCame.UNKNOWN_GATEWAY}' end
  return {{words, again}}
end
local function count_children()
  local prefix, count = gateway .. '/', 0
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(name, 1, #prefix) == prefix then count = count + 1 end
  end
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    if #name > COMPACT and string.sub(name, 1, #prefix) == prefix then count = count + 1 end
  end
  return count
end
local left, is_counted = most, most == 0
if not is_counted then left = most - redis.call('HLEN', KEYS[1]) - redis.call('HLEN', KEYS[2]) end
local function has_room()
  if left <= 0 and not is_counted then left, is_counted = most - count_children(), true end
  return left > 0
end
local found = read_devices(KEYS[1], KEYS[2], identifiers)
local function come(identifier, form, product)
  local stored = found[identifier]
  if not stored and product == '' then return '{ChildCame.UNKNOWN_DEVICE}' end
  if not stored and not has_room() then return '{ChildCame.TOO_MANY}' end
  local device = {{product}}
  if stored then device = unpack_record(stored) end
  if not device then return '{ChildCame.UNREADABLE}' end
  if product ~= '' and device[1] ~= product then return '{ChildCame.TYPE_DIFFERS}' end
  local is_changed = set_form(device, form)
  if is_changed or not stored then
    found[identifier] = cmsgpack.pack(device)
    write_device(KEYS[1], KEYS[2], identifier, found[identifier], stored)
  end
  if not stored then
    left = left - 1
    return '{ChildCame.REGISTERED}'
  end
  come_back(identifier, KEYS[3], now, patience, true, again)
  return '{ChildCame.KNOWN}'
end
for i = first, #ARGV, stride do words[#words + 1] = come(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
return {{words, again}}
"""
)
"""Answers what became of each, and identifier, run and chunk of each command that did not reach its child. Children are
counted once, where the bucket has as many devices as a gateway may have children, and not where there may be 0.

An identifier that the compact hash holds as well is in the long one with it, and counts once."""

NOTE_FORM: Final = Script(
    DEVICE_LUA
    + """
local identifier, form = ARGV[1], ARGV[2]
local stored = read_device(KEYS[1], KEYS[2], identifier)
local device = stored and unpack_record(stored)
if not device or not set_form(device, form) then return 0 end
write_device(KEYS[1], KEYS[2], identifier, cmsgpack.pack(device), stored)
return 1
"""
)


def store_children_call(keys: Keys, report: ChildrenReported, keepers: Mapping[str, bytes], *, refresh_ms: int) -> Call:
    """The keys and arguments of STORE_CHILDREN. `keepers`: see devices.keepers_by_attribute.

    Children that say the same attributes stand together behind these: one that says very many lengthens no other.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for identifier, versions in report.versions.items():
        alike.setdefault(tuple(filter(keepers.__contains__, versions)), []).append(identifier)
    arguments: list[Argument] = [as_bytes(report.gateway), report.reported_at_ms, refresh_ms, report.topic_type or ""]
    for attributes, identifiers in alike.items():
        arguments += (len(identifiers), len(attributes))
        for attribute in attributes:
            arguments += (as_bytes(attribute), keepers[attribute])
        for identifier in identifiers:
            versions = report.versions[identifier]
            arguments += (as_bytes(identifier), form_mark(identifier, report.forms[identifier]))
            arguments += (as_bytes(versions[attribute]) for attribute in attributes)
    return _touched(keys, report.gateway), arguments


def children_came_call(
    keys: Keys,
    gateway: str,
    coming: Sequence[ChildComing],
    *,
    topic_type: str | None,
    at_ms: int,
    patience_ms: int,
    children_max: int,
) -> Call:
    """The keys and arguments of CHILDREN_CAME; with `children_max` 0 it registers nobody."""
    arguments: list[Argument] = [as_bytes(gateway), topic_type or "", at_ms, patience_ms, children_max]
    for identifier, form, product in coming:
        arguments += (as_bytes(identifier), form_mark(identifier, form), as_bytes(product or ""))
    return _touched(keys, gateway), arguments


def note_form_call(keys: Keys, identifier: str, form: ChildForm) -> Call:
    """The keys and arguments of NOTE_FORM."""
    return _touched(keys, identifier)[:2], (as_bytes(identifier), form_mark(identifier, form))


def _touched(keys: Keys, identifier: str) -> tuple[str, str, str]:
    bucket = keys.bucket_of(identifier)
    return keys.devices(bucket), keys.long_devices(bucket), keys.offers(bucket)
