-- Set limit: gives a throttle limits, whatever its jobs say, or takes them from it.
--
-- ARGV  now | '', throttle, 'set' or 'delete', then to set: for how long (ms; 0: for ever),
--       concurrency, ms between two starts, burst ('' for no limit), the rate as it was given
-- Reply 1 if it had limits that were set, else 0
-- Cost  O(log n); wakes the workers of at most 100 queues
-- @include clock
-- @include layout
-- @include room
-- @include queue_limits
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local all, now = lanes(), clock()
local name, set, life = ARGV[2], ARGV[3] == 'set', tonumber(ARGV[4])
local key = LIMITS .. name
local before = all.ours(key, 'HGET', 'set') and 1 or 0
redis.call('HDEL', key, 'set', 'c', 'r', 'b', 'text', 'until')
if set then
  if not version then
    redis.call('HSET', META, 'v', LAYOUT)
  end
  redis.call('HSET', key, 'set', 1, 'c', ARGV[5], 'r', ARGV[6], 'b', ARGV[7], 'text', ARGV[8])
  redis.call('SADD', THROTTLES, name)
  if life > 0 then
    redis.call('HSET', key, 'until', now + life)
    all.later(name, now + life)
  end
end
local queue = limited_queue(name)
if queue then
  set_limited(queue, set)
end
all.limits.next_token(name) -- the pace is that of the new limits from now on
all.opened(name)
if set and life > 0 then
  -- Somebody has to watch the clock for its end.
  local waiting = queue or redis.call('ZRANGE', PARKED .. name, 0, 0)[1]
  if waiting then
    redis.call('ZADD', WAKE .. waiting, 0, '1')
  end
end
all.forget_unused(name)
return before
