-- The server's time in whole milliseconds, and the microseconds beyond them.
-- A test may inject the milliseconds as the first argument.
local function clock()
  if ARGV[1] ~= '' then
    return tonumber(ARGV[1]), 0
  end
  local time = redis.call('TIME')
  local millis = math.floor(time[2] / 1000)
  return time[1] * 1000 + millis, time[2] - millis * 1000
end
