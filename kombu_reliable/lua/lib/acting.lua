-- @include clock
-- @include layout
-- @include room
-- Operations that act on jobs by their keys and answer one word per job.
--
-- ARGV  now | '', what the operation takes, then the keys
local function act(first, each)
  local version, keeper = unpack(redis.call('HMGET', META, 'v', 'keeper'))
  if foreign(version) then
    return refuse(version)
  end
  enter_full_server()
  local now = clock()
  local reply = {}
  for i = first, #ARGV do
    reply[#reply + 1] = each(ARGV[i], now, keeper)
  end
  return reply
end
