-- Claim: settles what the worker has done, does what time demands, then leases messages in order.
--
-- ARGV  now | '', worker ('' if it does not stay), token, lease (ms), credit,
--       delivery limit (0: none), retention of dead letters (ms), number kept per queue,
--       how many jobs could start at once, number of settlements, the settlements,
--       then the queues in the order in which they are asked
-- Reply 1 if claimable work is left, 2 if it is only for those who can start it at once,
--       when to claim again (us from now; -1: others watch), now (ms),
--       one status per settlement,
--       then per message: number of its queue (from 1), id, deliveries, record.  Behind the
--       deliveries stands ';' and since when it waits, if that is not what its record says.
--       The n-th message is leased under '<token>.<n>'.
--       At the end, if a queue could not be read: the error.  The other queues are served.
-- Cost  O(log n) per message; credit at most 100, upkeep of at most 8 queues a call
-- @include clock
-- @include layout
-- @include room
-- @include silence
-- @include settlement
-- @include timekeeper
-- @include wake
-- @defer beginning: deliveries_before
-- @defer dependency: tell_of_ends, dependencies, forsake
-- @defer endings: settle_otherwise, deliver_once, status_of_other, leave_twin, end_undelivered
-- @defer features: tell_features, features_of, end_features
-- @defer lanes: lanes
-- @defer upkeep: serve_alarms
local now, micros = clock()
local worker, token, lease = ARGV[2], ARGV[3], tonumber(ARGV[4])
local credit, limit = tonumber(ARGV[5]), tonumber(ARGV[6])
local retention, keep, idle = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local FIRST_SETTLEMENT = 11
local FIRST_QUEUE = FIRST_SETTLEMENT + tonumber(ARGV[10]) * SETTLEMENT

local meta = redis.call('HMGET', META, 'v', 'seen', 'hold', 'keeper', 'deputy', 'paused', 'lanes')
if foreign(meta[1]) then
  return refuse(meta[1])
end
enter_full_server()
pausing = meta[6]

local reply = {0, -1, now}
settle(FIRST_SETTLEMENT, FIRST_QUEUE - 1, now, retention, keep, reply)

local hold = hear(now, tonumber(meta[2]), tonumber(meta[3]), lease)
local due = head(ALARMS)
local problem
if due and due <= now then
  problem = serve_alarms(now, hold, retention, keep)
  due = head(ALARMS)
end

local PLAIN = string.byte('-') -- the flag of a record without an EXTRA hash
local delivered = 0
local popped = {}

