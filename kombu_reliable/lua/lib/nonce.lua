-- A lane numbers its publishes upwards and repeats one only before the next, so its last number
-- is all that must be remembered.  Numbers begin at the publisher's time (us): the lanes that
-- were not used for long have the lowest ones, and are dropped.
local LANES = 4096

-- Remembers `count` publishes of a lane from number `first` on; returns how many of them it had
-- made before.  This write may grow, so a full server refuses here, before anything is stored.
local function remember(lane, first, count)
  -- Only a batch can be known in part.
  local before = count > 1 and redis.call('ZSCORE', PRODUCERS, lane)
  local last = first + count - 1
  if redis.call('ZADD', PRODUCERS, 'GT', 'CH', last, lane) == 0 then
    return count
  end
  if last % 64 == 0 then
    redis.call('ZREMRANGEBYRANK', PRODUCERS, 0, -LANES - 1)
  end
  return before and math.max(0, before - first + 1) or 0
end
