-- @include dependency
-- @include ended
-- @include disarm
-- @include features
-- @include group
-- @include queue_limits
-- @include twins
-- @include whereabouts
-- Takes a job out of the world, with everything that is its own.
local function remove(id, job, now)
  if job.state ~= 'nowhere' then
    redis.call('ZREM', PLACES[job.state] .. job.queue, id)
  end
  if job.owner then
    redis.call('HDEL', OWNERS, id)
  end
  if job.state == 'failed' then
    grouping().leave(id)
  end
  end_features(job.queue, {id}, 'gone', now)
  redis.call('UNLINK', JOB .. id, EXTRA .. id)
  leave_twin(id)
  if job.state == 'completed' then
    return -- it had ended before
  end
  disarm(job.queue)
  if job.state == 'leased' then
    reopen(job.queue)
  end
  all_ended({id}, 'gone')
  if job.state == 'waiting' then
    forsake(id)
  end
end
