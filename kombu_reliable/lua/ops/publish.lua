-- Publish: stores messages, ready or delayed, each at most once.
--
-- ARGV  now | '' , lane, number of the first message in its lane,
--       then per message: id, queue, rank, due, envelope
--       due: '0' at once, '+<ms>' from now, '<ms>' since the epoch
-- Reply one string per message: the key it is stored under ('' if it was stored before)
-- Cost  O(log n) per message; at most 200 messages a call
--
-- A lane numbers its messages one by one and repeats one only before the next, so its last
-- number is all that must be remembered.  Lanes that were not used for long are dropped.
-- @include clock
-- @include layout
-- @include record
-- @include place
-- @include alarm
-- @include wake
local LANES = 4096
local TURN = 4194304 -- numbers wrap here, to leave the upper bits of a score to the time
local TICK = 4000 -- ms; in whole seconds a score would outgrow a double in 2038
local STRIDE = 5

local version, keeper = unpack(redis.call('HMGET', META, 'v', 'keeper'))
if foreign(version) then
  return refuse(version)
end

local now = clock()
local lane, first = ARGV[2], tonumber(ARGV[3])
local count = (#ARGV - 3) / STRIDE
local known = redis.call('ZSCORE', PRODUCERS, lane)
local skip = 0
if known then
  local ahead = (first - known % TURN) % TURN
  if ahead == 0 or ahead > TURN / 2 then
    skip = math.min(count, (known % TURN - first) % TURN + 1)
  end
end

local reply = {}
for i = 1, skip do
  reply[i] = ''
end
if skip == count then
  return reply
end

-- The first write may grow, so a full server refuses here, before anything is stored.
redis.call('ZADD', PRODUCERS, math.floor(now / TICK) * TURN + (first + count - 1) % TURN, lane)
if not known and redis.call('ZCARD', PRODUCERS) > LANES then
  redis.call('ZREMRANGEBYRANK', PRODUCERS, 0, 0)
end
if not version then
  redis.call('HSET', META, 'v', LAYOUT)
end

local sequence = redis.call('HINCRBY', META, 'seq', count - skip) - count
local watched = keeper and tonumber(string.match(keeper, ';([^;]*);'))

local function due_at(due)
  if string.sub(due, 1, 1) == '+' then
    return now + tonumber(due)
  end
  return tonumber(due)
end

local function store(id, queue, rank, due, envelope, number)
  local record = string.format('-%03d%013.0f%04d', rank, now, #queue) .. queue .. envelope
  local stored = redis.call('SET', JOB .. id, record, 'NX')
  if not stored then
    -- Another job lives under this id: this one is independent of it, under a key of its own.
    -- No id of a user's begins like this one.
    id = string.format('~%.0f~', number) .. id
    redis.call('SET', JOB .. id, record)
  end
  due = due_at(due)
  if due > now then
    redis.call('ZADD', DELAYED .. queue, due, id)
    alarm_by(queue, due)
    if not watched or due < watched or watched < now then
      arm(queue)
    end
  else
    redis.call('ZADD', READY .. queue, place(rank, number), id)
    arm(queue)
  end
  return id
end

for i = skip, count - 1 do
  local at = 3 + i * STRIDE
  reply[i + 1] = store(ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4],
    ARGV[at + 5], sequence + i + 1)
end
return reply
