-- @include clock
-- @include dependency
-- @include ended
-- @include features
-- @include twins
-- Deletes what waits in a queue.  Its functions are made when they are needed: making them
-- would cost each claim, which hardly ever does.
local function discarding()
  local STEP = 200

  local function discard(queue, key)
    local ids = redis.call('ZRANGE', key, 0, STEP - 1)
    if #ids == 0 then
      return 0
    end
    redis.call('ZREM', key, unpack(ids))
    -- A job that was taken back from an owner still has that owner's entry.
    redis.call('HDEL', OWNERS, unpack(ids))
    end_features(queue, ids, 'gone', clock())
    for _, id in ipairs(ids) do
      redis.call('UNLINK', JOB .. id, EXTRA .. id)
      leave_twin(id)
    end
    all_ended(ids, 'gone')
    return #ids, ids
  end

  local function discard_waiting(queue)
    local deleted, ids = discard(queue, WAITING .. queue)
    for _, id in ipairs(ids or {}) do
      forsake(id)
    end
    return deleted
  end

  -- One step; returns how many it deleted, 0 when nothing waits in the queue any more.
  return function(queue)
    local deleted = discard(queue, THROTTLED .. queue)
    if deleted == 0 then
      deleted = discard(queue, READY .. queue)
    end
    if deleted == 0 then
      deleted = discard(queue, DELAYED .. queue)
    end
    if deleted == 0 then
      deleted = discard_waiting(queue)
    end
    if deleted == 0 then
      redis.call('DEL', WAKE .. queue, TICKETS .. queue)
    end
    return deleted
  end
end
