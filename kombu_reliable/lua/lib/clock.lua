-- The server's time: whole milliseconds, the microseconds beyond them, and the milliseconds as
-- the thirteen digits of a record, whose making from a number would cost as much as a command.
-- A test may inject the milliseconds as the first argument.
local function clock()
  local injected = ARGV[1]
  if injected ~= '' then
    return tonumber(injected), 0, injected
  end
  local time = redis.call('TIME')
  local millis = math.floor(time[2] / 1000)
  return time[1] * 1000 + millis, time[2] - millis * 1000,
    time[1] .. string.sub('00000' .. time[2], -6, -4)
end
