-- Settle: ends deliveries.  What was settled before, or belongs to another delivery by now,
-- is left alone and told apart in the reply.
--
-- ARGV  now | '', retention of dead letters (ms), number kept per queue,
--       then the settlements
-- Reply one status per settlement
-- Cost  O(log n) per settlement; at most 300 a call
-- @include clock
-- @include layout
-- @include room
-- @include settlement
local version
version, pausing = unpack(redis.call('HMGET', META, 'v', 'paused'))
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local reply = {}
settle(4, #ARGV, clock(), tonumber(ARGV[2]), tonumber(ARGV[3]), reply)
return reply
