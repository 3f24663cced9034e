-- @include alarm
-- @include wake
-- When a message is due: '0' at once, '+<ms>' from now, '<ms>' since the epoch.
local function due_at(due, now)
  if string.sub(due, 1, 1) == '+' then
    return now + tonumber(due)
  end
  return tonumber(due)
end

-- Stores a message that is not due yet.  Somebody is woken unless a timekeeper watches already.
local function delay(queue, id, due, now, keeper)
  redis.call('ZADD', DELAYED .. queue, due, id)
  alarm_by(queue, due)
  local watched = keeper and tonumber(string.match(keeper, ';([^;]*);'))
  if not watched or due < watched or watched < now then
    arm(queue)
  end
end
