-- Tell ends: from now on, ends that no worker reports are told to a queue, see lib/ends.lua.
--
-- ARGV  now | '', the queue; '' for none
-- Reply 1
-- Cost  O(1)
-- @include layout
-- @include room
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server() -- a worker must be able to start and empty it
if ARGV[2] == '' then
  redis.call('HDEL', META, 'ends')
else
  redis.call('HSET', META, 'v', LAYOUT, 'ends', ARGV[2])
end
return 1
