-- Renew: extends leases.  Succeeds until somebody else has claimed the message, also after
-- the lease has expired.
--
-- ARGV  now | '', lease (ms), then per message: queue, id, token
-- Reply one number per message: 1 renewed, or its next run was published, 0 nobody holds it,
--       -1 it was taken from its owner
-- Cost  O(log n) per message; at most 300 messages a call
-- @include clock
-- @include layout
-- @include run
-- @include room
-- @include silence
local now, lease = clock(), tonumber(ARGV[2])
local meta = redis.call('HMGET', META, 'v', 'seen', 'hold')
if foreign(meta[1]) then
  return refuse(meta[1])
end
enter_full_server()
hear(now, tonumber(meta[2]), tonumber(meta[3]), lease)

local function renew(queue, id, token)
  local owner = redis.call('HGET', OWNERS, id)
  if not owned_by(owner, token) then
    return status_of_other(id, owner, token)
  end
  local deadline = now + lease
  if redis.call('ZADD', LEASED .. queue, 'XX', 'CH', deadline, id) == 0
      and redis.call('ZREM', READY .. queue, id) == 1 then
    redis.call('ZADD', LEASED .. queue, deadline, id)
    redis.call('ZADD', ALARMS, 'LT', deadline, queue)
  end
  return 1
end

local reply = {}
for i = 3, #ARGV, 3 do
  reply[#reply + 1] = renew(ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
return reply
