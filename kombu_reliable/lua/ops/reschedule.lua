-- Reschedule: gives jobs another due time.  One that is past means at once.
--
-- ARGV  now | '', due time (ms since the epoch), then the keys of the jobs
-- Reply per job: done, unknown, leased, failed or completed (it stays as it is)
-- Cost  O(log n) per job; at most 25 jobs a call
-- @include acting
-- @include delaying
-- @include disown
-- @include features
-- @include lanes
-- @include place
-- @include ready
-- @include record
-- @include since
-- @include whereabouts
local due = tonumber(ARGV[2])

return act(3, function(id, now, keeper)
  local job = find(id)
  if not job or job.state == 'nowhere' then
    return 'unknown'
  end
  local queue = job.queue
  if job.state == 'waiting' then
    redis.call('ZADD', WAITING .. queue, math.max(due, now), id)
    return 'done' -- once it does not wait any more, it is noted since when
  elseif job.state ~= 'ready' and job.state ~= 'throttled' and job.state ~= 'delayed' then
    return job.state
  elseif due > now then
    if job.state == 'throttled' then
      lanes().leave(queue, id)
    end
    if job.state ~= 'delayed' then
      redis.call('ZREM', READY .. queue, id)
      disown(id, job, now)
    end
    delay(queue, id, due, now, keeper)
  elseif job.state == 'delayed' then
    local at = place(job.rank, redis.call('HINCRBY', META, 'seq', 1))
    local claimable = make_ready(queue, id, at, features_of(id))
    redis.call('ZREM', DELAYED .. queue, id)
    if claimable then
      arm(queue)
    end
  else
    return 'done' -- it is ready
  end
  mark_extra(id)
  waits_since(id, math.max(due, now))
  return 'done'
end)
