-- @include owner
-- A job may run several times.  A run ends with its settlement, or with the next run that its
-- owner publishes, whose EXTRA hash keeps the tokens of the last runs that ended so ('p'): their
-- settlements are still under way.  A run that was taken from its owner is fenced: its token is
-- remembered, so that its owner cannot publish a next run after the job has ended elsewhere.
local PAST_RUNS = 200 -- characters
local FENCED_RUNS = 10000
local FENCED_LIFE = 604800000 -- ms

local function fence(token, now)
  redis.call('ZADD', FENCED, now, token)
  redis.call('PEXPIRE', FENCED, FENCED_LIFE)
  if redis.call('ZCARD', FENCED) > FENCED_RUNS then
    redis.call('ZREMRANGEBYRANK', FENCED, 0, 0)
  end
end

local function has_next_run(id, token)
  local past = redis.call('HGET', EXTRA .. id, 'p')
  return past and string.find(past, token .. ';', 1, true)
end

local function is_fenced(token)
  return redis.call('ZSCORE', FENCED, token)
end

-- What an owner is told whose token is not the job's: 1 if its next run was published,
-- -1 if the run was taken from it, 0 if nobody holds the job.
local function status_of_other(id, owner, token)
  if has_next_run(id, token) then
    return 1
  end
  return (owner or is_fenced(token)) and -1 or 0
end
