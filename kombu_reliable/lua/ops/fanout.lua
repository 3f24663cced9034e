-- Fanout: appends a message to an exchange's stream if anybody listens.
--
-- ARGV  now | '', exchange, routing key, envelope, length limit of the stream,
--       life of an idle stream (ms)
-- Reply 1 if somebody listens, else 0
-- Cost  O(1)
-- @include clock
-- @include layout
-- @include room
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local exchange = ARGV[2]
if redis.call('ZCOUNT', LISTENERS .. exchange, clock(), '+inf') == 0 then
  return 0
end
enter_full_server() -- remote control helps; a stream is capped
redis.call('XADD', FANOUT .. exchange, 'MAXLEN', '~', ARGV[5], '*', 'k', ARGV[3], 'm', ARGV[4])
redis.call('PEXPIRE', FANOUT .. exchange, ARGV[6])
return 1
