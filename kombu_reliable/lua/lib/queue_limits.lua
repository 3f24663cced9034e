-- @include pausing
-- @include wake
-- A queue may be limited as a whole, by the throttle 'queue:<name>'.  What its workers hold counts.
-- While nothing may start there it is closed, as if it were paused.
--
-- Adds to the functions of lib/lanes.lua what has to do with that.
local function add_queue_limits(all)
  local function limit_of_queue(queue)
    return string.format('queue:%s', queue)
  end

  -- The queue that a throttle limits; nil if it is one of jobs.
  local function limited_queue(name)
    return string.match(name, '^queue:(.*)$')
  end

  local function is_limited(queue)
    return redis.call('SISMEMBER', LIMITED, queue) == 1
  end

  -- How many of a queue may start, at most `most`.
  local function admitted(queue, most)
    local limits, name = all.limits, limit_of_queue(queue)
    local limit = limits.of(name)
    if limit.concurrency then
      local leased = redis.pcall('ZCARD', LEASED .. queue)
      most = math.min(most, limit.concurrency - (type(leased) == 'number' and leased or 0))
    end
    return math.max(0, math.min(most, limits.tokens(name)))
  end

  -- Whether a queue is at its limit; it is closed then.  And whether there is a new time to keep.
  local function close_if_full(queue)
    if admitted(queue, 1) > 0 then
      redis.call('SREM', CLOSED, queue)
      return false
    end
    redis.call('SADD', CLOSED, queue)
    local name = limit_of_queue(queue)
    local at = all.limits.next_token(name)
    return true, at and all.later(name, at)
  end

  -- How many a claim may take from a queue that may be paused or limited, and whether it is closed.
  local function room_in(queue, credit, idle)
    if redis.call('SISMEMBER', PAUSED, queue) == 1 then
      return 0, true
    end
    if not is_limited(queue) then
      return credit, false
    end
    if close_if_full(queue) then
      return 0, true
    end
    return admitted(queue, math.min(credit, idle)), false
  end

  -- Notes what was claimed from a queue that may be limited; whether it is closed now.
  local function count_started(queue, count)
    if not is_limited(queue) then
      return false
    end
    all.limits.spend(limit_of_queue(queue), count)
    return close_if_full(queue)
  end

  -- To be called when somebody gives up what he held of a queue, or its limit has changed.
  local function reopen(queue)
    if redis.call('SISMEMBER', CLOSED, queue) == 0 or redis.call('SISMEMBER', PAUSED, queue) == 1 then
      return
    end
    local full, news = false, false
    if is_limited(queue) then
      full, news = close_if_full(queue)
    end
    if not full then
      redis.call('SREM', CLOSED, queue)
      -- Also for what is only delayed: nobody may be watching the clock for it.
      news = redis.call('EXISTS', READY .. queue, TICKETS .. queue, DELAYED .. queue) > 0
    end
    if news then
      redis.call('ZADD', WAKE .. queue, 0, '1')
    end
  end

  local function set_limited(queue, limited)
    if redis.call(limited and 'SADD' or 'SREM', LIMITED, queue) == 1 then
      count_paused()
    end
    reopen(queue)
  end

  all.count_started, all.is_limited, all.limited_queue = count_started, is_limited, limited_queue
  all.reopen, all.room_in, all.set_limited = reopen, room_in, set_limited
end
