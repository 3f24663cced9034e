-- The wake marker of a queue: whoever sleeps on it pops it and must claim.
local function arm(queue)
  redis.call('ZADD', WAKE .. queue, 0, '1')
end
