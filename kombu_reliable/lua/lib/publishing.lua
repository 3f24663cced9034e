-- @include clock
-- @include layout
-- @include nonce
-- @include place
-- @include alarm
-- @include wake
-- Stores messages, ready or delayed, each at most once.
--
-- ARGV  now | '' , lane, number of the first message in its lane,
--       then per message: id, queue, rank, due, envelope and what else the operation takes
--       due: '0' at once, '+<ms>' from now, '<ms>' since the epoch
-- Reply one string per message: the key it is stored under ('' if it was stored before).
--       Of a single message it comes without an array around it, which would cost as much as
--       storing the message.
local function due_at(due, now)
  if string.sub(due, 1, 1) == '+' then
    return now + tonumber(due)
  end
  return tonumber(due)
end

local function publish(stride, store)
  local version, keeper = unpack(redis.call('HMGET', META, 'v', 'keeper'))
  if foreign(version) then
    return refuse(version)
  end
  local now = clock()
  local lane, first = ARGV[2], tonumber(ARGV[3])
  local count = (#ARGV - 3) / stride
  local skip, known = made_before(lane, first, count)
  local reply = {}
  for i = 1, skip do
    reply[i] = ''
  end
  if skip < count then
    -- The first write may grow, so a full server refuses here, before anything is stored.
    remember(lane, first + count - 1, now, known)
    if not version then
      redis.call('HSET', META, 'v', LAYOUT)
    end
    local sequence = redis.call('HINCRBY', META, 'seq', count - skip) - count
    local watched = keeper and tonumber(string.match(keeper, ';([^;]*);'))
    for i = skip + 1, count do
      local at = 4 + (i - 1) * stride
      local queue, rank, due = ARGV[at + 1], tonumber(ARGV[at + 2]), due_at(ARGV[at + 3], now)
      local head = string.format('%03d%013.0f%04d', rank, now, #queue)
      local id, stored = store(at, sequence + i, head .. queue .. ARGV[at + 4])
      reply[i] = id
      if stored and due > now then
        redis.call('ZADD', DELAYED .. queue, due, id)
        alarm_by(queue, due)
        if not watched or due < watched or watched < now then
          arm(queue)
        end
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

-- Stores a record under an id.  If another job lives there, this one is independent of it, under
-- a key of its own; no id of a user's begins like that.
local function store_new(id, number, record)
  if not redis.call('SET', JOB .. id, '-' .. record, 'NX') then
    id = string.format('~%.0f~', number) .. id
    redis.call('SET', JOB .. id, '-' .. record)
  end
  return id, true
end
