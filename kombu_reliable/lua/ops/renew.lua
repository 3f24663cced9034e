-- Renew: extends leases.  Succeeds until somebody else has claimed the message, also after
-- the lease has expired.
--
-- ARGV  now | '', lease (ms), then per message: queue, id, token
-- Reply one number per message: 1 renewed, or its next run was published, 0 nobody holds it,
--       -1 it was taken from its owner
-- Cost  O(log n) per message; at most 300 messages a call
-- @include clock
-- @include layout
-- @include owner
-- @include run
-- @include room
-- @include silence
-- @defer lanes: lanes
local now, lease = clock(), tonumber(ARGV[2])
local meta = redis.call('HMGET', META, 'v', 'seen', 'hold')
if foreign(meta[1]) then
  return refuse(meta[1])
end
enter_full_server()
hear(now, tonumber(meta[2]), tonumber(meta[3]), lease)

-- A throttled job that lost its lease waits in its lane.  Who has gone on with it takes a slot, though
-- there may be none: it does run.
local function regain(queue, id, owner)
  local feat = owner_features(owner)
  if not feat or not string.find(feat, 'l', 1, true) or not lanes().leave(queue, id) then
    return false
  end
  lanes().take(id)
  return true
end

local function renew(queue, id, token)
  local owner = redis.call('HGET', OWNERS, id)
  if not owned_by(owner, token) then
    return status_of_other(id, owner, token)
  end
  local deadline = now + lease
  if redis.call('ZADD', LEASED .. queue, 'XX', 'CH', deadline, id) == 0
      and (redis.call('ZREM', READY .. queue, id) == 1 or regain(queue, id, owner)) then
    redis.call('ZADD', LEASED .. queue, deadline, id)
    redis.call('ZADD', ALARMS, 'LT', deadline, queue)
  end
  return 1
end

local reply = {}
for i = 3, #ARGV, 3 do
  -- Foreign data in one place must not keep the others from being renewed.
  local fine, status = pcall(renew, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  reply[#reply + 1] = fine and status or 0
end
return reply
