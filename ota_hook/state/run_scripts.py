"""The scripts of one run. All keys of a run share a slot: its records and its counters change together, or not at all.

A record is `[outcome, firmware, from version, command id, at_ms, code, failures, not before, failed]`, the last three
only where they were set; `failed` is when and how it failed last and was planned again: `[at_ms, outcome, code]`. What
can't be read is no record: it is left alone and counts for nothing.

The run's hash counts the records at each outcome (`n:OUTCOME`), all of them (`total`), the final ones (`final`) and
those whose command left and did not reach its device (`waited_for`); its state becomes `completed` with the last.

RECOUNT counts them anew, some chunks at a time, beside everything else: `recount` is the number of the first chunk that
it has not counted, and a record that changes in an earlier one changes what was counted so far (`r:…`) too.
"""

from __future__ import annotations

from typing import Final

from ota_hook.model import Outcome
from ota_hook.state.connection import Script
from ota_hook.state.lua_functions import RANKS_LUA

_FIRST_FINAL: Final = sum(not outcome.is_final for outcome in Outcome)
_OUTCOMES_LUA: Final = ",".join(f"'{outcome.value}'" for outcome in Outcome)

RUN_LUA: Final = f"""
local OUTCOME, FIRMWARE, FROM_VERSION, ID, AT, CODE, FAILURES, NOT_BEFORE, FAILED = 1, 2, 3, 4, 5, 6, 7, 8, 9
local RANKS = {{{RANKS_LUA}}}
local FINAL = {_FIRST_FINAL}
local OUTCOMES = {{{_OUTCOMES_LUA}}}
local IS_OUTCOME = {{}}
for _, outcome in ipairs(OUTCOMES) do IS_OUTCOME[outcome] = true end
local function rank_of(outcome) return RANKS[outcome] or FINAL end
local TYPES = {{'string', 'string', 'string', 'number', 'number', 'string', 'number', 'number', 'table'}}
local function unpack_record(packed)
  local ok, record, more = pcall(cmsgpack.unpack, packed or '')
  if not ok or more ~= nil or type(record) ~= 'table' or #record < CODE then return nil end
  for i, kind in ipairs(TYPES) do
    if type(record[i]) ~= kind and (i <= CODE or record[i] ~= nil) then return nil end
  end
  return IS_OUTCOME[record[OUTCOME]] and record or nil
end
local function is_waited_for(record)
  return record[CODE] == 'undelivered' and (record[OUTCOME] == 'offered' or record[OUTCOME] == 'sending')
end
local function complete_if_done(run, now)
  local state, planned, total, final = unpack(redis.call('HMGET', run, 'state', 'planned', 'total', 'final'))
  if planned and (state == 'running' or state == 'waiting') and tonumber(final) == tonumber(total) then
    redis.call('HSET', run, 'state', 'completed', 'finished', now)
  end
end
local function count_failed(run)
  local counts = redis.call('HMGET', run, 'n:succeeded', 'n:failed', 'n:timed_out', 'retried')
  for i = 1, 4 do counts[i] = tonumber(counts[i] or 0) end
  local failed = counts[2] + counts[3] + counts[4]
  return failed, failed + counts[1]
end
local function stop_if_it_fails(run, after, percent)
  local failed, finished = count_failed(run)
  local before = redis.call('HMGET', run, 'forgiven', 'forgiven_of')
  failed, finished = failed - tonumber(before[1] or 0), finished - tonumber(before[2] or 0)
  if finished < after or failed * 100 < percent * finished then return false end
  local reason = '%d of %d devices that finished failed or timed out; it stops at %d %%.'
  redis.call('HSET', run, 'before', redis.call('HGET', run, 'state'), 'state', 'stopped',
             'reason', string.format(reason, failed, finished, percent))
  return true
end
local recounted
local function count(run, number, counter, change)
  redis.call('HINCRBY', run, counter, change)
  recounted = recounted or tonumber(redis.call('HGET', run, 'recount') or 0)
  if tonumber(number) < recounted then redis.call('HINCRBY', run, 'r:' .. counter, change) end
end
local function write(run, chunk, number, identifier, record, was_waited_for)
  local change = (is_waited_for(record) and 1 or 0) - (was_waited_for and 1 or 0)
  if change ~= 0 then count(run, number, 'waited_for', change) end
  redis.call('HSET', chunk, identifier, cmsgpack.pack(record))
end
local function move(run, chunk, number, identifier, record, outcome, code, now)
  local was_waited_for = is_waited_for(record)
  count(run, number, 'n:' .. record[OUTCOME], -1)
  count(run, number, 'n:' .. outcome, 1)
  if rank_of(outcome) == FINAL then redis.call('HINCRBY', run, 'final', 1) end
  record[OUTCOME], record[CODE], record[AT] = outcome, code, now
  write(run, chunk, number, identifier, record, was_waited_for)
end
"""

