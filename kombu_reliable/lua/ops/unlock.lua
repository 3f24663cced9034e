-- Unlock: the run of a job begins, and with it ends its hold on its unique key.
--
-- ARGV  now | '', key of the job, token of the run
-- Reply 1 it gave up its key, 0 it has none any more, -1 somebody else holds the job
-- Cost  O(1)
-- @include layout
-- @include owner
-- @include room
-- @include unique
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local id, token = ARGV[2], ARGV[3]
if not owned_by(redis.call('HGET', OWNERS, id), token) then
  return -1
end
return free_key(id) and 1 or 0
