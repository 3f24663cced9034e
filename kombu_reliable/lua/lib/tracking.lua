-- @include history
-- Tracked jobs tell what befalls them, at the moment when it does, on one capped stream.
--   TRACKED  the jobs, scored by the order of their publish
--   EVENTS   e: the event, j: key of the job, q: its queue, t: its task, d: who, where or why
-- The id of an event is '<ms>-<number>', and the numbers leave no gap (META.events): who finds one
-- has missed what was trimmed meanwhile.
--
-- Foreign data where events are told must not stand in the way of a job.
local function tracked_event(id, event, now, queue, detail)
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

-- What also jobs note that simply succeed, if somebody will look at them.
local function lived(queue, id, feat, event, now, detail)
  note(id, now, event, detail)
  if string.find(feat, 'k', 1, true) then
    tracked_event(id, event, now, queue, detail)
  end
end

local function tracking_ended(id)
  redis.pcall('ZREM', TRACKED, id)
end
