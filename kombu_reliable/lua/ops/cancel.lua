-- Cancel: ends jobs that have not ended.  A job that somebody holds is taken from him: he can
-- neither settle it nor publish its next run.
--
-- ARGV  now | '', reason, 1 to end those that others wait for as well, 1 to leave a job to who holds
--       it, but never to deliver it again, then the keys of the jobs
-- Reply per job: gone       it will never start
--                requested  somebody held it, and may have begun; it is taken from him and gone,
--                           or will be if he gives it back, loses it, or runs it once more
--                failed     it is a dead letter, and stays
--                completed  it has succeeded, and its record stays
--                dependents others wait for one of these, so all stay
--                unknown    there is no such job
-- Cost  O(log n) per job; at most 25 jobs a call
-- @include owner_fields
-- @include acting
-- @include ends
-- @include record
-- @include removal
-- @include run
local reason, cascade, spare = ARGV[2], ARGV[3] == '1', ARGV[4] == '1'
local FIRST = 5
local LOOK = 100

-- The claim that would deliver it again ends it.
local function forbid(id)
  mark_extra(id)
  if type(redis.pcall('HSET', EXTRA .. id, 'unwanted', reason)) == 'table' then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
    redis.call('HSET', EXTRA .. id, 'unwanted', reason)
  end
  return 'requested'
end

local function live(id)
  local job = find(id)
  return job and job.state ~= 'failed' and job.state ~= 'completed' and job, job
end

-- Whether others wait for a job; not all that are entered there still do, and what has only its
-- unique key in common with it is glad of its end.
local function is_wanted(id)
  if redis.call('SISMEMBER', WANTED, id) == 0 then
    return false
  end
  for _, dependent in ipairs(redis.call('ZRANGE', DEPENDENTS .. id, 0, LOOK)) do
    if redis.call('SISMEMBER', UNMET .. dependent, id) == 1
        and redis.pcall('HGET', EXTRA .. dependent, 'behind') ~= id then
      return true
    end
  end
  return false
end

local wanted = false
for i = FIRST, cascade and 0 or #ARGV do
  wanted = wanted or (is_wanted(ARGV[i]) and live(ARGV[i]))
end

return act(FIRST, function(id, now)
  local job, any = live(id)
  if not job then
    return any and any.state or 'unknown'
  end
  if wanted then
    return 'dependents'
  end
  if spare and job.state == 'leased' then
    return forbid(id)
  end
  local record = redis.call('GET', JOB .. id)
  if job.owner then
    fence(owner_token(job.owner), now)
  end
  remove(id, job, now)
  -- Foreign data where ends are told must not keep a job alive.
  pcall(tell, job.queue, id, record, 'canceled', reason, now)
  return job.owner and 'requested' or 'gone'
end)
