-- Depend: makes a job that waits already wait for more.
--
-- ARGV  now | '', job, or the mark under which its publish goes on, what it waits for as JSON, see
--       lib/dependency.lua, 1 if that is the last of it
-- Reply 1 done, 0 the job does not wait, -1 it would wait for itself; one whose publish goes on
--       is deleted then
-- Cost  O(log n) per dependency; at most 300 a call
-- @include clock
-- @include layout
-- @include dependency
-- @include cycle
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local now, all = clock(), dependencies()
local mark = string.sub(ARGV[2], 1, 1) == '!' and ARGV[2]
local id = mark and redis.call('ZRANGE', DEPENDENTS .. mark, 0, 0)[1] or ARGV[2]
local _, queue = all.look_up(id)
if not queue or not redis.call('ZSCORE', WAITING .. queue, id)
    or redis.call('EXISTS', UNMET .. id) == 0 then
  return 0
end
local wanted = cjson.decode(ARGV[3])
if closes_cycle(id, wanted.on) then
  if mark then
    redis.call('ZREM', WAITING .. queue, id)
    all.stop_waiting(id)
    end_features(queue, {id}, 'gone', now)
    redis.call('UNLINK', JOB .. id, EXTRA .. id)
  end
  return -1
end
-- This write may grow, so a full server refuses here, before anything is changed.
local arrival = redis.call('HINCRBY', META, 'seq', 1)
all.depend(id, queue, wanted, arrival, now)
if mark and ARGV[4] == '1' then
  all.meet(mark, id, now)
  all.drop_edge(mark, id)
end
return 1
