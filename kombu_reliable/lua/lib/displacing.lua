-- @include ends
-- @include owner_fields
-- @include removal
-- @include run
-- @include unique
-- @include whereabouts
-- Who has a unique key, and what becomes of him when somebody else wants it.

-- The job that has a key, and where it is; nil if none has.
local function holder_of(key, now)
  local number, ends, id = lock_of(key)
  if not number or (ends ~= '0' and tonumber(ends) <= now) then
    return nil
  end
  local its_number, _, its_key = half_of(id)
  local job = its_number == number and its_key == key and find(id)
  if not job or not PLACES[job.state] or job.state == 'failed' or job.state == 'completed' then
    return nil
  end
  return id, job
end

-- Ends a job that has not begun, because a newer one takes its place.
local function displace(id, job, now)
  local record = redis.call('GET', JOB .. id)
  if job.owner then
    fence(owner_token(job.owner), now)
  end
  remove(id, job, now)
  -- Foreign data where ends are told must not keep a job alive.
  pcall(tell, job.queue, id, record, 'canceled', 'replaced', now)
end

-- What a job waits for only because of its key, if it does.
local function leader_of(id, job)
  local leader = job.state == 'waiting' and redis.call('HGET', EXTRA .. id, 'behind')
  return leader and redis.call('SISMEMBER', UNMET .. id, leader) == 1 and leader or nil
end

-- To be called before a job with a key is stored.
--   wanted  {key = key, life = ms or 0, conflict = 'skip', 'raise' or 'replace'}
-- Returns the job that is in its way, if it must not be stored, or else the one behind which it
-- has to wait, if any.
local function make_way(wanted, now)
  local id, job = holder_of(wanted.key, now)
  if not id then
    return nil
  end
  if wanted.conflict ~= 'replace' then
    return id
  end
  if job.state == 'leased' then
    return nil, id
  end
  local leader = leader_of(id, job)
  displace(id, job, now)
  return nil, leader
end

-- A job that had ended is to live again, and takes its key again; unless another one has it, which
-- is returned.
local function retake_key(id, now)
  local number, life, key = half_of(id)
  local holder = number and holder_of(key, now)
  if holder and holder ~= id then
    return holder
  end
  if number then
    lock_key(key, id, number, tonumber(life), now)
  end
  return nil
end
