-- @include alarm
-- @include extra
-- @include marks
-- @include twins
-- Completed jobs that are kept for a while, with their tags, so that one can look at them.
--   COMPLETED  per queue, scored by when they go
-- and of each in its EXTRA hash: 'keep', '<ms>;<number kept per queue>', as its publisher wanted
-- it, and 'done', when it completed.
local function forget_completed(queue, ids)
  for _, id in ipairs(ids) do
    redis.call('ZREM', COMPLETED .. queue, id)
    forget_marks(id)
    leave_twin(id)
    redis.call('UNLINK', JOB .. id)
    drop_extra(id)
  end
end

-- Nobody waits for the end of retention: queues share their claims for it.
local function trim_at(expires)
  local GRID = 1000 -- ms
  return math.ceil(expires / GRID) * GRID
end

-- Keeps a job that has succeeded, if it is to be kept; whether it does.
local function keep_completed(queue, id, now)
  local life, limit = string.match(extra_get(id, 'keep') or '', '^(%d+);(%d+)$')
  life = tonumber(life or 0)
  if life == 0 or redis.call('EXISTS', JOB .. id) == 0
      or type(redis.pcall('ZADD', COMPLETED .. queue, now + life, id)) == 'table' then
    return false
  end
  extra_set(id, 'done', now)
  alarm_by(queue, trim_at(now + life))
  local excess = redis.call('ZCARD', COMPLETED .. queue) - limit
  if excess > 0 then
    forget_completed(queue,
      redis.call('ZRANGE', COMPLETED .. queue, 0, math.min(excess, 10) - 1))
  end
  return true
end

local function retention_ended(queue, id, now, outcome)
  if outcome == 'ok' and keep_completed(queue, id, now) then
    return true
  end
  track_leave(id)
  return false
end

local retention_hooks = {ended = retention_ended}
