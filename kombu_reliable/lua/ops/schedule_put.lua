-- Schedule put: makes or changes a schedule.
--
-- ARGV  now | '', queue of ticks, name, the revision that was read ('' to make a new one, '*' for
--       any), at, due ('=' leaves both as they are), a line of history or '',
--       then fields and values; '' removes a field
-- Reply its revision; 0 if it was changed meanwhile, exists already, or is unknown
-- Cost  O(log n)
-- @include clock
-- @include layout
-- @include schedule
local queue, name, expected, at, due, line = unpack(ARGV, 2, 7)
local FIRST_FIELD = 8
local version, keeper, paused = unpack(redis.call('HMGET', META, 'v', 'keeper', 'paused'))
if foreign(version) then
  return refuse(version)
end
pausing = paused
local now, key = clock(), SCHEDULE .. name
local revision, deleted, past_at, past_due =
  unpack(redis.call('HMGET', key, 'rev', 'deleted', 'at', 'due'))
local there = revision and not deleted
if expected == '' and there or expected ~= '' and not there
    or expected ~= '' and expected ~= '*' and expected ~= revision then
  return 0
end
redis.call('HSET', key, 'rev', (tonumber(revision) or 0) + 1)
redis.call('HSET', META, 'v', LAYOUT)
redis.call('HDEL', key, 'deleted')
for i = FIRST_FIELD, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', key, ARGV[i])
  else
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end
if at == '=' then
  at, due = past_at or '', past_due or ''
end
local run = at == 'end' and redis.call('HGET', key, 'run')
plan(queue, name, at, due, now, keeper, run and cjson.decode(run) or nil)
if line ~= '' then
  remember_run(name, now, line)
end
return (tonumber(revision) or 0) + 1