# KEYS: run. ARGV: now, retries, ms before the first of them.
BEGIN: Final = Script("""
local state, planned = unpack(redis.call('HMGET', KEYS[1], 'state', 'planned'))
if not planned and (state or 'waiting') == 'waiting' then
  redis.call('HSET', KEYS[1], 'state', 'planning', 'started', ARGV[1], 'retries', ARGV[2], 'backoff', ARGV[3])
  for _, counter in ipairs({'cursor', 'chunks', 'total', 'final'}) do redis.call('HSETNX', KEYS[1], counter, 0) end
end
return redis.call('HMGET', KEYS[1], 'state', 'cursor', 'chunks')
""")
"""Begins to plan, or finds how far planning is: state, cursor, number of chunks."""

# KEYS: run, chunk, unsent. ARGV: cursor before, cursor behind, chunk number, then identifier, record, …
PLAN: Final = Script("""
local state, cursor = unpack(redis.call('HMGET', KEYS[1], 'state', 'cursor'))
if state ~= 'planning' or cursor ~= ARGV[1] then return 0 end
local count = (#ARGV - 3) / 2
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('HINCRBY', KEYS[1], 'total', count)
redis.call('HINCRBY', KEYS[1], 'n:planned', count)
redis.call('HSET', KEYS[1], 'cursor', ARGV[2], 'chunks', ARGV[3] + 1)
redis.call('ZADD', KEYS[3], 0, ARGV[3])
return 1
""")
"""Adds a chunk, if planning is where this planner believes it is: another one may have gone on in its place."""

# KEYS: run. ARGV: cursor, now.
END_PLAN: Final = Script(
    RUN_LUA
    + """
local state, cursor = unpack(redis.call('HMGET', KEYS[1], 'state', 'cursor'))
if state ~= 'planning' or cursor ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'running', 'planned', 1)
complete_if_done(KEYS[1], ARGV[2])
return 1
"""
)

# KEYS: run, unsent. ARGV: now, stale before, most in the queue.
QUEUE: Final = Script("""
local state, paced = unpack(redis.call('HMGET', KEYS[1], 'state', 'paced'))
if state ~= 'running' or (paced and tonumber(ARGV[1]) < tonumber(paced)) then return {} end
local queued = redis.call('ZCOUNT', KEYS[2], ARGV[2], '+inf')
local room = (paced and 1 or tonumber(ARGV[3])) - queued
if room <= 0 then return {} end
local chunks = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[2], 'LIMIT', 0, room)
for _, chunk in ipairs(chunks) do redis.call('ZADD', KEYS[2], ARGV[1], chunk) end
return chunks
""")
"""The chunks that belong into the queue now: never too many at once, and again those that nobody holds any more.

Where the pace holds a run up, one at a time, and none before it allows a command more."""

