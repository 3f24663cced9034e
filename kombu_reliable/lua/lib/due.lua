-- @include alarm
-- @include wake
-- A due time that comes before what the timekeeper watches for wakes somebody who will be told.
local function expect(queue, due, now, keeper)
  alarm_by(queue, due)
  local watched = keeper and tonumber(string.match(keeper, ';([^;]*);'))
  if not watched or due < watched or watched < now then
    arm(queue)
  end
end
