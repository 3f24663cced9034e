-- Bind: binds a queue to an exchange.
--
-- ARGV  now | '', exchange, binding, queue
-- Reply 1 if the binding is new, else 0
-- Cost  O(log n)
-- @include layout
-- @include room
-- @include binding
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server() -- a worker must be able to start and empty it
if not version then
  redis.call('HSET', META, 'v', LAYOUT)
end
local exchange, member, queue = ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', LIFE .. queue) == 1 then
  redis.call('ZADD', BOUND .. queue, 0, note_of(exchange, member))
end
local new = redis.call('SADD', BINDINGS .. exchange, member)
if new == 1 then
  bindings_changed()
end
return new
