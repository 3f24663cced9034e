-- Listen: enters somebody as a listener of a fanout exchange, for a while.
--
-- ARGV  now | '', exchange, listener, its queue, how long the entry lives (ms)
-- Reply the id of the last message of the stream; what comes after it is for the listener
-- Cost  O(log n)
-- @include clock
-- @include layout
-- @include room
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server() -- a worker must be able to start and empty it
local now = clock()
local key = LISTENERS .. ARGV[2]
redis.call('ZADD', key, now + ARGV[5], ARGV[3])
redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. now)
redis.call('PEXPIRE', key, ARGV[5])
-- The entry has a life of its own: the queue holds nothing that could outlive it.
redis.call('DEL', LIFE .. ARGV[4], ATTENDANCE .. ARGV[4])
redis.call('SREM', QUEUES, ARGV[4])
local last = redis.call('XREVRANGE', FANOUT .. ARGV[2], '+', '-', 'COUNT', 1)
return last[1] and last[1][1] or '0-0'
