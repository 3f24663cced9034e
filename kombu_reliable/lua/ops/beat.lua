-- Beat: a worker says that it is there, or that it leaves.
--
-- ARGV  now | '', worker, for how long it is believed (ms; 0: it leaves), for how long it has been
--       there (ms), what there is to know about it
-- Reply 1
-- Cost  O(log n); forgets at most 100 others that died long ago
-- @include clock
-- @include layout
-- @include room
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local KEPT = 3600000 -- how long a dead worker is shown, ms
local now, worker, believed = clock(), ARGV[2], tonumber(ARGV[3])
local long_dead = redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now - KEPT, 'LIMIT', 0, 100)
if believed == 0 then
  long_dead[#long_dead + 1] = worker
else
  redis.call('ZADD', WORKERS, now + believed, worker)
  redis.call('HSET', ABOUT, worker,
    string.format('%.0f;%.0f;', now, now - tonumber(ARGV[4])) .. ARGV[5])
end
if #long_dead > 0 then
  redis.call('ZREM', WORKERS, unpack(long_dead))
  redis.call('HDEL', ABOUT, unpack(long_dead))
end
redis.call('PEXPIRE', WORKERS, KEPT + believed)
redis.call('PEXPIRE', ABOUT, KEPT + believed)
return 1
