-- The next moment at which a queue needs a claim.  May be early, never late.
local function alarm_by(queue, at)
  redis.call('ZADD', ALARMS, 'LT', at, queue)
end
