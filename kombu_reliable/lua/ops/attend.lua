-- Attend: a consumer signs that it lives; somebody who takes one message counts as a use.
--
-- ARGV  now | '', queue, consumer ('' if it does not stay)
-- Reply ms until it must sign again; -1 if the queue lives for ever, or not any more
-- Cost  O(log n)
-- @include clock
-- @include layout
-- @include room
-- @include lifetime
local lives = lifetimes()
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local queue, consumer = ARGV[2], ARGV[3]
local record = lives.read(queue)
if not record or record.gone then
  return -1
end
enter_full_server()
local now = clock()
redis.call('HSET', LIFE .. queue, 'used', now)
if consumer ~= '' then
  -- Those who left without a word are forgotten once somebody else is there.
  redis.call('ZREMRANGEBYSCORE', ATTENDANCE .. queue, '-inf', now)
  redis.call('ZADD', ATTENDANCE .. queue, now + lives.believed_for(record.life), consumer)
end
lives.watch(queue)
return lives.sign_every(record.life)
