-- Publish: stores messages that need nothing but a queue, as nearly all do, each at most once.
-- What nearly every call does is written out below, for a single message that is ready at once: each
-- function that is made costs each publish.  All else is left to lib/publishing.lua.
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
local stamp, lane, number, id, queue, rank, due, tail = unpack(ARGV)
local call = redis.call -- looked up once
local meta = call('HMGET', META, 'v', 'paused')
local known
if #ARGV <= 8 and due == '0' and meta[1] == LAYOUT and not meta[2] and number % 64 > 0 then
  -- This write may grow, so a full server refuses here, before anything is stored.
  if call('ZADD', PRODUCERS, 'GT', 'CH', number, lane) == 0 then
    return ''
  end
  if stamp == '' then
    local time = call('TIME')
    stamp = time[1] .. string.sub('00000' .. time[2], -6, -4)
  end
  if call('SET', JOB .. id, '-' .. rank .. stamp .. tail, 'NX') then
    local at = call('HINCRBY', META, 'seq', 1) - rank * 35184372088832 -- as in lib/place.lua
    call('ZADD', READY .. queue, at, id)
    call('ZADD', WAKE .. queue, 0, '1')
    return id
  end
  known = 0
end
-- @defer publishing: publish_all
return publish_all(meta, known)
