-- Move: puts jobs into another queue, in the state they are in, at their place.
--
-- ARGV  now | '', retention of dead letters (ms), queue, then the keys of the jobs
-- Reply per job: done, unknown, leased or completed (it stays where it is), no-queue (the queue was
--       deleted)
-- Cost  O(log n) per job, and copies their messages; at most 25 jobs a call
-- @include acting
-- @include delaying
-- @include disarm
-- @include disown
-- @include features
-- @include history
-- @include noticing
-- @include whereabouts
local retention, target = tonumber(ARGV[2]), ARGV[3]

local function rewrite(id, queue)
  local record = redis.call('GET', JOB .. id)
  redis.call('SET', JOB .. id, string.sub(record, 1, 17) .. string.format('%04d', #target) .. target
    .. string.sub(record, 22 + #queue))
end

return act(4, function(id, now, keeper)
  local job = find(id)
  if not job or job.state == 'nowhere' then
    return 'unknown'
  end
  if job.state == 'leased' or job.state == 'completed' then
    return job.state
  end
  if job.queue == target then
    return 'done'
  end
  if redis.pcall('HGET', LIFE .. target, 'gone') then
    return 'no-queue' -- what is there is about to be deleted
  end
  -- First what foreign data could refuse.
  notice(target, now)
  redis.call('ZADD', PLACES[job.state] .. target, job.score, id)
  redis.call('ZREM', PLACES[job.state] .. job.queue, id)
  rewrite(id, job.queue)
  disarm(job.queue)
  disown(id, job, now)
  note(id, now, 'moved', job.queue .. ' > ' .. target)
  tell_features(features_of(id), 'moved', job.queue, id, now, target)
  if job.state == 'ready' then
    arm(target)
  elseif job.state == 'delayed' then
    delay(target, id, tonumber(job.score), now, keeper)
  elseif job.state == 'failed' then
    alarm_by(target, tonumber(job.score) + retention + 1)
  end
  return 'done'
end)
