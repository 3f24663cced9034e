-- Empty: deletes jobs of a queue that are in one state, in bounded steps.
--
-- ARGV  now | '', queue, state: ready, throttled, delayed, waiting, failed or completed
-- Reply number of jobs deleted; 0 when none is left
-- Cost  at most 25 jobs a call
-- @include clock
-- @include layout
-- @include removal
-- @include room
local STEP = 25
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local now = clock()
local queue, state = ARGV[2], ARGV[3]
local ids = redis.call('ZRANGE', PLACES[state] .. queue, 0, STEP - 1)
for _, id in ipairs(ids) do
  local owner = (state == 'ready' or state == 'throttled') and redis.call('HGET', OWNERS, id)
  remove(id, {queue = queue, state = state, owner = owner}, now)
end
return #ids
