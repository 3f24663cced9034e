-- The wake marker of a queue: whoever sleeps on it pops it and must claim.  A closed queue, one that
-- is paused or at its limit, wakes nobody.  Who has read META.paused says so here, and if it is
-- absent no queue is asked about.
local pausing = true
local function arm(queue)
  if pausing and redis.call('SISMEMBER', CLOSED, queue) == 1 then
    return
  end
  redis.call('ZADD', WAKE .. queue, 0, '1')
end
