-- Track: has a job tell what befalls it, or no more.
--
-- ARGV  now | '', '1' to track, '0' not to, name of its task,
--       for how long it is kept once completed, if nobody has said so ('<ms>;<number>', ''),
--       then the keys of jobs of this task
-- Reply per job: done, unknown
-- Cost  O(log n) per job; at most 25 jobs a call
-- @include acting
-- @include marks
-- @include whereabouts
local track, task, keep = ARGV[2] == '1', ARGV[3], ARGV[4]

return act(5, function(id, now)
  local job = find(id)
  if not job or job.state == 'nowhere' then
    return 'unknown'
  end
  local tracked = redis.call('ZSCORE', TRACKED, id)
  if track and not tracked then
    track_enter(id, task)
    mark(id, 'k', keep)
    tracked_event(job.queue, id, now, 'track')
  elseif tracked and not track then
    tracked_event(job.queue, id, now, 'untrack')
    track_leave(id)
    redis.call('HDEL', EXTRA .. id, 'task')
    set_letter(id, 'k', false)
  end
  return 'done'
end)
