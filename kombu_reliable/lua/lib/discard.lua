-- Deletes the first jobs of a ready or delayed set with all that belongs to them.
local DISCARD_STEP = 200

local function discard(key)
  local ids = redis.call('ZRANGE', key, 0, DISCARD_STEP - 1)
  if #ids == 0 then
    return 0
  end
  redis.call('ZREM', key, unpack(ids))
  -- A job that was taken back from an owner still has that owner's entry.
  redis.call('HDEL', OWNERS, unpack(ids))
  for _, id in ipairs(ids) do
    redis.call('UNLINK', JOB .. id, EXTRA .. id)
  end
  return #ids
end

-- One step; 0 when nothing waits in the queue any more.
local function discard_waiting(queue)
  local deleted = discard(READY .. queue)
  if deleted == 0 then
    deleted = discard(DELAYED .. queue)
  end
  if deleted == 0 then
    redis.call('DEL', WAKE .. queue)
  end
  return deleted
end
