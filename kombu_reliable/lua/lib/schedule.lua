-- @include delaying
-- @include dependency
-- @include place
-- @include removal
-- @include wake
-- A schedule is a hash.  What wakes somebody for its next occurrence is a message in a queue that
-- every worker consumes, its tick, which says nothing but the name: whoever gets it looks at the
-- schedule, so a tick too many does no harm.
--   when, spec, rules  what was declared; a script reads only the rules
--   rev        counts changes; who has read another one acts on old news
--   at, due    time of the next occurrence, and when it fires; 'end': when the last run has ended
--   count, run, last, fired   runs so far; keys, occurrence and time of the last one
--   paused, deleted, orphaned
--   digest, decls   which declaration applies, and all that are known: digest -> {set, first}
--   tick       key of its tick
local NEVER = 9007199254740991
local KEPT_LINES = 50

-- Lines of the history; what begins a line is when it happened.
local function remember_run(name, now, line)
  redis.call('LPUSH', SCHEDULED .. name, string.format('%.0f ', now) .. line)
  redis.call('LTRIM', SCHEDULED .. name, 0, KEPT_LINES - 1)
end

local function drop_tick(key)
  local job = key and find(key, 'leased')
  if job and job.state ~= 'leased' then
    remove(key, job)
  end
end

-- Stores a tick that is due at a time, or as soon as some jobs have ended.
local function put_tick(queue, name, due, now, keeper, on)
  local HEAD = '["application/octet-stream","binary",{},{}]'
  local IGNORE = 2 -- however they end
  local sequence = redis.call('HINCRBY', META, 'seq', 1)
  -- No id of a user's begins like that.
  local key = string.format('~%.0f~tick', sequence)
  redis.call('SET', JOB .. key, string.format('-000%013.0f%04d', now, #queue) .. queue ..
    string.format('2%d %d\n', #HEAD, #name) .. HEAD .. name)
  if on and dependencies().depend(key, queue, {on = on, policy = IGNORE}, sequence, now) then
    redis.call('ZADD', WAITING .. queue, now, key)
  elseif due > now then
    delay(queue, key, due, now, keeper)
  else
    redis.call('ZADD', READY .. queue, place(0, sequence), key)
    arm(queue)
  end
  return key
end

-- Plans the next occurrence: at a time, which may be '' for none, or 'end', after some jobs.
local function plan(queue, name, at, due, now, keeper, on)
  local key = SCHEDULE .. name
  local old, paused, orphaned = unpack(redis.call('HMGET', key, 'tick', 'paused', 'orphaned'))
  drop_tick(old)
  redis.call('HSET', key, 'at', at, 'due', due)
  local idle = at == '' or paused or orphaned
  if idle then
    redis.call('HDEL', key, 'tick')
  else
    redis.call('HSET', key, 'tick', put_tick(queue, name, tonumber(due) or now, now, keeper, on))
  end
  redis.call('ZADD', SCHEDULES, idle and NEVER or tonumber(due) or NEVER, name)
end

-- Plans again what was planned, if its tick got lost.
local function mend_tick(queue, name, now, keeper)
  local at, due, tick, paused, run =
    unpack(redis.call('HMGET', SCHEDULE .. name, 'at', 'due', 'tick', 'paused', 'run'))
  if at and at ~= '' and not paused and not (tick and dependencies().state_of(tick) == 'live') then
    plan(queue, name, at, due, now, keeper, at == 'end' and run and cjson.decode(run) or nil)
  end
end

-- Whether a run of a schedule has not ended yet.
local function still_runs(run)
  for _, key in ipairs(run and cjson.decode(run) or {}) do
    if dependencies().state_of(key) == 'live' then
      return true
    end
  end
  return false
end