# KEYS: run, chunk, unsent, later. ARGV: chunk number, worker, now, lease ms, most wanted, first id, is first call (1 or
# 0), rate per minute (0: unbounded), ramp from (0: none), most concurrent (0: unbounded), stop after (0: never), stop
# percent, jitter ms (0: none), a random number.
TAKE: Final = Script(
    RUN_LUA
    + """
local number, worker, now, lease, wanted = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local next_id, is_first = tonumber(ARGV[6]), ARGV[7] == '1'
local rate, ramp, most = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local stop_after, stop_percent, jitter = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local run, field = KEYS[1], 'l:' .. number
local state, held = unpack(redis.call('HMGET', run, 'state', field))
local holder, expires = string.match(held or '', '^(.-)|(%d+)$')
if holder and holder ~= worker and tonumber(expires) > now then return {'held', tonumber(expires) - now, {}, {}} end
if state == 'running' and stop_after > 0 and stop_if_it_fails(run, stop_after, stop_percent) then state = 'stopped' end
if state ~= 'running' then
  redis.call('HDEL', run, field)
  if redis.call('ZSCORE', KEYS[3], number) then redis.call('ZADD', KEYS[3], 0, number) end
  return {'stopped', 0, {}, {}}
end
redis.call('HSET', run, field, worker .. '|' .. (now + lease))
local again, planned, sending, next_due = {}, {}, 0, nil
-- In steps: a chunk is asked for so often at most, each at moments of its own.
math.randomseed(tonumber(ARGV[14]))
local steps = math.ceil(math.min(20, jitter / 1000))
local phase = math.random()
local flat = redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  local record = unpack_record(flat[i + 1])
  local outcome = record and record[OUTCOME]
  if outcome == 'sending' then
    sending = sending + 1
    if is_first then again[#again + 1] = flat[i]; again[#again + 1] = flat[i + 1] end
  elseif outcome == 'planned' then
    if jitter > 0 and not record[NOT_BEFORE] then
      record[FAILURES] = record[FAILURES] or 0
      record[NOT_BEFORE] = now + math.floor((math.random(0, steps - 1) + phase) * jitter / steps)
      redis.call('HSET', KEYS[2], flat[i], cmsgpack.pack(record))
    end
    local due = record[NOT_BEFORE] or 0
    if due <= now then planned[#planned + 1] = {flat[i], record}
    elseif not next_due or due < next_due then next_due = due end
  end
end
if #planned == 0 and sending == 0 then
  redis.call('ZREM', KEYS[3], number)
  if next_due then redis.call('ZADD', KEYS[4], 'LT', next_due, number) end
  redis.call('HDEL', run, field)
  return {'done', 0, {}, {}}
end
redis.call('ZADD', KEYS[3], now, number)
local may, wait = math.min(wanted, #planned), 0
local would = may
if stop_after > 0 then
  -- Results first: never further ahead of them than twice what succeeded.
  local ahead = 2 * math.max(stop_after, tonumber(redis.call('HGET', run, 'n:succeeded') or 0))
  most = most > 0 and math.min(most, ahead) or ahead
end
if most > 0 then
  -- Who is away has no command: a fleet that sleeps must not keep the rest from theirs.
  local under_way = -tonumber(redis.call('HGET', run, 'waited_for') or 0)
  for outcome, _ in pairs(RANKS) do
    if outcome ~= 'planned' then under_way = under_way + tonumber(redis.call('HGET', run, 'n:' .. outcome) or 0) end
  end
  may = math.min(may, math.max(0, most - under_way))
  wait = 1000
end
if rate > 0 and may > 0 then
  local started = tonumber(redis.call('HGET', run, 'pace_from') or now)
  if started == now then redis.call('HSET', run, 'pace_from', now) end
  if ramp > 0 then rate = math.min(rate, ramp * 2 ^ math.min(30, math.floor((now - started) / 60000))) end
  local burst = 1 + rate / 60
  local tokens, at = unpack(redis.call('HMGET', run, 'tokens', 'tokens_at'))
  tokens = math.min(burst, tonumber(tokens or 1) + math.max(0, now - tonumber(at or now)) * rate / 60000)
  may = math.min(may, math.floor(tokens))
  redis.call('HSET', run, 'tokens', tostring(tokens - may), 'tokens_at', now)
  wait = math.ceil(math.max(1, (1 - (tokens - may)) * 60000 / rate))
end
if may == 0 and would > 0 and #again == 0 then
  redis.call('HSET', run, 'paced', now + wait)
  redis.call('ZADD', KEYS[3], 0, number)
  redis.call('HDEL', run, field)
  return {'paced', wait, {}, {}}
end
if may == would then redis.call('HDEL', run, 'paced') end
local taken = {}
for i = 1, may do
  local identifier, record = planned[i][1], planned[i][2]
  if record[ID] == 0 then record[ID] = next_id; next_id = next_id + 1 end
  move(run, KEYS[2], number, identifier, record, 'sending', '', now)
  taken[#taken + 1] = identifier
  taken[#taken + 1] = redis.call('HGET', KEYS[2], identifier)
end
return {'taken', wait, again, taken}
"""
)
"""Lends a chunk to a worker and gives it devices to send to, as many as the pace allows.

Returns a word and a number of ms, then records that an earlier holder was sending when it was lost (told only at the
first call), then new ones: they are `sending` and have their command ids before anybody sends. `held`: another worker
has the chunk; `stopped`: the run does not run; `done`: no command of the chunk may leave now, and WAKE knows when one
may; `paced`: the pace allows none, and QUEUE knows when: nobody holds the chunk meanwhile, and other runs have
their turn. The ms say when to ask again. Jitter is a wait that a device gets when its chunk is first lent.
"""

