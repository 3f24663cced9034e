-- Free slot: takes the slot of a throttle from jobs, which may still run.
--
-- ARGV  now | '', throttle, then the keys of the jobs
-- Reply how many of them had one
-- Cost  O(log n) per job; wakes the workers of at most 100 queues
-- @include layout
-- @include lanes
-- @include room
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local all, name, count = lanes(), ARGV[2], 0
for i = 3, #ARGV do
  count = count + all.ours(HELD .. name, 'ZREM', ARGV[i])
end
if count > 0 then
  all.opened(name)
  all.forget_unused(name)
end
return count
