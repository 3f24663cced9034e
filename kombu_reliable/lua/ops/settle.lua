-- Settle: ends deliveries.  What was settled before, or belongs to another delivery by now,
-- is left alone and told apart in the reply.
--
-- ARGV  now | '', retention of dead letters (ms), number kept per queue,
--       then per message: verdict, queue, id, token, reason
--       verdicts: ack      done, forget it
--                 fail     to the dead letters, with the reason
--                 requeue  back to its old place, counts as a delivery
--                 release  back to its old place, does not count
-- Reply one number per message: 1 settled, 0 nobody holds it, -1 another delivery holds it
-- Cost  O(log n) per message; at most 300 messages a call
-- @include clock
-- @include layout
-- @include owner
-- @include room
-- @include dead
-- @include alarm
-- @include wake
local now = clock()
local retention, keep = tonumber(ARGV[2]), tonumber(ARGV[3])
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()

local function give_back(queue, id, at, counts)
  redis.call('ZADD', READY .. queue, at or 0, id)
  if counts then
    mark_extra(id)
    redis.call('HINCRBY', EXTRA .. id, 'n', 1)
  end
  arm(queue)
end

local function settle(verdict, queue, id, token, reason)
  local owner = redis.call('HGET', OWNERS, id)
  if not owned_by(owner, token) then
    return owner and -1 or 0
  end
  local at = owner_place(owner)
  redis.call('HDEL', OWNERS, id)
  if redis.call('ZREM', LEASED .. queue, id) == 0 then
    redis.call('ZREM', READY .. queue, id)
  end
  if verdict == 'ack' then
    redis.call('UNLINK', JOB .. id, EXTRA .. id)
  elseif verdict == 'fail' then
    bury(queue, id, reason, now, keep)
    alarm_by(queue, now + retention + 1)
  else
    give_back(queue, id, at, verdict == 'requeue')
  end
  return 1
end

local reply, fenced = {}, 0
for i = 4, #ARGV, 5 do
  -- Foreign data in one place must not keep the others from being settled.
  local fine, status = pcall(settle, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  status = fine and status or 0
  reply[#reply + 1] = status
  if status == -1 then
    fenced = fenced + 1
  end
end
if fenced > 0 then
  redis.call('HINCRBY', META, 'fenced', fenced)
end
return reply
