-- Queues that are paused or limited: sets, and their number in META, so that who reads META anyway
-- need not ask more.  CLOSED are those that wake nobody: the paused ones, and those at their limit.
local function count_paused()
  local count = redis.call('SCARD', PAUSED) + redis.call('SCARD', LIMITED)
  if count > 0 then
    redis.call('HSET', META, 'paused', count)
  else
    redis.call('HDEL', META, 'paused')
  end
end

-- Returns 1 if this changed anything, else 0.
local function set_paused(queue, paused)
  local changed = redis.call(paused and 'SADD' or 'SREM', PAUSED, queue)
  redis.call(paused and 'SADD' or 'SREM', CLOSED, queue)
  if changed == 1 then
    count_paused()
  end
  return changed
end
