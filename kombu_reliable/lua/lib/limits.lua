-- @include clock
-- What a throttle lets start.
--   LIMITS  per throttle: what was set ('set', 'c' concurrency, 'r' ms between two starts, 'b' burst,
--           'text' the rate as it was given, 'until'), and what its jobs bring with them ('dc', 'dr',
--           'db', 'dtext')
--   HELD    per throttle: the jobs that have a slot, by time
--   RATES   per throttle: when the next job would start if all had started at an even pace
--
-- The functions are made when they are needed: making them would cost each call.
local function limiting()
  local SUSPECTS = 5 -- holders that are looked at, whether they still have an owner
  local LINGER = 60000 -- ms for which a pace is remembered beyond its meaning
  local now = clock()

  -- Foreign data under a key of ours gives way.
  local function ours(key, command, ...)
    local reply = redis.pcall(command, key, ...)
    if type(reply) == 'table' and reply.err then
      redis.call('UNLINK', key)
      reply = redis.call(command, key, ...)
    end
    return reply
  end

  local function limits_of(name)
    local fields = ours(LIMITS .. name, 'HMGET', 'c', 'r', 'b', 'dc', 'dr', 'db', 'set', 'until')
    local ended = fields[8] and tonumber(fields[8]) <= now
    local first = fields[7] and not ended and 1 or 4
    local most, interval = tonumber(fields[first] or nil), tonumber(fields[first + 1] or nil)
    local burst = tonumber(fields[first + 2] or nil) or 1
    return {concurrency = most, interval = interval, burst = burst}
  end

  local function is_full(name, most)
    local held = HELD .. name
    if most <= 0 or ours(held, 'ZCARD') < most then
      return most <= 0
    end
    -- A slot must not stay with somebody whom damage has made forget it.
    local oldest = redis.call('ZRANGE', held, 0, SUSPECTS - 1)
    for i, owner in ipairs(redis.call('HMGET', OWNERS, unpack(oldest))) do
      if not owner then
        redis.call('ZREM', held, oldest[i])
      end
    end
    return redis.call('ZCARD', held) >= most
  end

  local function keep_pace(name, at)
    redis.call('SET', RATES .. name, string.format('%.3f', at), 'PX', math.ceil(at - now) + LINGER)
  end

  -- When the next start would be at an even pace.
  local function next_start(name, limit)
    local at = math.max(now, tonumber(ours(RATES .. name, 'GET') or nil) or now)
    local latest = now + limit.burst * limit.interval
    if at > latest then
      -- No start can have led so far: the limit was another, or the clock.
      at = latest
      keep_pace(name, at)
    end
    return at
  end

  -- When the rate lets the next job start; nil if it is not the rate that keeps it.
  local function next_token(name)
    local limit = limits_of(name)
    if not limit.interval then
      return nil
    end
    local at = math.ceil(next_start(name, limit) - (limit.burst - 1) * limit.interval)
    return at > now and at or nil
  end

  -- Why nothing may start: true, or the time at which something may; nil if it may now.
  local function blocked(name)
    local limit = limits_of(name)
    if limit.concurrency and is_full(name, limit.concurrency) then
      return true
    end
    return next_token(name)
  end

  -- How many may start at once.
  local function tokens(name)
    local limit = limits_of(name)
    if not limit.interval then
      return math.huge
    end
    local ahead = next_start(name, limit) - now
    return math.floor(limit.burst - ahead / limit.interval + 0.000001)
  end

  -- Counts starts at the pace of a throttle.
  local function spend(name, count)
    local limit = limits_of(name)
    if limit.interval then
      keep_pace(name, next_start(name, limit) + count * limit.interval)
    end
  end

  local all = {blocked = blocked, next_token = next_token, of = limits_of, ours = ours}
  all.spend, all.tokens = spend, tokens
  return all
end
