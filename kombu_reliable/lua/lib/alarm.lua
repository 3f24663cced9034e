-- The next moment at which a queue needs a claim.  May be early, never late.
local function alarm_by(queue, at)
  redis.call('ZADD', ALARMS, 'LT', at, queue)
end

-- The earliest moment in a set that is scored by time.
local function head(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return tonumber(first[2])
end

local function sooner(a, b)
  if a and b then
    return math.min(a, b)
  end
  return a or b
end
