-- @include ended
-- @include ends
-- @include features
-- @include group
-- @include history
-- @include twins
-- Dead letters: kept by age and number; what retention deletes is counted.
local function forget_dead(queue, ids, now)
  local groups = #ids > 0 and grouping()
  for _, id in ipairs(ids) do
    redis.call('ZREM', DEAD .. queue, id)
    groups.leave(id)
    leave_twin(id)
    end_features(queue, {id}, 'gone', now)
    redis.call('UNLINK', JOB .. id, EXTRA .. id)
  end
  if #ids > 0 then
    redis.call('HINCRBY', META, 'trimmed', #ids)
    all_ended(ids, 'gone')
  end
end

-- All deaths go through here.  The detail is a reason, or a JSON object of reason, type,
-- message, traceback and group as a worker gave it.
local function bury(queue, id, detail, now, keep)
  -- Deaths that no worker reports to those who wait for a result.
  local UNSEEN = {['delivery-limit'] = true, lost = true, dependency = true,
    ['dependency-timeout'] = true}
  local reason, fields = detail, {'reason', detail}
  if string.sub(detail, 1, 1) == '{' then
    local fine, told = pcall(cjson.decode, detail)
    told = fine and told or {}
    reason = type(told.reason) == 'string' and told.reason or 'unknown'
    fields = {'reason', reason, 'failure', detail}
    if type(told.group) == 'string' and told.group ~= '' then
      fields[5], fields[6] = 'group', told.group
    end
  end
  redis.call('ZADD', DEAD .. queue, now, id)
  if type(redis.pcall('HSET', EXTRA .. id, unpack(fields))) == 'table' then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
    redis.call('HSET', EXTRA .. id, unpack(fields))
  end
  redis.call('HDEL', EXTRA .. id, 'once') -- whoever replays it may be lost as any
  grouping().enter(id, fields[6] or reason, now)
  note(id, now, 'failed', reason)
  tell_features(features_of(id), 'paused', queue, id, now, 'failed', reason)
  local record = UNSEEN[reason] and redis.pcall('GET', JOB .. id)
  if type(record) == 'string' then
    -- Foreign data where ends are told must not undo a death.
    pcall(tell, queue, id, record, 'failed', reason, now)
  end
  all_ended({id}, 'failed')
  local excess = redis.call('ZCARD', DEAD .. queue) - keep
  if excess > 0 then
    forget_dead(queue, redis.call('ZRANGE', DEAD .. queue, 0, math.min(excess, 10) - 1), now)
  end
end
