-- Paused queues: a set, and their number in META, so that who reads META anyway need not ask more.
-- Returns 1 if this changed anything, else 0.
local function set_paused(queue, paused)
  local changed = redis.call(paused and 'SADD' or 'SREM', PAUSED, queue)
  if changed == 1 then
    local count = redis.call('SCARD', PAUSED)
    if count > 0 then
      redis.call('HSET', META, 'paused', count)
    else
      redis.call('HDEL', META, 'paused')
    end
  end
  return changed
end
