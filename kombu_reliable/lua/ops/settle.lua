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
-- @include stirred
-- @defer dependency: tell_of_ends, dependencies, forsake
-- @defer endings: settle_otherwise, deliver_once, status_of_other, leave_twin, end_undelivered
-- @defer features: tell_features, features_of, end_features
-- @defer lanes: lanes
-- @defer releasing: releasing
local version, hold
version, hold, pausing = unpack(redis.call('HMGET', META, 'v', 'hold', 'paused'))
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local reply = {}
local now, retention, keep = clock(), tonumber(ARGV[2]), tonumber(ARGV[3])
settle(4, #ARGV, now, retention, keep, reply)
if stirred then
  pcall(releasing, '', now, tonumber(hold or nil), retention, keep)
end
return reply
