-- Fanout: appends a message to an exchange's stream if anybody listens, at most once.
--
-- ARGV  now | '', lane, number of the message in its lane, exchange, routing key, envelope,
--       length limit of the stream, life of an idle stream (ms)
-- Reply 1 if somebody listens, else 0
-- Cost  O(log n)
-- @include clock
-- @include layout
-- @include nonce
-- @include room
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local lane, number, exchange = ARGV[2], tonumber(ARGV[3]), ARGV[4]
if redis.call('ZCOUNT', LISTENERS .. exchange, (clock()), '+inf') == 0 then
  return 0
end
enter_full_server() -- remote control helps; a stream is capped
if remember(lane, number, 1) == 0 then
  redis.call('XADD', FANOUT .. exchange, 'MAXLEN', '~', ARGV[7], '*', 'k', ARGV[5], 'm', ARGV[6])
  redis.call('PEXPIRE', FANOUT .. exchange, ARGV[8])
end
return 1
