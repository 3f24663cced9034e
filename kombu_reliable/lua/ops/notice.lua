-- Notice: somebody publishes to queues that nobody may have declared.  So that they can be listed,
-- the last ones are remembered.
--
-- ARGV  now | '', then the queues
-- Reply 1
-- Cost  O(log n) per queue; at most 100 queues a call
-- @include clock
-- @include layout
-- @include noticing
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local now = clock()
for i = 2, #ARGV do
  notice(ARGV[i], now)
end
return 1