# KEYS: run, chunk, deadlines. ARGV: chunk number, now, timeout ms, then identifier, outcome, code, firmware, from
# version, …
SENT: Final = Script(
    RUN_LUA
    + """
local now, moved, is_open = tonumber(ARGV[2]), 0, false
for i = 4, #ARGV, 5 do
  local record = unpack_record(redis.call('HGET', KEYS[2], ARGV[i]))
  if record and record[OUTCOME] == 'sending' then
    record[FIRMWARE], record[FROM_VERSION] = ARGV[i + 3], ARGV[i + 4]
    local outcome, code = ARGV[i + 1], ARGV[i + 2]
    if outcome == 'offered' then
      -- The broker's news of it may be faster than the worker's.
      if record[CODE] == 'undelivered' then code = 'undelivered' end
      if record[CODE] == 'came_back' then outcome = 'planned' end
    elseif outcome == 'skipped' and record[FAILED] then
      outcome, code = record[FAILED][2], record[FAILED][3]
    end
    move(KEYS[1], KEYS[2], ARGV[1], ARGV[i], record, outcome, code, now)
    moved = moved + 1
    is_open = is_open or rank_of(outcome) < FINAL
  end
end
if is_open then redis.call('ZADD', KEYS[3], 'LT', now + tonumber(ARGV[3]), ARGV[1]) end
complete_if_done(KEYS[1], now)
return moved
"""
)
"""What became of commands that a worker sent, or had to let be. One that moved on meanwhile stays where it is.

A device that failed and for which there is nothing now to try again with has failed: it was sent something."""

# KEYS: run, chunk, later. ARGV: chunk number, now, then identifier, outcome, code, at, …
MOVE: Final = Script(
    RUN_LUA
    + """
local now, moved = tonumber(ARGV[2]), 0
local state, retries, backoff = unpack(redis.call('HMGET', KEYS[1], 'state', 'retries', 'backoff'))
local may_retry = tonumber(retries or 0)
if state == 'cancelled' or state == 'failed' then may_retry = 0 end
for i = 3, #ARGV, 4 do
  local record = unpack_record(redis.call('HGET', KEYS[2], ARGV[i]))
  local outcome, code, at = ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local has_failed = outcome == 'failed' or (outcome == 'timed_out' and code ~= 'expired')
  local failed_at = record and record[FAILED] and record[FAILED][1]
  -- Each is told at least once: a failure that led to the retry is no second one, and steps before it are past.
  local is_past = failed_at and ((has_failed and at == failed_at) or (rank_of(outcome) < FINAL and at <= failed_at))
  if record and not is_past and rank_of(record[OUTCOME]) < FINAL and rank_of(outcome) > rank_of(record[OUTCOME]) then
    local failures = record[FAILURES] or 0
    if has_failed and failures < may_retry then
      record[FAILURES], record[NOT_BEFORE] = failures + 1, now + tonumber(backoff) * 2 ^ failures
      record[FAILED] = {at, outcome, code}
      move(KEYS[1], KEYS[2], ARGV[1], ARGV[i], record, 'planned', code, now)
      redis.call('HINCRBY', KEYS[1], 'retried', 1)
      redis.call('ZADD', KEYS[3], 'LT', record[NOT_BEFORE], ARGV[1])
    else
      move(KEYS[1], KEYS[2], ARGV[1], ARGV[i], record, outcome, code, at)
    end
    moved = moved + 1
  end
end
if moved > 0 then complete_if_done(KEYS[1], now) end
return moved
"""
)
"""What devices said or what was found out of them: an outcome never goes back.

One that failed, or timed out, is planned once more where the run retries, and waits twice as long each time."""

