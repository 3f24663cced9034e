-- Something is put into a queue that nobody may have declared.  So that it can be listed, the last
-- ones are remembered.
local function notice(queue, now)
  local KEPT = 4096
  if redis.call('SISMEMBER', QUEUES, queue) == 0 and redis.call('EXISTS', LIFE .. queue) == 0 then
    redis.call('ZADD', NOTICED, now, queue)
    redis.call('ZREMRANGEBYRANK', NOTICED, 0, -KEPT - 1)
  end
end
