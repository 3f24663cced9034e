-- @include order
-- Tracked jobs tell what befalls them, at the moment when it does, on one capped stream.
--   TRACKED  the jobs, scored by the order of their publish
--   EVENTS   e: the event, j: key of the job, q: its queue, t: its task, d: who, where or why
-- The id of an event is '<ms>-<number>', and the numbers leave no gap (META.events): who finds one
-- has missed what was trimmed meanwhile.
--
-- Foreign data where events are told must not stand in the way of a job.
local function tracked_event(queue, id, now, event, detail)
  local KEPT, LIFE_OF_EVENTS = 100000, 604800000 -- number, ms after the last one
  local task = redis.pcall('HGET', EXTRA .. id, 'task')
  local number = redis.call('HINCRBY', META, 'events', 1)
  local function add(at)
    return redis.pcall('XADD', EVENTS, 'MAXLEN', '~', KEPT, string.format('%.0f-%.0f', at, number),
      'e', event, 'j', id, 'q', queue, 't', type(task) == 'string' and task or '',
      'd', string.sub(detail or '', 1, 200))
  end
  if type(add(now)) == 'table' then
    -- The clock was put back: the order counts.
    local last = redis.pcall('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1)
    local at = last[1] and tonumber(string.match(last[1][1], '^%d+'))
    if at then
      add(at)
    end
  end
  redis.call('PEXPIRE', EVENTS, LIFE_OF_EVENTS)
end

-- A throttle holds a job back that could have been claimed; it is told once until it is.
local function tracked_throttled(queue, id, now, throttle)
  local feat = redis.pcall('HGET', EXTRA .. id, 'feat')
  if type(feat) == 'string' and string.find(feat, 'k', 1, true)
      and redis.call('HSETNX', EXTRA .. id, 'held', throttle) == 1 then
    tracked_event(queue, id, now, 'throttled', throttle)
  end
end

local function track_enter(id, task)
  redis.call('HSET', EXTRA .. id, 'task', task)
  redis.pcall('ZADD', TRACKED, order_of(id), id)
end

local function track_leave(id)
  redis.pcall('ZREM', TRACKED, id)
end

local function tracking_entered(queue, id, now, task)
  local next_run = redis.call('HEXISTS', EXTRA .. id, 'task') == 1
  track_enter(id, task)
  if not next_run then
    tracked_event(queue, id, now, 'put')
  end
end

local function tracking_started(queue, id, now, worker)
  redis.call('HDEL', EXTRA .. id, 'held')
  tracked_event(queue, id, now, 'popped', worker)
end

local function tracking_moved(queue, id, now, to)
  tracked_event(queue, id, now, 'moved', queue .. ' > ' .. to)
end

local function tracking_ended(queue, id, now, outcome)
  local OVER = {ok = 'completed', gone = 'canceled'}
  -- Dead letters, and completed jobs that were kept, have told how they ended.
  local done, dead = unpack(redis.call('HMGET', EXTRA .. id, 'done', 'reason'))
  if not done and not dead then
    tracked_event(queue, id, now, OVER[outcome] or outcome)
  end
  -- One that is kept stays on the list, see lib/retention.lua.
  if outcome ~= 'ok' or redis.call('HEXISTS', EXTRA .. id, 'keep') == 0 then
    track_leave(id)
  end
end

local tracking_hooks = {entered = tracking_entered, started = tracking_started}
tracking_hooks.paused = tracked_event
tracking_hooks.moved = tracking_moved
tracking_hooks.ended = tracking_ended