# KEYS: run. ARGV: stop after, stop percent.
STOP_IF_IT_FAILS: Final = Script(
    RUN_LUA
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'running' and state ~= 'waiting' then return 0 end
return stop_if_it_fails(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])) and 1 or 0
"""
)

# KEYS: unsent, later. ARGV: now.
WAKE: Final = Script("""
local chunks = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])
for _, chunk in ipairs(chunks) do
  redis.call('ZADD', KEYS[1], 'NX', 0, chunk)
  redis.call('ZREM', KEYS[2], chunk)
end
return #chunks
""")
"""Chunks with devices whose wait is over, for a retry or by chance, have something to send."""

# KEYS: run, chunk. ARGV: chunk number, then identifiers.
NOTE_UNDELIVERED: Final = Script(
    RUN_LUA
    + """
for i = 2, #ARGV do
  local identifier = ARGV[i]
  local record = unpack_record(redis.call('HGET', KEYS[2], identifier))
  local is_out = record and (record[OUTCOME] == 'offered' or record[OUTCOME] == 'sending')
  if is_out and record[CODE] ~= 'came_back' then
    local was_waited_for = is_waited_for(record)
    record[CODE] = 'undelivered'
    write(KEYS[1], KEYS[2], ARGV[1], identifier, record, was_waited_for)
  end
end
return 1
"""
)
"""Notes of devices that their command did not reach them: they don't time out, they are waited for."""

# KEYS: run, chunk, unsent. ARGV: chunk number, now, then identifiers.
AGAIN: Final = Script(
    RUN_LUA
    + """
local moved = 0
for i = 3, #ARGV do
  local record = unpack_record(redis.call('HGET', KEYS[2], ARGV[i]))
  if record and record[OUTCOME] == 'sending' then
    local was_waited_for = is_waited_for(record)
    record[CODE] = 'came_back'
    write(KEYS[1], KEYS[2], ARGV[1], ARGV[i], record, was_waited_for)
  elseif record and record[OUTCOME] == 'offered' then
    move(KEYS[1], KEYS[2], ARGV[1], ARGV[i], record, 'planned', '', tonumber(ARGV[2]))
    moved = moved + 1
  end
end
if moved > 0 then redis.call('ZADD', KEYS[3], 0, ARGV[1]) end
return moved
"""
)
"""Devices to which their command goes once more, with its id. For one that is `sending` SENT sees to it."""

# KEYS: run, chunk, deadlines. ARGV: chunk number, timeout ms, now.
NEXT_DEADLINE: Final = Script(
    RUN_LUA
    + """
local first = false
for _, packed in ipairs(redis.call('HVALS', KEYS[2])) do
  local record = unpack_record(packed)
  local rank = record and rank_of(record[OUTCOME]) or FINAL
  if rank > RANKS.sending and rank < FINAL then
    local at = is_waited_for(record) and tonumber(ARGV[3]) or record[AT]
    if not first or at < first then first = at end
  end
end
if first then redis.call('ZADD', KEYS[3], first + tonumber(ARGV[2]), ARGV[1])
else redis.call('ZREM', KEYS[3], ARGV[1]) end
return first
"""
)
"""When to look at the chunk again. Who is waited for has no deadline, and is looked at once in that time."""

