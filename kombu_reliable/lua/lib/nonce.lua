-- A lane numbers its publishes one by one and repeats one only before the next, so its last
-- number is all that must be remembered.  Lanes that were not used for long are dropped.
local LANES = 4096
local TURN = 4194304 -- numbers wrap here, to leave the upper bits of a score to the time
local TICK = 4000 -- ms; in whole seconds a score would outgrow a double in 2038

-- How many of the `count` publishes from number `first` on were made before, and whether the
-- lane is known.
local function made_before(lane, first, count)
  local known = redis.call('ZSCORE', PRODUCERS, lane)
  if not known then
    return 0, false
  end
  local ahead = (first - known % TURN) % TURN
  if ahead == 0 or ahead > TURN / 2 then
    return math.min(count, (known % TURN - first) % TURN + 1), true
  end
  return 0, true
end

local function remember(lane, last, now, known)
  redis.call('ZADD', PRODUCERS, math.floor(now / TICK) * TURN + last % TURN, lane)
  if not known and redis.call('ZCARD', PRODUCERS) > LANES then
    redis.call('ZREMRANGEBYRANK', PRODUCERS, 0, 0)
  end
end
