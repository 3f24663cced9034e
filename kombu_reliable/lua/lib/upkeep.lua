-- @include alarm
-- @include dead
-- @include features
-- @include history
-- @include lifetime
-- @include owner
-- @include owner_fields
-- @include place
-- @include lanes
-- @include ready
-- @include record
-- @include releasing
-- @include retention
-- @include since
-- @include wake
-- What time does to a queue: delayed jobs become ready, expired leases are taken back,
-- old dead letters and completed jobs go, some queues come to the end of their life.  Every step
-- is bounded; what is left keeps its alarm.
local STEP = 100
local LOOK_AGAIN = 30000 -- ms
local FLAGGED = string.byte('x')

local function promote(queue, now)
  local ids = redis.call('ZRANGEBYSCORE', DELAYED .. queue, '-inf', now, 'LIMIT', 0, STEP)
  if #ids == 0 then
    return false
  end
  local sequence = redis.call('HINCRBY', META, 'seq', #ids) - #ids
  local claimable = false
  for i, id in ipairs(ids) do
    -- What is no record of ours becomes ready all the same: the claim sorts it out.
    local head = redis.pcall('GETRANGE', JOB .. id, 0, 3)
    head = type(head) == 'string' and head or ''
    local feat = string.byte(head) == FLAGGED and features_of(id)
    local at = place(string.match(head, '^.(%d%d%d)$') or 0, sequence + i)
    claimable = make_ready(queue, id, at, feat) or claimable
  end
  redis.call('ZREM', DELAYED .. queue, unpack(ids))
  return claimable
end

-- The owner's entry stays until somebody else claims the job: until then its owner may
-- still renew or settle, because nobody else has started it.
local function take_back(queue, now)
  local ids = redis.call('ZRANGEBYSCORE', LEASED .. queue, '-inf', now, 'LIMIT', 0, STEP)
  if #ids == 0 then
    return false
  end
  local owners, claimable = redis.call('HMGET', OWNERS, unpack(ids)), false
  for i, id in ipairs(ids) do
    -- A lease without an owner is foreign data; the job waits like one that was just published.
    local at = owners[i] and owner_place(owners[i])
      or place(0, redis.call('HINCRBY', META, 'seq', 1))
    local feat = owners[i] and owner_features(owners[i])
    claimable = make_ready(queue, id, at, feat) or claimable
    -- Marks the job: whoever claims it looks for the owner only of one that is marked.
    note(id, now, 'lost', owners[i] and owner_worker(owners[i]))
    waits_since(id, now, true)
    tell_features(feat, 'paused', queue, id, now, 'stalled')
  end
  redis.call('ZREM', LEASED .. queue, unpack(ids))
  redis.call('HINCRBY', META, 'expired', #ids)
  if pausing then
    lanes().reopen(queue)
  end
  return claimable
end

local function upkeep(queue, now, hold, retention)
  local claimable = promote(queue, now)
  if not hold or now >= hold then
    claimable = take_back(queue, now) or claimable
  end
  forget_dead(queue, redis.call('ZRANGEBYSCORE', DEAD .. queue, '-inf', now - retention,
    'LIMIT', 0, STEP), now)
  forget_completed(queue, redis.call('ZRANGEBYSCORE', COMPLETED .. queue, '-inf', now,
    'LIMIT', 0, STEP))
  if claimable then
    arm(queue)
  end
  local life = redis.call('EXISTS', LIFE .. queue) == 1 and lifetimes().live_on(queue, now, hold)
  local lease = head(LEASED .. queue)
  if lease and hold then
    lease = math.max(lease, hold)
  end
  local dead = head(DEAD .. queue)
  local next = sooner(sooner(head(DELAYED .. queue), lease), dead and dead + retention + 1)
  local completed = head(COMPLETED .. queue)
  next = sooner(sooner(next, life or nil), completed and trim_at(completed))
  if next then
    redis.call('ZADD', ALARMS, next, queue)
  else
    redis.call('ZREM', ALARMS, queue)
  end
end

-- Does the upkeep of the queues whose alarm is due.  One that cannot be read is left alone for a
-- while; the error is returned.
local function serve_alarms(now, hold, retention, keep)
  local problem
  for _, queue in ipairs(redis.call('ZRANGEBYSCORE', ALARMS, '-inf', now, 'LIMIT', 0, 8)) do
    local serve = queue == '' and releasing or upkeep
    local fine, error = pcall(serve, queue, now, hold, retention, keep)
    if not fine then
      problem = error
      redis.call('ZADD', ALARMS, now + LOOK_AGAIN, queue)
    end
  end
  return problem
end
