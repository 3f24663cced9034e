-- Purge: deletes what waits in a queue, ready, delayed or for others,
-- in bounded steps.
--
-- ARGV  now | '', queue
-- Reply number of jobs deleted; 0 when none is left
-- Cost  at most 200 jobs a call
-- @include layout
-- @include discard
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
return discarding()(ARGV[2])
