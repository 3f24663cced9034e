-- Pause: stops a queue for all workers, or lets it go on.  What was claimed goes on.
--
-- ARGV  now | '', queue, 1 to stop it, 0 to let it go on
-- Reply 1 if this changed anything, else 0
-- Cost  O(1)
-- @include layout
-- @include pausing
-- @include room
-- @include wake
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
if not version then
  redis.call('HSET', META, 'v', LAYOUT)
end
local queue, paused = ARGV[2], ARGV[3] == '1'
local changed = set_paused(queue, paused)
if paused then
  redis.call('DEL', WAKE .. queue)
elseif redis.call('EXISTS', READY .. queue, DELAYED .. queue, THROTTLED .. queue) > 0 then
  -- Also for what cannot start yet: nobody may be watching the clock for it.
  arm(queue)
end
return changed
