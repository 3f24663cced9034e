-- Discard: deletes dead letters, and completed jobs that are kept.
--
-- ARGV  now | '', group in which they were found ('' if by themselves), then the keys of the jobs
-- Reply per job: done, unknown, its state if it is no dead letter.
--       What is no dead letter leaves the group that was named.
-- Cost  O(log n) per job; at most 25 jobs a call
-- @include acting
-- @include removal
local named = ARGV[2]

return act(3, function(id, now)
  local job = find(id, 'failed')
  if job and (job.state == 'failed' or job.state == 'completed') then
    remove(id, job, now)
    return 'done'
  end
  if named ~= '' then
    grouping().leave_named(id, named)
  end
  return job and job.state ~= 'nowhere' and job.state or 'unknown'
end)
