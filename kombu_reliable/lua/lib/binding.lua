-- Bindings of queues that do not live for ever are noted with the queue as well, each as
-- '<length of exchange>:<exchange><member>', so that they can go with it.
local UNBIND_STEP = 200

local function note_of(exchange, member)
  return #exchange .. ':' .. exchange .. member
end

local function unbind(queue, exchange, member)
  redis.call('SREM', BINDINGS .. exchange, member)
  redis.call('ZREM', BOUND .. queue, note_of(exchange, member))
end

-- One step; returns how many it removed.
local function unbind_all(queue)
  local notes = redis.call('ZRANGE', BOUND .. queue, 0, UNBIND_STEP - 1)
  for _, note in ipairs(notes) do
    local length, rest = string.match(note, '^(%d+):(.*)$')
    length = tonumber(length)
    unbind(queue, string.sub(rest, 1, length), string.sub(rest, length + 1))
  end
  return #notes
end
