-- Undepend: a job does not wait for others any more.  Without anything left to wait for it
-- becomes ready, or delayed.
--
-- ARGV  now | '', job, then the keys that it need not wait for
-- Reply number of those that it waited for
-- Cost  O(log n) per key; at most 300 a call
-- @include clock
-- @include layout
-- @include room
-- @include dependency
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
local now, all, id, count = clock(), dependencies(), ARGV[2], 0
for i = 3, #ARGV do
  if redis.call('SISMEMBER', UNMET .. id, ARGV[i]) == 1 then
    count = count + 1
    all.meet(ARGV[i], id, now)
    all.drop_edge(ARGV[i], id)
  end
end
return count
