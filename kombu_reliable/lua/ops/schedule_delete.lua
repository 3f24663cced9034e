-- Schedule delete: removes a schedule.  Of one that code declares it stays known which declaration
-- was deleted, or the next worker that starts would bring it back.
--
-- ARGV  now | '', name
-- Reply 1, or 0 if there is none
-- Cost  O(log n)
-- @include layout
-- @include room
-- @include schedule
local name = ARGV[2]
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local key = SCHEDULE .. name
local revision, deleted, digest, decls, tick =
  unpack(redis.call('HMGET', key, 'rev', 'deleted', 'digest', 'decls', 'tick'))
if not revision or deleted then
  return 0
end
drop_tick(tick)
redis.call('UNLINK', key, SCHEDULED .. name)
redis.call('ZREM', SCHEDULES, name)
if digest then
  redis.call('HSET', key, 'rev', revision + 1, 'deleted', 1, 'digest', digest, 'decls', decls)
end
return 1
