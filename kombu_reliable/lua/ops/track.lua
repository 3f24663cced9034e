-- Track: has a job tell what befalls it, or no more.
--
-- ARGV  now | '', '1' to track, '0' not to, name of its task,
--       for how long it is kept once completed, if nobody has said so ('<ms>;<number>', ''),
--       then the keys of jobs of this task
-- Reply per job: done, unknown
-- Cost  O(log n) per job; at most 50 jobs a call
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
    local order = redis.call('HGET', EXTRA .. id, 'order')
    if not order then
      order = redis.call('HINCRBY', META, 'seq', 1)
    end
    redis.call('HSET', EXTRA .. id, 'order', order, 'task', task)
    redis.call('ZADD', TRACKED, order, id)
    set_letter(id, 'k', true)
    if keep ~= '' and redis.call('HSETNX', EXTRA .. id, 'keep', keep) == 1 then
      set_letter(id, 'r', true)
    end
    tracked_event(id, 'track', now, job.queue)
  elseif tracked and not track then
    tracked_event(id, 'untrack', now, job.queue)
    redis.call('ZREM', TRACKED, id)
    set_letter(id, 'k', false)
  end
  return 'done'
end)
