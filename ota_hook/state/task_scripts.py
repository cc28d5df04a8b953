"""The scripts of tasks and of what all runs share. Their keys are beside the catalogue, in one slot."""

from __future__ import annotations

from typing import Final

from ota_hook.state.connection import Script

SKIPS_KEPT: Final = 20

# KEYS: tasks, due. ARGV: task id, stored JSON expected ('' for none), JSON, due ('' for never, 'kept' for as it was).
PUT: Final = Script("""
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[4] == 'kept' then return 1 end
if ARGV[4] == '' then redis.call('ZREM', KEYS[2], ARGV[1]) else redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1]) end
return 1
""")

# KEYS: tasks, due, skips. ARGV: task id, stored JSON expected.
DELETE: Final = Script("""
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
return 1
""")

# KEYS: tasks, due, open by task, open runs, runs, runs of the task, work, skips.
# ARGV: task id, stored JSON expected, run id, head, now, due that is claimed ('' for none), next due ('' for never),
# why the claimed due is skipped ('' where it is not).
CREATE_RUN: Final = Script(f"""
local task, run, now, due, next_due, skip = ARGV[1], ARGV[3], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
if redis.call('HGET', KEYS[1], task) ~= ARGV[2] then return {{'changed', ''}} end
local open = redis.call('HGET', KEYS[3], task)
if open == run then return {{'created', run}} end  -- asked twice: the answer was lost
if due ~= '' then
  if redis.call('ZSCORE', KEYS[2], task) ~= due then return {{'overtaken', ''}} end
  if next_due == '' then redis.call('ZREM', KEYS[2], task) else redis.call('ZADD', KEYS[2], next_due, task) end
end
if open and due == '' then return {{'open', open}} end
if open or skip ~= '' then
  redis.call('LPUSH', KEYS[8], due .. ' ' .. (skip ~= '' and skip or 'open ' .. open))
  redis.call('LTRIM', KEYS[8], 0, {SKIPS_KEPT - 1})
  return {{'skipped', ''}}
end
redis.call('HSET', KEYS[3], task, run)
redis.call('HSET', KEYS[4], run, ARGV[4])
redis.call('ZADD', KEYS[5], now, run)
redis.call('ZADD', KEYS[6], now, run)
redis.call('XADD', KEYS[7], '*', 'run', run, 'chunk', '')
return {{'created', run}}
""")
"""Makes a run of a task and puts its planning into the queue; one open run a task. A due time is claimed with it, once
whoever looks."""

# KEYS: open runs, open by task. ARGV: run id, task id.
CLOSE_RUN: Final = Script("""
redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('HGET', KEYS[2], ARGV[2]) == ARGV[1] then redis.call('HDEL', KEYS[2], ARGV[2]) end
return 1
""")

# KEYS: open by task. ARGV: run id, task id.
FREE_TASK: Final = Script("""
if redis.call('HGET', KEYS[1], ARGV[2]) == ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[2]) end
return 1
""")
