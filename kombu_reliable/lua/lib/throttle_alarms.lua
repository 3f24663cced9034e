-- @include queue_limits
-- What time does to throttles: a job may start at the pace of its rate, a limit that was set for a
-- while has ended.  Returns when to look again, or nil.
local function serve_throttles(now)
  local MOST = 100 -- a step
  local all = lanes()

  local function serve_one(name)
    local ends = tonumber(all.ours(LIMITS .. name, 'HGET', 'until') or nil)
    if ends and ends <= now then
      redis.call('HDEL', LIMITS .. name, 'set', 'c', 'r', 'b', 'text', 'until')
    elseif ends then
      all.later(name, ends)
    end
    local queue = limited_queue(name)
    if queue and is_limited(queue) then
      if ends and ends <= now then
        set_limited(queue, false)
      else
        reopen(queue)
      end
    end
    all.limits.next_token(name)
    all.opened(name)
    all.forget_unused(name)
  end

  local due = redis.call('ZRANGEBYSCORE', THROTTLE_ALARMS, '-inf', now, 'LIMIT', 0, MOST)
  for _, name in ipairs(due) do
    redis.call('ZREM', THROTTLE_ALARMS, name)
    pcall(serve_one, name) -- foreign data in the way of one does not hold back the others
  end
  return head(THROTTLE_ALARMS)
end
