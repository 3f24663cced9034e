-- Notice: somebody publishes to queues that nobody may have declared.  So that they can be listed,
-- the last ones are remembered.
--
-- ARGV  now | '', then the queues
-- Reply 1
-- Cost  O(log n) per queue; at most 100 queues a call
-- @include clock
-- @include layout
local KEPT = 4096
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local now = clock()
for i = 2, #ARGV do
  local queue = ARGV[i]
  if redis.call('SISMEMBER', QUEUES, queue) == 0 and redis.call('EXISTS', LIFE .. queue) == 0 then
    redis.call('ZADD', NOTICED, now, queue)
  end
end
redis.call('ZREMRANGEBYRANK', NOTICED, 0, -KEPT - 1)
return 1
