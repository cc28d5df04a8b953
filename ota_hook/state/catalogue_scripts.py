"""The scripts of the catalogue. All keys share one slot.

KEYS: meta, changes, then one hash of documents per kind in the order of DocumentKind. A stream entry's id is
`REVISION-NUMBER`, its fields `kind` (1-based), `key` and `token`; revision R is complete behind this reader where the
entry `R-0` still has the token that this reader knows.
"""

from __future__ import annotations

from typing import Final

from ota_hook.state.connection import Script

_HEAD_LUA: Final = """
local meta = redis.call('HMGET', KEYS[1], 'format', 'buckets', 'revision', 'token', 'list_seed')
local revision, token = tonumber(meta[3] or '0'), meta[4] or ''
local head = {meta[1], meta[2], string.format('%.0f', revision), token, meta[5]}
"""

# ARGV: known revision, known token, most entries to read.
# Returns head, then 'same', 'all' (the reader is too far behind, or elsewhere) or 'some' with kind, key, document, …
LOAD: Final = Script(
    _HEAD_LUA
    + """
local known, most = tonumber(ARGV[1]), tonumber(ARGV[3])
if revision == known and token == ARGV[2] then return {head, 'same', {}} end
local mine = redis.call('XRANGE', KEYS[2], ARGV[1] .. '-0', ARGV[1] .. '-0')[1]
if known == 0 or revision <= known or not mine or mine[2][6] ~= ARGV[2] then return {head, 'all', {}} end
local entries = redis.call('XRANGE', KEYS[2], '(' .. ARGV[1] .. '-18446744073709551615', '+', 'COUNT', most + 1)
if #entries > most then return {head, 'all', {}} end
local seen, changes = {}, {}
for _, entry in ipairs(entries) do
  local kind, key = tonumber(entry[2][2]), entry[2][4]
  if not seen[kind .. ':' .. key] then
    seen[kind .. ':' .. key] = true
    local n = #changes
    changes[n + 1], changes[n + 2] = kind, key
    changes[n + 3] = redis.call('HGET', KEYS[2 + kind], key)
  end
end
return {head, 'some', changes}
"""
)

# Returns head, then per kind a flat list of keys and documents.
LOAD_ALL: Final = Script(
    _HEAD_LUA
    + """
local all = {}
for i = 3, #KEYS do all[#all + 1] = redis.call('HGETALL', KEYS[i]) end
return {head, all}
"""
)

# KEYS behind the documents: the keys of device lists to keep, then of those to drop.
# The keys of a list are its identifiers and its digests.
# ARGV: base revision, base token, new token, stream length, keys to keep, changes, kinds, then kind, key, document, …
# and for each list to keep the bytes of its digests: they were written last, so that where they are whole all of it is.
APPLY: Final = Script(
    _HEAD_LUA
    + """
local kinds, keep, changes = tonumber(ARGV[7]), tonumber(ARGV[5]), tonumber(ARGV[6])
if token == ARGV[3] then return {'applied', head[3]} end
if revision ~= tonumber(ARGV[1]) or token ~= ARGV[2] then return {'stale', head[3]} end
local lists = 2 + kinds
for n = 0, keep / 2 - 1 do
  local identifiers, digests = KEYS[lists + 1 + 2 * n], KEYS[lists + 2 + 2 * n]
  local whole = redis.call('STRLEN', digests) == tonumber(ARGV[8 + 3 * changes + n])
  if not whole or redis.call('EXISTS', identifiers) == 0 then return {'list_gone', head[3]} end
end
local new = string.format('%.0f', revision + 1)
for n = 0, changes - 1 do
  local kind, key, document = tonumber(ARGV[8 + 3 * n]), ARGV[9 + 3 * n], ARGV[10 + 3 * n]
  if document == '' then redis.call('HDEL', KEYS[2 + kind], key)
  else redis.call('HSET', KEYS[2 + kind], key, document) end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], new .. '-' .. n, 'kind', kind, 'key', key, 'token', ARGV[3])
end
for i = lists + 1, lists + keep do redis.call('PERSIST', KEYS[i]) end
for i = lists + keep + 1, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('HSET', KEYS[1], 'revision', new, 'token', ARGV[3])
return {'applied', new}
"""
)
