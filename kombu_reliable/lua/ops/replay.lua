-- Replay: makes dead letters ready, with fresh deliveries.
--
-- ARGV  now | '', group in which they were found ('' if by themselves), then the keys of the jobs
-- Reply per job: done, unknown, its state if it is no dead letter, no-queue (it was deleted),
--       'duplicate <job>' (that one has its unique key by now).
--       What is no dead letter leaves the group that was named.
-- Cost  O(log n) per job; at most 25 jobs a call
-- @include acting
-- @include features
-- @include group
-- @include history
-- @include place
-- @include ready
-- @include since
-- @include wake
-- @include whereabouts
-- @defer displacing: retake_key
local named = ARGV[2]

local function replay(id, now)
  local job = find(id, 'failed')
  if not job or job.state == 'nowhere' then
    return 'unknown'
  end
  local queue = job.queue
  if job.state ~= 'failed' then
    return job.state
  end
  if redis.pcall('HGET', LIFE .. queue, 'gone') then
    return 'no-queue' -- what is there is about to be deleted
  end
  local feat = features_of(id)
  local holder = string.find(feat, 'u', 1, true) and retake_key(id, now)
  if holder then
    return 'duplicate ' .. holder
  end
  local at = place(job.rank, redis.call('HINCRBY', META, 'seq', 1))
  local claimable = make_ready(queue, id, at, feat)
  redis.call('ZREM', DEAD .. queue, id)
  grouping().leave(id)
  -- What is known of its past stays: nothing of how it died.
  redis.pcall('HDEL', EXTRA .. id, 'n', 'once', 'unwanted', 'reason', 'failure', 'group', 'cause')
  note(id, now, 'replayed')
  tell_features(features_of(id), 'paused', queue, id, now, 'replayed')
  waits_since(id, now)
  if claimable then
    arm(queue)
  end
  return 'done'
end

return act(3, function(id, now)
  local status = replay(id, now)
  local is_dead = status == 'no-queue' or string.sub(status, 1, 9) == 'duplicate'
  if status ~= 'done' and not is_dead and named ~= '' then
    grouping().leave_named(id, named)
  end
  return status
end)
