-- Publish: stores messages that need nothing but a queue, as nearly all do, each at most once.  The
-- same as publish_featured does, written out: each publish pays for every call of a function.
--
-- ARGV  now | '' , lane, number of the first message in its lane,
--       then per message: id, queue, rank, due, tail
--       rank: three digits, higher ones run first
--       due: '0' at once, '+<ms>' from now, '<ms>' since the epoch
--       tail: what a record has behind its times, see record.lua
-- Reply one string per message: the key it is stored under ('' if it was stored before).
--       Of a single message it comes without an array around it, which would cost as much as
--       storing the message.
-- Cost  O(log n) per message; at most 200 messages a call
-- @include clock
-- @include layout
-- @include nonce
-- @include place
-- @include wake
-- @defer delaying: delay, due_at
-- @defer storing: store_twin
local meta = redis.call('HMGET', META, 'v', 'keeper', 'paused')
if foreign(meta[1]) then
  return refuse(meta[1])
end
pausing = meta[3]
local now, _, stamp = clock()
local count = (#ARGV - 3) / 5
local skip = remember(ARGV[2], ARGV[3], count)
if not meta[1] then
  redis.call('HSET', META, 'v', LAYOUT)
end
local sequence = redis.call('HINCRBY', META, 'seq', count - skip) - count
local reply = {}
for i = 1, count do
  local at = i * 5 - 1
  local id, queue, rank, due = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if i <= skip then
    id = ''
  else
    local record = rank .. stamp .. ARGV[at + 4]
    if not redis.call('SET', JOB .. id, '-' .. record, 'NX') then
      id = store_twin(id, sequence + i, record)
    end
    due = due == '0' and now or due_at(due, now)
    if due > now then
      delay(queue, id, due, now, meta[2])
    else
      redis.call('ZADD', READY .. queue, place(rank, sequence + i), id)
      if pausing then
        arm(queue)
      else
        redis.call('ZADD', WAKE .. queue, 0, '1')
      end
    end
  end
  reply[i] = id
end
return count == 1 and reply[1] or reply
