-- Publish: stores messages, ready or delayed, each at most once.
--
-- ARGV  now | '' , lane, number of the first message in its lane,
--       then per message: id, queue, rank, due, envelope, features
--       due: '0' at once, '+<ms>' from now, '<ms>' since the epoch
--       features: '' or a JSON object
--         run  [token, key]: published by the owner of this delivery, whose next run it is.
--              Ends the delivery in the same step; refused if it was taken from its owner.
-- Reply one string per message: the key it is stored under ('' if it was stored before,
--       '!' if it was refused)
-- Cost  O(log n) per message; at most 200 messages a call
-- @include clock
-- @include layout
-- @include nonce
-- @include record
-- @include place
-- @include alarm
-- @include wake
-- @include run
local STRIDE = 6

local version, keeper = unpack(redis.call('HMGET', META, 'v', 'keeper'))
if foreign(version) then
  return refuse(version)
end

local now = clock()
local lane, first = ARGV[2], tonumber(ARGV[3])
local count = (#ARGV - 3) / STRIDE
local skip, known = made_before(lane, first, count)

local reply = {}
for i = 1, skip do
  reply[i] = ''
end
if skip == count then
  return reply
end

-- The first write may grow, so a full server refuses here, before anything is stored.
remember(lane, first + count - 1, now, known)
if not version then
  redis.call('HSET', META, 'v', LAYOUT)
end

local sequence = redis.call('HINCRBY', META, 'seq', count - skip) - count
local watched = keeper and tonumber(string.match(keeper, ';([^;]*);'))
local succeeded = {} -- tokens of the runs that this call has ended

local function due_at(due)
  if string.sub(due, 1, 1) == '+' then
    return now + tonumber(due)
  end
  return tonumber(due)
end

-- Ends the current run of a job whose next one is about to be stored; false if somebody else
-- has it.  Its deliveries are counted anew.
local function end_run(token, key)
  local owner = redis.call('HGET', OWNERS, key)
  local record = owned_by(owner, token) and redis.call('GET', JOB .. key)
  if not record then
    return false
  end
  local queue = record_queue(record)
  redis.call('HDEL', OWNERS, key)
  if redis.call('ZREM', LEASED .. queue, key) == 0 then
    redis.call('ZREM', READY .. queue, key)
  end
  local past = redis.call('HGET', EXTRA .. key, 'p') or ''
  redis.call('UNLINK', EXTRA .. key)
  redis.call('HSET', EXTRA .. key, 'p', string.sub(token .. ';' .. past, 1, PAST_RUNS))
  return true
end

local function store(id, queue, rank, due, envelope, features, number)
  local run = features ~= '' and cjson.decode(features).run
  local flag, mode = '-', 'NX'
  if run and not succeeded[run[1]] then
    if end_run(run[1], run[2]) then
      succeeded[run[1]] = true
      id, flag, mode = run[2], 'x', 'XX'
    elseif is_fenced(run[1]) or has_next_run(run[2], run[1]) then
      return '!'
    end
  end
  local record = string.format('%s%03d%013.0f%04d', flag, rank, now, #queue) .. queue .. envelope
  if not redis.call('SET', JOB .. id, record, mode) then
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
    ARGV[at + 5], ARGV[at + 6], sequence + i + 1)
end
return reply
