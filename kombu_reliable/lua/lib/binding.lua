-- Bindings of queues that do not live for ever are noted with the queue as well, each as
-- '<length of exchange>:<exchange><member>', so that they can go with it.
local function note_of(exchange, member)
  return #exchange .. ':' .. exchange .. member
end

-- Whoever keeps bindings in memory asks for this field, and reads them again if it has changed.
-- A time and no count: after a loss of data it must not come back to a value of before.
local function bindings_changed()
  local time = redis.call('TIME')
  redis.call('HSET', META, 'routes', time[1] .. '.' .. time[2])
end

local function unbind(queue, exchange, member)
  if redis.call('SREM', BINDINGS .. exchange, member) == 1 then
    bindings_changed()
  end
  redis.call('ZREM', BOUND .. queue, note_of(exchange, member))
end
