-- @include dependency
-- @include ends
-- @include owner_fields
-- @include record
-- @include removal
-- @include run
-- @include whereabouts
-- Unique jobs: of those that were published with the same key, one at a time.
--
-- A lock has two halves.  UNIQUE .. key is '<number>;<end (ms; 0: none)>;<job>', and the field 'u' of
-- that job's EXTRA hash '<number>;<life (ms; 0: no end)>;<key>'.  It counts only while the job lives, has
-- not failed, and both halves have the same number.  So a lock that was left behind, by whatever
-- accident, holds nobody back.
--
-- The functions are made when they are needed: making them would cost others, which hardly ever do.
local made_locks

local function locks()
  if made_locks then
    return made_locks
  end

  -- The job's half: number, life, key; nil if it has none.
  local function half_of(id)
    local half = redis.pcall('HGET', EXTRA .. id, 'u')
    if type(half) ~= 'string' then
      return nil
    end
    return string.match(half, '^(%d+);(%d+);(.*)$')
  end

  -- The key's half: number, end, job; nil if there is none.
  local function lock_of(key)
    local lock = redis.pcall('GET', UNIQUE .. key)
    if type(lock) ~= 'string' then
      return nil -- foreign data gives way
    end
    return string.match(lock, '^(%d+);(%d+);(.*)$')
  end

  -- The job that has a key, and where it is; nil if none has.
  local function holder_of(key, now)
    local number, ends, id = lock_of(key)
    if not number or (ends ~= '0' and tonumber(ends) <= now) then
      return nil
    end
    local its_number, _, its_key = half_of(id)
    local job = its_number == number and its_key == key and find(id)
    if not job or job.state == 'nowhere' or job.state == 'failed' then
      return nil
    end
    return id, job
  end

  local function lock(key, id, number, life, now)
    local ends = life > 0 and now + life or 0
    local text = number .. string.format(';%.0f;', ends) .. id
    if life > 0 then
      redis.call('SET', UNIQUE .. key, text, 'PX', string.format('%.0f', life))
    else
      redis.call('SET', UNIQUE .. key, text)
    end
  end

  -- Gives up the key of a job, if it has it still.
  local function free(id)
    local number, _, key = half_of(id)
    if not number then
      return false
    end
    local its_number, _, holder = lock_of(key)
    if its_number ~= number or holder ~= id then
      return false
    end
    redis.call('UNLINK', UNIQUE .. key)
    return true
  end

  -- Ends a job that has not begun, because a newer one takes its place.
  local function displace(id, job, now)
    local record = redis.call('GET', JOB .. id)
    if job.owner then
      fence(owner_token(job.owner), now)
    end
    free(id)
    remove(id, job)
    -- Foreign data where ends are told must not keep a job alive.
    pcall(tell, job.queue, id, record, 'canceled', 'replaced', now)
  end

  -- What the holder of a key waits for only because of the key, if it does.
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

  -- To be called once it is stored.
  local function take(wanted, id, number, now, leader)
    number = string.format('%.0f', number)
    local half = number .. string.format(';%.0f;', wanted.life) .. wanted.key
    if type(redis.pcall('HSET', EXTRA .. id, 'u', half)) == 'table' then
      redis.call('UNLINK', EXTRA .. id) -- foreign data
      redis.call('HSET', EXTRA .. id, 'u', half)
    end
    if leader then
      redis.call('HSET', EXTRA .. id, 'behind', leader)
    end
    mark_extra(id)
    lock(wanted.key, id, number, wanted.life, now)
  end

  -- A job that had ended is to live again, and takes its key again; unless another one has it,
  -- which is returned.
  local function take_again(id, now)
    local number, life, key = half_of(id)
    local holder = number and holder_of(key, now)
    if holder and holder ~= id then
      return holder
    end
    if number then
      lock(key, id, number, tonumber(life), now)
    end
    return nil
  end

  made_locks = {free = free, make_way = make_way, take = take, take_again = take_again}
  return made_locks
end
