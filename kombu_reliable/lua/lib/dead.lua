-- @include dependency
-- @include record
-- Dead letters: kept by age and number; what retention deletes is counted.
local function forget_dead(queue, ids)
  for _, id in ipairs(ids) do
    redis.call('ZREM', DEAD .. queue, id)
    redis.call('UNLINK', JOB .. id, EXTRA .. id)
  end
  if #ids > 0 then
    redis.call('HINCRBY', META, 'trimmed', #ids)
    all_ended(ids, 'gone')
  end
end

local function bury(queue, id, reason, now, keep)
  redis.call('ZADD', DEAD .. queue, now, id)
  if type(redis.pcall('HSET', EXTRA .. id, 'reason', reason)) == 'table' then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
    redis.call('HSET', EXTRA .. id, 'reason', reason)
  end
  mark_extra(id)
  ended(id, 'failed')
  local excess = redis.call('ZCARD', DEAD .. queue) - keep
  if excess > 0 then
    forget_dead(queue, redis.call('ZRANGE', DEAD .. queue, 0, math.min(excess, 10) - 1))
  end
end
