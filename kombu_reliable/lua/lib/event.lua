-- @include extra
-- @include order
-- Tracked jobs tell what befalls them, at the moment when it does, on one capped stream.
--   TRACKED  the jobs, scored by the order of their publish
--   EVENTS   e: the event, j: key of the job, q: its queue, t: its task, d: who, where or why
-- The id of an event is '<ms>-<number>', and the numbers leave no gap (META.events): who finds one
-- has missed what was trimmed meanwhile.
--
-- Foreign data where events are told must not stand in the way of a job.
local function tracked_event(queue, id, now, event, detail)
  local KEPT, LIFE_OF_EVENTS = 100000, 604800000 -- number, ms after the last ones
  local task = extra_get(id, 'task')
  local number = redis.call('HINCRBY', META, 'events', 1)
  local function add(at)
    return redis.pcall('XADD', EVENTS, 'MAXLEN', '~', KEPT, string.format('%.0f-%.0f', at, number),
      'e', event, 'j', id, 'q', queue, 't', task or '',
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
  if event == 'put' or number % 8 == 0 then -- it would cost the others as much as their event
    redis.call('PEXPIRE', EVENTS, LIFE_OF_EVENTS)
  end
end

local function track_enter(id, task)
  extra_set(id, 'task', task)
  redis.pcall('ZADD', TRACKED, order_of(id), id)
end