local function claim_from(number, queue, most)
  popped = redis.call('ZPOPMIN', READY .. queue, most)
  if #popped == 0 then
    return
  end
  local ids, records, owners, leases, begun = {}, {}, {}, {}, {}
  for i = 1, #popped, 2 do
    ids[#ids + 1] = popped[i]
    records[#records + 1] = JOB .. popped[i]
  end
  records = redis.call('MGET', unpack(records))
  for i, id in ipairs(ids) do
    local record = records[i]
    local before, death, feat, since = 0, nil, '', nil
    if record and string.byte(record) ~= PLAIN then
      before, death, feat, since = deliveries_before(id, limit, now)
    end
    if not record or death then
      end_undelivered(queue, id, record, death, now, retention, keep)
      due = head(ALARMS) -- also that of what its end means for others
    else
      delivered = delivered + 1
      credit = credit - 1
      owners[#owners + 1] = id
      owners[#owners + 1] = token .. '.' .. delivered .. ';' .. popped[2 * i] .. feat .. ';' .. worker
      leases[#leases + 1] = now + lease
      leases[#leases + 1] = id
      if feat ~= '' then
        begun[#begun + 1] = {feat, id}
      end
      reply[#reply + 1] = number
      reply[#reply + 1] = id
      reply[#reply + 1] = since and before + 1 .. ';' .. since or before + 1
      reply[#reply + 1] = record
    end
  end
  if #owners > 0 then
    redis.call('ZADD', LEASED .. queue, unpack(leases))
    redis.call('HSET', OWNERS, unpack(owners))
    alarm_by(queue, now + lease)
    due = sooner(due, now + lease)
  end
  for _, one in ipairs(begun) do
    tell_features(one[1], 'started', queue, one[2], now, worker)
  end
end

-- Foreign data under a key of a queue must neither stop the others nor cost a message.  Returns how
-- many it has claimed, or false.
local function claim_safely(number, queue, most)
  local length, delivered_before, credit_before = #reply, delivered, credit
  popped = {}
  local fine, error = pcall(claim_from, number, queue, most)
  if fine then
    return delivered - delivered_before
  end
  problem, delivered, credit = error, delivered_before, credit_before
  for i = #reply, length + 1, -1 do
    reply[i] = nil
  end
  for i = 1, #popped, 2 do
    redis.pcall('ZREM', LEASED .. queue, popped[i])
    -- The one that was buried on the way stays where it is.
    if type(redis.pcall('ZSCORE', DEAD .. queue, popped[i])) ~= 'string' then
      redis.call('ZADD', READY .. queue, popped[i + 1], popped[i])
    end
  end
  return false
end

for i = FIRST_QUEUE, #ARGV do
  local number, queue = i - FIRST_QUEUE + 1, ARGV[i]
  local most, closed, laned = credit, false, false
  if pausing then
    most, closed = lanes().room_in(queue, credit, idle - delivered)
  end
  if meta[7] and not closed then
    laned = redis.call('EXISTS', TICKETS .. queue) == 1
  end
  local count = 0
  if closed or most <= 0 then
    count = 0
  elseif not laned then
    count = claim_safely(number, queue, most)
  else
    -- These functions are made here because few claims need them.
    local function claim_ready(some)
      return claim_safely(number, queue, some)
    end

    local function deliver(id, at)
      local record = redis.pcall('GET', JOB .. id)
      record = type(record) == 'string' and record
      local before, death, feat, since = 0, nil, '', nil
      if record then
        before, death, feat, since = deliveries_before(id, limit, now)
      end
      if not record or death then
        end_undelivered(queue, id, record, death, now, retention, keep)
        return false
      end
      redis.call('ZADD', LEASED .. queue, now + lease, id) -- first what foreign data could refuse
      delivered = delivered + 1
      credit = credit - 1
      redis.call('HSET', OWNERS, id, token .. '.' .. delivered .. ';' .. at .. feat .. ';' .. worker)
      alarm_by(queue, now + lease)
      local deliveries = since and before + 1 .. ';' .. since or before + 1
      for _, field in ipairs({number, id, deliveries, record}) do
        reply[#reply + 1] = field
      end
      tell_features(feat, 'started', queue, id, now, worker)
      return true
    end

    local error
    count, error = lanes().claim_in_turn(queue, most, idle - delivered, claim_ready, deliver)
    problem = error or problem
  end
  if pausing and count and count > 0 then
    closed = lanes().count_started(queue, count)
  end
  if count and not closed and (redis.call('EXISTS', READY .. queue) == 1
      or meta[7] and redis.call('EXISTS', TICKETS .. queue) == 1) then
    arm(queue)
    if credit <= 0 or idle > delivered or not (pausing or laned) then
      reply[1] = 1
    elseif reply[1] == 0 then
      reply[1] = 2
    end
  else
    redis.call('DEL', WAKE .. queue)
  end
end

if pausing or meta[7] then
  due = head(ALARMS)
end
local wake_at = keep_time(worker, now, due, meta[4], meta[5], lease)
if wake_at then
  reply[2] = math.max(0, (wake_at - now) * 1000 - micros)
end
if problem then
  reply[#reply + 1] = tostring(type(problem) == 'table' and problem.err or problem)
end
return reply
