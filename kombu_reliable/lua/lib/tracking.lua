-- @include event
-- What the lives of tracked jobs tell, beside their beginning; see lib/event.lua.

-- A throttle holds a job back that could have been claimed; it is told once until it is.
local function tracked_throttled(queue, id, now, throttle)
  local feat = extra_get(id, 'feat')
  if feat and string.find(feat, 'k', 1, true) and not extra_get(id, 'held') then
    extra_set(id, 'held', throttle)
    tracked_event(queue, id, now, 'throttled', throttle)
  end
end

local function track_leave(id)
  redis.pcall('ZREM', TRACKED, id)
end

local function tracking_started(queue, id, now, worker)
  extra_delete(id, 'held')
  tracked_event(queue, id, now, 'popped', worker)
end

local function tracking_moved(queue, id, now, to)
  tracked_event(queue, id, now, 'moved', queue .. ' > ' .. to)
end

local function tracking_ended(queue, id, now, outcome)
  local OVER = {ok = 'completed', gone = 'canceled'}
  -- Dead letters, and completed jobs that were kept, have told how they ended.
  if not extra_get(id, 'done') and not extra_get(id, 'reason') then
    tracked_event(queue, id, now, OVER[outcome] or outcome)
  end
  -- One that is kept stays on the list, see lib/retention.lua.
  if outcome ~= 'ok' or not extra_get(id, 'keep') then
    track_leave(id)
  end
end

local tracking_hooks = {started = tracking_started, paused = tracked_event}
tracking_hooks.moved = tracking_moved
tracking_hooks.ended = tracking_ended
