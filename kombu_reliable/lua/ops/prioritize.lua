-- Prioritize: gives jobs another rank.  Inside a rank they keep their order of arrival.
--
-- ARGV  now | '', rank (three digits), then the keys of the jobs
-- Reply per job: done, unknown, leased or completed (it stays as it is)
-- Cost  O(log n) per job; at most 25 jobs a call
-- @include acting
-- @include lanes
-- @include place
-- @include whereabouts
local rank = ARGV[2]

return act(3, function(id)
  local job = find(id)
  if not job or job.state == 'nowhere' then
    return 'unknown'
  end
  if job.state == 'leased' or job.state == 'completed' then
    return job.state
  end
  redis.call('SETRANGE', JOB .. id, 1, rank)
  if job.state == 'ready' or job.state == 'throttled' then
    local at = place(rank, job.score - place(job.rank, 0))
    if job.state == 'throttled' then
      lanes().rearrange(job.queue, id, at)
    else
      redis.call('ZADD', READY .. job.queue, at, id)
    end
    if job.owner then
      -- If its owner comes back and loses it again, this is its place.
      local token, worker = string.match(job.owner, '^([^;]*;)%-?%d+(%a*;.*)$')
      if token then
        redis.call('HSET', OWNERS, id, token .. string.format('%.0f', at) .. worker)
      end
    end
  end
  return 'done'
end)
