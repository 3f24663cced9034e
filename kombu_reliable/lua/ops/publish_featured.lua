-- Publish featured: stores messages of which some have features.  Plain ones go through
-- publish, which does not pay for declaring what they do not use.
--
-- ARGV  as in lib/publishing.lua, and per message its features: '' or a JSON object
--       run  [token, key]: published by the owner of this delivery, whose next run it is.
--            Ends the delivery in the same step; refused if it was taken from its owner.
-- Reply as in lib/publishing.lua; '!' for a message that was refused
-- Cost  O(log n) per message; at most 200 messages a call
-- @include history
-- @include publishing
-- @include record
-- @include run
local FEATURES = 5
local succeeded = {} -- tokens of the runs that this call has ended

-- Ends the current run of a job whose next one is about to be stored; false if somebody else
-- has it.  Its deliveries are counted anew.
local function end_run(token, key)
  local owner = redis.call('HGET', OWNERS, key)
  local record = owned_by(owner, token) and redis.call('GET', JOB .. key)
  if not record then
    return false
  end
  local queue = record_queue(record)
  redis.call('HDEL', OWNERS, key)
  if redis.call('ZREM', LEASED .. queue, key) == 0 then
    redis.call('ZREM', READY .. queue, key)
  end
  local past, history = unpack(redis.call('HMGET', EXTRA .. key, 'p', 'h'))
  redis.call('UNLINK', EXTRA .. key)
  redis.call('HSET', EXTRA .. key, 'p', string.sub(token .. ';' .. (past or ''), 1, PAST_RUNS))
  if history then
    redis.call('HSET', EXTRA .. key, 'h', history)
  end
  note(key, clock(), 'retried')
  return true
end

return publish(6, function(at, number, record)
  local features = ARGV[at + FEATURES]
  local run = features ~= '' and cjson.decode(features).run
  if run and not succeeded[run[1]] then
    if end_run(run[1], run[2]) then
      succeeded[run[1]] = true
      redis.call('SET', JOB .. run[2], 'x' .. record)
      return run[2], true
    elseif is_fenced(run[1]) or has_next_run(run[2], run[1]) then
      return '!', false
    end
  end
  return store_new(ARGV[at], number, record)
end)
