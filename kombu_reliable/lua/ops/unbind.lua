-- Unbind: removes a binding.
--
-- ARGV  now | '', exchange, binding, queue
-- Reply 1
-- Cost  O(log n)
-- @include layout
-- @include room
-- @include binding
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
enter_full_server()
unbind(ARGV[4], ARGV[2], ARGV[3])
return 1
