-- @include lanes
-- Claims from a queue that has lanes, in order of place: what is ready, and the first jobs of the
-- lanes that have tickets.  Only jobs that start at once leave a lane: one that waits in a worker
-- must not hold a slot.
--   most          how many to claim
--   idle          how many of them can start at once
--   claim_ready   claims from what is ready, given how many; returns how many it has, or false
--   deliver       see lib/lanes.lua
-- Returns how many it has claimed, or false and the error.
local function claim_in_turn(queue, most, idle, claim_ready, deliver)
  local LOOKS = 100 -- lanes that a claim looks at
  local all, claimed = lanes(), 0

  local function front(key)
    return all.ours(key, 'ZRANGE', 0, 1, 'WITHSCORES')
  end

  -- How many stand in front of a place; foreign data is found by who claims it.
  local function in_front(at)
    local count = redis.pcall('ZCOUNT', READY .. queue, '-inf', '(' .. at)
    return type(count) == 'number' and count or 0
  end

  for _ = 1, LOOKS do
    if claimed >= most or claimed >= idle then
      break
    end
    local lane, at, _, second = unpack(front(TICKETS .. queue))
    if not lane then
      break
    end
    local ahead = in_front(at)
    local count
    if ahead > 0 then
      count = claim_ready(math.min(ahead, most - claimed))
    else
      local ready = redis.pcall('ZRANGE', READY .. queue, 0, 0, 'WITHSCORES')[2]
      local fine, result = pcall(all.serve, queue, lane, at, math.min(most, idle) - claimed,
        sooner(tonumber(ready), tonumber(second)), deliver)
      if not fine then
        return false, result
      end
      count = result
    end
    if not count then
      return false
    end
    claimed = claimed + count
  end
  if claimed < most then
    local count = claim_ready(most - claimed)
    return count and claimed + count
  end
  return claimed
end
