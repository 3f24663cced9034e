-- Delete: deletes a queue, its bindings and what waits in it.
--
-- ARGV  now | '', queue, 1 to spare it if it has consumers, 1 to spare it if messages wait in it,
--       then per binding that the caller knows: exchange, binding
-- Reply number of messages deleted; -1 spared
-- Cost  deletes at most 200 jobs; the caller purges the rest
-- @include clock
-- @include layout
-- @include room
-- @include lifetime
local lives = lifetimes()
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local now, queue = clock(), ARGV[2]
if ARGV[3] == '1' and (lives.attended_until(queue) or 0) > now then
  return -1
end
if ARGV[4] == '1' and redis.call('EXISTS', READY .. queue, DELAYED .. queue, WAITING .. queue,
    THROTTLED .. queue) > 0 then
  return -1
end
redis.call('SREM', QUEUES, queue)
set_paused(queue, false)
for i = 5, #ARGV, 2 do
  unbind(queue, ARGV[i], ARGV[i + 1])
end
local record = lives.read(queue)
if record then
  return lives.sweep(queue, record, now)
end
return discarding()(queue)
