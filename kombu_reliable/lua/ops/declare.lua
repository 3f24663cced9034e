-- Declare: makes a queue known.  A declaration that says otherwise than the one before wins.
--
-- ARGV  now | '', queue, life (ms; 0: no limit), 1 if it goes with its last consumer
-- Reply number of messages that wait in the queue
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
enter_full_server() -- a worker must be able to start and empty it
local queue, life, auto = ARGV[2], ARGV[3], ARGV[4]
if not version then
  redis.call('HSET', META, 'v', LAYOUT)
end
redis.call('SADD', QUEUES, queue)
if life == '0' and auto == '0' then
  redis.call('DEL', LIFE .. queue, ATTENDANCE .. queue, BOUND .. queue)
else
  redis.call('HDEL', LIFE .. queue, 'gone', 'swept')
  redis.call('HSET', LIFE .. queue, 'life', life, 'auto', auto, 'used', (clock()))
  redis.call('PERSIST', LIFE .. queue)
  lives.watch(queue)
end

-- Foreign data under a key of one queue must not keep a worker of several from starting.
local function size(key)
  local count = redis.pcall('ZCARD', key)
  return type(count) == 'number' and count or 0
end

return size(READY .. queue) + size(DELAYED .. queue) + size(WAITING .. queue)
  + size(THROTTLED .. queue)
