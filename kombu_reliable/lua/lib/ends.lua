-- @include place
-- @include record
-- @include wake
-- Ends that no worker reports: the limit of deliveries, a lost lease, a dependency, a cancel.
-- Who waits for such a job's result would wait for ever, so its end is a message in the queue
-- that META.ends names: leased and delivered at least once, as every other.  Without such a
-- name nobody wants to know.

-- Tells what became of a job: outcome 'failed' or 'canceled', and why.
-- The body of the message is a line of JSON, then the job's own envelope.
local function tell(queue, id, record, outcome, reason, now)
  local MOST = 10000 -- that wait to be told
  local HEAD = '["application/octet-stream","binary",{},{}]'
  local ends = redis.call('HGET', META, 'ends')
  if not ends or ends == queue then
    return
  end
  if redis.call('ZCARD', READY .. ends) >= MOST then
    redis.call('HINCRBY', META, 'untold', 1)
    return
  end
  local length = tonumber(string.sub(record, 18, RECORD_HEAD)) or 0
  local body = cjson.encode({key = id, queue = queue, outcome = outcome, reason = reason, at = now})
    .. '\n' .. string.sub(record, RECORD_HEAD + length + 1)
  local sequence = redis.call('HINCRBY', META, 'seq', 1)
  -- No id of a user's begins like that.
  local key = string.format('~%.0f~end', sequence)
  redis.call('SET', JOB .. key, string.format('-000%013.0f%04d', now, #ends) .. ends ..
    string.format('2%d %d\n', #HEAD, #body) .. HEAD .. body)
  redis.call('ZADD', READY .. ends, place(0, sequence), key)
  arm(ends)
end