# KEYS: run, then some chunks. ARGV: number of the first of these, now.
RECOUNT: Final = Script(
    RUN_LUA
    + """
local run, first, now = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local at, chunks = unpack(redis.call('HMGET', run, 'recount', 'chunks'))
if tonumber(at or 0) ~= first then return {-1, 0, {}} end
local names = {'waited_for'}
for _, outcome in ipairs(OUTCOMES) do names[#names + 1] = 'n:' .. outcome end
local tally, fields = {}, {}
for i, name in ipairs(names) do fields[i], tally[name] = 'r:' .. name, 0 end
if first == 0 then redis.call('HDEL', run, unpack(fields)) end
for i = 2, #KEYS do
  for _, packed in ipairs(redis.call('HVALS', KEYS[i])) do
    local record = unpack_record(packed)
    if record then
      local name = 'n:' .. record[OUTCOME]
      tally[name] = tally[name] + 1
      if is_waited_for(record) then tally.waited_for = tally.waited_for + 1 end
    end
  end
end
for _, name in ipairs(names) do
  if tally[name] > 0 then redis.call('HINCRBY', run, 'r:' .. name, tally[name]) end
end
local behind = first + #KEYS - 1
if behind < tonumber(chunks or 0) then
  redis.call('HSET', run, 'recount', behind)
  return {behind, 0, {}}
end
local found = redis.call('HMGET', run, unpack(fields))
local counted = {total = 0, final = 0}
for i, name in ipairs(names) do
  local number = tonumber(found[i] or 0)
  counted[name] = number
  if name ~= 'waited_for' then
    counted.total = counted.total + number
    if rank_of(string.sub(name, 3)) == FINAL then counted.final = counted.final + number end
  end
end
names[#names + 1], names[#names + 2] = 'total', 'final'
local differences = {}
for i, stored in ipairs(redis.call('HMGET', run, unpack(names))) do
  local name = names[i]
  if tonumber(stored or 0) ~= counted[name] then
    redis.call('HSET', run, name, counted[name])
    for _, value in ipairs({name, stored or '', counted[name]}) do differences[#differences + 1] = value end
  end
end
redis.call('HDEL', run, 'recount', unpack(fields))
local state = redis.call('HGET', run, 'state')
if state == 'completed' and counted.final < counted.total then
  redis.call('HDEL', run, 'finished', 'told:completed')
  redis.call('HSET', run, 'state', 'running')
end
complete_if_done(run, now)
redis.call('HSET', run, 'recounted', now, 'recounted_in', redis.call('HGET', run, 'state') or '')
return {behind, 1, differences}
"""
)
"""Counts some chunks more. Behind the last of them the counters are made what was counted, in the same step.

Returns the number of the next chunk, -1 where another worker counted on meanwhile; 1 behind the last; and what was
mended: name, found, counted, …. A run that completed by a wrong counter goes on; one that is complete is completed. A
record that can't be read counts for nothing.
"""

# KEYS: run. ARGV: state, now, ms.
IS_NEWS: Final = Script("""
local field = 'told:' .. ARGV[1]
local told = tonumber(redis.call('HGET', KEYS[1], field) or 0)
if told == 1 then return 0 end
if told > tonumber(ARGV[2]) then return -1 end
redis.call('HSET', KEYS[1], field, ARGV[2] + ARGV[3])
return 1
""")
"""Whether somebody has to tell of the state; -1 where somebody is at it. Who is answered 1 has so long to do it, and
sets the field to 1 then."""

# KEYS: run. ARGV: state wanted, reason, now, then the states from which it may be reached.
SET_STATE: Final = Script(
    RUN_LUA
    + """
local state = redis.call('HGET', KEYS[1], 'state') or 'waiting'
for i = 4, #ARGV do
  if state == ARGV[i] then
    local wanted = ARGV[1]
    if wanted == 'resumed' then
      wanted = redis.call('HGET', KEYS[1], 'before') or 'running'
      redis.call('HDEL', KEYS[1], 'told:paused', 'told:stopped')
      if state == 'stopped' then
        local failed, finished = count_failed(KEYS[1])
        redis.call('HSET', KEYS[1], 'forgiven', failed, 'forgiven_of', finished)
      end
    end
    if wanted == 'paused' or wanted == 'stopped' then redis.call('HSET', KEYS[1], 'before', state) end
    redis.call('HSET', KEYS[1], 'state', wanted, 'reason', ARGV[2])
    if wanted == 'cancelled' or wanted == 'failed' then redis.call('HSET', KEYS[1], 'finished', ARGV[3])
    else complete_if_done(KEYS[1], ARGV[3]) end
    return {1, state}
  end
end
return {0, state}
"""
)
"""Changes the state if it is one of those; says whether, and what it was. A run that stopped itself and is resumed has
another chance: what failed until then counts no more."""
