-- @include clock
-- @include layout
-- @include nonce
-- @include place
-- @include delaying
-- @include storing
-- Stores messages, ready or delayed, each at most once.
--
-- ARGV  now | '' , lane, number of the first message in its lane,
--       then per message: id, queue, rank, due, tail and what else the operation takes
--       rank: three digits, higher ones run first
--       due: '0' at once, '+<ms>' from now, '<ms>' since the epoch
--       tail: what a record has behind its times, see record.lua
-- Reply one string per message: the key it is stored under ('' if it was stored before).
--       Of a single message it comes without an array around it, which would cost as much as
--       storing the message.
local function publish(stride, store)
  local version, keeper, paused = unpack(redis.call('HMGET', META, 'v', 'keeper', 'paused'))
  if foreign(version) then
    return refuse(version)
  end
  pausing = paused
  local now, _, stamp = clock()
  local count = (#ARGV - 3) / stride
  local skip = remember(ARGV[2], ARGV[3], count)
  local reply = {}
  for i = 1, skip do
    reply[i] = ''
  end
  if skip < count then
    if not version then
      redis.call('HSET', META, 'v', LAYOUT)
    end
    local sequence = redis.call('HINCRBY', META, 'seq', count - skip) - count
    for i = skip + 1, count do
      local at = 4 + (i - 1) * stride
      local queue, rank, due = ARGV[at + 1], ARGV[at + 2], due_at(ARGV[at + 3], now)
      local id, stored = store(at, sequence + i, rank .. stamp .. ARGV[at + 4])
      reply[i] = id
      if stored and due > now then
        delay(queue, id, due, now, keeper)
      elseif stored then
        redis.call('ZADD', READY .. queue, place(rank, sequence + i), id)
        arm(queue)
      end
    end
  end
  if count == 1 then
    return reply[1]
  end
  return reply
end

local function store_new(id, number, record)
  if not redis.call('SET', JOB .. id, '-' .. record, 'NX') then
    id = store_twin(id, number, record)
  end
  return id, true
end
