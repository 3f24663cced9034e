-- @include clock
-- @include delaying
-- @include layout
-- @include nonce
-- @include place
-- @include storing
-- @include wake
-- Publishes whatever needs nothing but a queue.  `known`: how many of the messages were published
-- before, if that was asked already.
local function publish_all(meta, known)
  if foreign(meta[1]) then
    return refuse(meta[1])
  end
  pausing = meta[2]
  local now, _, stamp = clock()
  local count = (#ARGV - 3) / 5
  local skip = known or remember(ARGV[2], ARGV[3], count)
  if not meta[1] then
    redis.call('HSET', META, 'v', LAYOUT)
  end
  local sequence = redis.call('HINCRBY', META, 'seq', count - skip) - count
  local keeper = redis.call('HGET', META, 'keeper')
  local reply = {}
  for i = 1, count do
    local at = i * 5 - 1
    local id, queue, rank = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    if i <= skip then
      id = ''
    else
      local record = '-' .. rank .. stamp .. ARGV[at + 4]
      if not redis.call('SET', JOB .. id, record, 'NX') then
        id = store_twin(id, sequence + i, record)
      end
      local due = ARGV[at + 3] == '0' and now or due_at(ARGV[at + 3], now)
      if due > now then
        delay(queue, id, due, now, keeper)
      else
        redis.call('ZADD', READY .. queue, place(rank, sequence + i), id)
        arm(queue)
      end
    end
    reply[i] = id
  end
  return count == 1 and reply[1] or reply
end
