-- Claim: does what time demands, then leases messages in order.
--
-- ARGV  now | '', worker ('' if it does not stay), token, lease (ms), credit,
--       delivery limit (0: none), retention of dead letters (ms), number kept per queue,
--       then the queues in the order in which they are asked
-- Reply 1 if claimable work is left, when to claim again (us from now; -1: others watch),
--       then per message: number of its queue (from 1), id, deliveries, record.
--       The n-th message is leased under '<token>.<n>'.
--       At the end, if a queue could not be read: the error.  The other queues are served.
-- Cost  O(log n) per message; credit at most 100, upkeep of at most 8 queues a call
-- @include clock
-- @include layout
-- @include silence
-- @include upkeep
-- @include timekeeper
local now, micros = clock()
local worker, token, lease = ARGV[2], ARGV[3], tonumber(ARGV[4])
local credit, limit = tonumber(ARGV[5]), tonumber(ARGV[6])
local retention, keep = tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST_QUEUE = 9

local meta = redis.call('HMGET', META, 'v', 'seen', 'hold', 'keeper', 'deputy')
if foreign(meta[1]) then
  return refuse(meta[1])
end

-- A removing write first: a full server must not refuse what empties it.
local markers = {}
for i = FIRST_QUEUE, #ARGV do
  markers[#markers + 1] = WAKE .. ARGV[i]
end
redis.call('DEL', unpack(markers))

local hold = hear(now, tonumber(meta[2]), tonumber(meta[3]), lease)
local alarmed = redis.call('ZRANGEBYSCORE', ALARMS, '-inf', now, 'LIMIT', 0, 8)
local problem
local broken = {}
for _, queue in ipairs(alarmed) do
  local fine, error = pcall(upkeep, queue, now, hold, retention)
  if not fine then
    problem = error
    redis.call('ZADD', ALARMS, now + lease, queue)
  end
end

local reply = {0, -1}
local delivered = 0
local popped = {}

-- Deliveries that ended without an outcome.  An owner that is still noted lost its lease.
local function deliveries_before(id, record, owner)
  local lost = owner and 1 or 0
  if string.sub(record, 1, 1) ~= 'x' then
    if lost == 0 then
      return 0
    end
    mark_extra(id)
  end
  local before = redis.pcall('HINCRBY', EXTRA .. id, 'n', lost)
  if type(before) == 'number' then
    return before
  end
  redis.call('UNLINK', EXTRA .. id) -- foreign data
  return lost
end

local function claim_from(number, queue)
  popped = redis.call('ZPOPMIN', READY .. queue, credit)
  if #popped == 0 then
    return
  end
  local ids, records, owners, leases = {}, {}, {}, {}
  for i = 1, #popped, 2 do
    ids[#ids + 1] = popped[i]
    records[#records + 1] = JOB .. popped[i]
  end
  records = redis.call('MGET', unpack(records))
  local previous = redis.call('HMGET', OWNERS, unpack(ids))
  for i, id in ipairs(ids) do
    local record = records[i]
    local before = record and deliveries_before(id, record, previous[i])
    if not record or (limit > 0 and before >= limit) then
      redis.call('HDEL', OWNERS, id)
      if record then
        bury(queue, id, 'delivery-limit', now, keep)
        alarm_by(queue, now + retention + 1)
      else
        redis.call('UNLINK', EXTRA .. id)
      end
    else
      delivered = delivered + 1
      credit = credit - 1
      owners[#owners + 1] = id
      owners[#owners + 1] = token .. '.' .. delivered .. ';' .. popped[2 * i] .. ';' .. worker
      leases[#leases + 1] = now + lease
      leases[#leases + 1] = id
      reply[#reply + 1] = number
      reply[#reply + 1] = id
      reply[#reply + 1] = before + 1
      reply[#reply + 1] = record
    end
  end
  if #owners > 0 then
    redis.call('ZADD', LEASED .. queue, unpack(leases))
    redis.call('HSET', OWNERS, unpack(owners))
    alarm_by(queue, now + lease)
  end
end

-- Foreign data under the key of a queue must neither stop the others nor cost a message.
local function claim_safely(number, queue)
  local length, delivered_before, credit_before = #reply, delivered, credit
  popped = {}
  local fine, error = pcall(claim_from, number, queue)
  if fine then
    return
  end
  problem, delivered, credit = error, delivered_before, credit_before
  broken[queue] = true
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
end

for i = FIRST_QUEUE, #ARGV do
  if credit > 0 then
    claim_safely(i - FIRST_QUEUE + 1, ARGV[i])
  end
end

-- What upkeep armed a marker for may have been claimed.
if #alarmed > 0 then
  redis.call('DEL', unpack(markers))
end
for i = FIRST_QUEUE, #ARGV do
  if not broken[ARGV[i]] and redis.call('EXISTS', READY .. ARGV[i]) == 1 then
    arm(ARGV[i])
    reply[1] = 1
  end
end
local wake_at = keep_time(worker, now, head(ALARMS), meta[4], meta[5], lease)
if wake_at then
  reply[2] = math.max(0, (wake_at - now) * 1000 - micros)
end
if problem then
  reply[#reply + 1] = tostring(type(problem) == 'table' and problem.err or problem)
end
return reply
