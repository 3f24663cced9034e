-- Claim: does what time demands, then leases messages in order.
--
-- ARGV  now | '', worker ('' if it does not stay), token, lease (ms), credit,
--       delivery limit (0: none), retention of dead letters (ms), number kept per queue,
--       then the queues in the order in which they are asked
-- Reply 1 if claimable work is left, when to claim again (us from now; -1: others watch),
--       then per message: number of its queue (from 1), id, deliveries, record.
--       The n-th message is leased under '<token>.<n>'.
-- Cost  O(log n) per message; credit at most 100, upkeep of at most 8 queues a call
-- @include clock
-- @include layout
-- @include silence
-- @include upkeep
-- @include run
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
for _, queue in ipairs(alarmed) do
  upkeep(queue, now, hold, retention)
end

local reply = {0, -1}
local delivered = 0

-- Deliveries that ended without an outcome.  An owner that is still noted lost its lease, and
-- loses the job by this claim.
local function deliveries_before(id, record, owner)
  local lost = 0
  if owner then
    lost = 1
    fence(owner_token(owner), now)
  end
  if string.sub(record, 1, 1) ~= 'x' then
    if lost == 0 then
      return 0
    end
    mark_extra(id)
  end
  return redis.call('HINCRBY', EXTRA .. id, 'n', lost)
end

local function claim_from(number, queue)
  local popped = redis.call('ZPOPMIN', READY .. queue, credit)
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
    redis.call('HSET', OWNERS, unpack(owners))
    redis.call('ZADD', LEASED .. queue, unpack(leases))
    alarm_by(queue, now + lease)
  end
end

for i = FIRST_QUEUE, #ARGV do
  if credit > 0 then
    claim_from(i - FIRST_QUEUE + 1, ARGV[i])
  end
end

-- What upkeep armed a marker for may have been claimed.
if #alarmed > 0 then
  redis.call('DEL', unpack(markers))
end
for i = FIRST_QUEUE, #ARGV do
  if redis.call('EXISTS', READY .. ARGV[i]) == 1 then
    arm(ARGV[i])
    reply[1] = 1
  end
end
local wake_at = keep_time(worker, now, head(ALARMS), meta[4], meta[5], lease)
if wake_at then
  reply[2] = math.max(0, (wake_at - now) * 1000 - micros)
end
return reply
