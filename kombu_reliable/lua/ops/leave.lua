-- Leave: a consumer ends in good order.
--
-- ARGV  now | '', queue, consumer
-- Reply 1 if it was the last one and the queue went with it, else 0
-- Cost  deletes at most 200 jobs; what is left goes with the next claims
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
  return 0
end
enter_full_server()
local now = clock()
if redis.call('ZREM', ATTENDANCE .. queue, consumer) == 0 then
  return 0
end
redis.call('HSET', LIFE .. queue, 'used', now)
if record.auto and (lives.attended_until(queue) or 0) <= now then
  lives.sweep(queue, record, now)
  return 1
end
lives.watch(queue)
return 0
