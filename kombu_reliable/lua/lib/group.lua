-- Dead letters by group: what died of the same.  A worker names the group; where it did not, the
-- reason of the death stands for it.  The index must never stand in the way of a death.
--
-- The functions are made when they are needed: making them would cost each claim, which hardly
-- ever does.
local function grouping()
  local function leave_named(id, group)
    redis.pcall('ZREM', GROUP .. group, id)
    if redis.call('EXISTS', GROUP .. group) == 0 then
      redis.pcall('ZREM', GROUPS, group)
    end
  end

  local function enter(id, group, now)
    redis.pcall('ZADD', GROUP .. group, now, id)
    redis.pcall('ZADD', GROUPS, now, group)
  end

  -- To be called before the EXTRA hash goes.
  local function leave(id)
    local named = redis.pcall('HMGET', EXTRA .. id, 'group', 'reason')
    local group = not named.err and (named[1] or named[2])
    if group then
      leave_named(id, group)
    end
  end

  return {enter = enter, leave = leave, leave_named = leave_named}
end
