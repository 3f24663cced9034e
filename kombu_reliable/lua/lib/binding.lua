-- Bindings of queues that do not live for ever are noted with the queue as well, each as
-- '<length of exchange>:<exchange><member>', so that they can go with it.
local function note_of(exchange, member)
  return #exchange .. ':' .. exchange .. member
end

local function unbind(queue, exchange, member)
  redis.call('SREM', BINDINGS .. exchange, member)
  redis.call('ZREM', BOUND .. queue, note_of(exchange, member))
end
