-- @include alarm
-- @include place
-- @include record
-- @include wake
-- Jobs that wait for others.
--   WAITING     per queue: the jobs that wait, scored by when they are due
--   UNMET       per waiting job: the keys that it still waits for
--   DEPENDENTS  per key: the jobs that wait for it.  The whole part of the score is the policy, the
--               fraction keeps them in order of arrival
--   WANTED      the keys that have DEPENDENTS: all that the end of a job nobody waits for costs
--   EXPECTED    edges to keys that are still to come, scored by when it is too late
--   RELEASES    what has to be worked through, see lib/releasing.lua:
--               '<what>;<name that it was set aside under>;<key>'
-- An edge is a member of UNMET; without it the entry in DEPENDENTS means nothing any more.  A key
-- that begins with '!' is no job's.
--
-- The functions are made when they are needed: making them would cost each settlement, which
-- hardly ever needs them.
local stirred = false -- whether this call has put something into RELEASES

local function make_dependencies()
  local FAIL, IGNORE, AWAITED = 1, 2, 3 -- AWAITED: the score of '', see `await`
  local ARRIVALS = 35184372088832 -- a number of arrival as a fraction of this is exact
  local INLINE = 500 -- edges that a call undoes by itself
  local LONGEST = 276 -- bytes of a record with a queue's name of 255
  local undone = 0

  -- What follows has to be done by a claim.
  local function later(what, name, key)
    redis.call('RPUSH', RELEASES, what .. ';' .. name .. ';' .. key)
    alarm_by('', 0)
    stirred = true
  end

  -- A set that is worked through in steps must not get new members meanwhile.
  local function set_aside(family, key)
    local name = string.format('!%.0f', redis.call('HINCRBY', META, 'seq', 1))
    redis.call('RENAME', family .. key, family .. name)
    return name
  end

  -- The head of a record of ours, and its queue; nil if there is none.
  local function look_up(key)
    local head = redis.pcall('GETRANGE', JOB .. key, 0, LONGEST)
    local length = type(head) == 'string' and tonumber(string.sub(head, 18, RECORD_HEAD))
    if not length then
      return nil
    end
    if #head < RECORD_HEAD + length then
      head = redis.call('GETRANGE', JOB .. key, 0, RECORD_HEAD + length)
    end
    return head, record_queue(head)
  end

  local function note_of_edge(dependency, id)
    return #dependency .. ':' .. dependency .. id
  end

  local function expect(dependency, id, at)
    redis.call('ZADD', EXPECTED, at, note_of_edge(dependency, id))
    alarm_by('', at)
  end

  local function edge_is_gone(dependency, id)
    redis.call('ZREM', EXPECTED, note_of_edge(dependency, id))
  end

  local function arm_for(id)
    local _, queue = look_up(id)
    if queue then
      arm(queue)
    end
  end

  -- Removes a dependent; whether the dependency holds it back is the caller's business.
  local function drop_edge(dependency, id)
    redis.call('ZREM', DEPENDENTS .. dependency, id)
    if redis.call('EXISTS', DEPENDENTS .. dependency) == 0 then
      redis.call('SREM', WANTED, dependency)
    end
    edge_is_gone(dependency, id)
  end

  -- A job's own edges, once it does not wait any more.
  local function forsake(id)
    undone = undone + redis.call('SCARD', UNMET .. id)
    if undone > INLINE then
      later('undo', set_aside(UNMET, id), id)
      return
    end
    for _, dependency in ipairs(redis.call('SMEMBERS', UNMET .. id)) do
      drop_edge(dependency, id)
    end
    redis.call('UNLINK', UNMET .. id)
  end

  -- Tells those who wait for a key how it ended: 'ok', 'failed' (but it may be replayed) or
  -- 'gone' (and it will not).
  local function tell_dependents(key, outcome)
    local dependents = DEPENDENTS .. key
    local first, last, name = 0, '+inf', ''
    if outcome == 'failed' then
      first, last = FAIL, '(' .. AWAITED
    else
      redis.call('SREM', WANTED, key)
    end
    local found = redis.call('ZRANGEBYSCORE', dependents, first, last, 'LIMIT', 0, 1)[1]
    if not found then
      return
    end
    if outcome ~= 'failed' then
      name = set_aside(DEPENDENTS, key)
    end
    later(outcome, name, key)
    arm_for(found) -- somebody has to be awake
  end

  local function is_dead(key, head, queue)
    return string.sub(head, 1, 1) == 'x'
      and type(redis.pcall('ZSCORE', DEAD .. queue, key)) == 'string'
  end

  -- 'live', 'dead', or nil for what is not there, finished or still to come.
  local function state_of(key)
    local head, queue = look_up(key)
    if head then
      return is_dead(key, head, queue) and 'dead' or 'live'
    end
    return redis.call('ZSCORE', DEPENDENTS .. key, '') and 'live' or nil
  end

  -- A key whose job has made room for others, which will publish it again: whoever comes to
  -- depend on it before that waits.
  local function await(key, until_)
    redis.call('ZADD', DEPENDENTS .. key, AWAITED, '')
    redis.call('SADD', WANTED, key)
    expect(key, '', until_)
  end

  -- Enters a job as the dependent of others.
  --   wanted   {on = keys, policy = number, within = ms for each key that is still to come, or 0}
  --   arrival  its number of arrival
  -- Returns whether there is anything to wait for.
  local function depend(id, queue, wanted, arrival, now)
    local unmet, wakes = {}, false
    for i, key in ipairs(wanted.on) do
      local policy = string.sub(key, 1, 1) == '!' and FAIL or wanted.policy
      local within = wanted.within and wanted.within[i] or 0
      local state = state_of(key)
      if state == 'live' or (state == 'dead' and policy ~= IGNORE) or (not state and within > 0) then
        unmet[#unmet + 1] = key
        redis.call('ZADD', DEPENDENTS .. key,
          string.format('%.17g', policy + arrival / ARRIVALS), id)
        if not state then
          expect(key, id, now + within)
          wakes = true -- whoever watches the clock must know of this
        elseif state == 'dead' and policy == FAIL then
          later('failed', '', key)
          wakes = true
        end
      end
    end
    if #unmet == 0 then
      return false
    end
    redis.call('SADD', UNMET .. id, unpack(unmet))
    redis.call('SADD', WANTED, unpack(unmet))
    if wakes then
      arm(queue)
    end
    return true
  end

  -- A job that waits for nothing any more becomes ready, or delayed if it is not due.
  local function start(id, now)
    local head, queue = look_up(id)
    local due = head and redis.pcall('ZSCORE', WAITING .. queue, id)
    if not due then
      return
    end
    due = tonumber(due) or 0 -- foreign data in the place of those who wait
    if due <= now then
      local sequence = redis.call('HINCRBY', META, 'seq', 1)
      local at = place(string.sub(head, 2, 4), sequence)
      if type(redis.pcall('ZADD', READY .. queue, at, id)) == 'table' then
        due = now + 1 -- and here: time will tell
      end
    end
    if due > now then
      redis.call('ZADD', DELAYED .. queue, due, id)
      alarm_by(queue, due)
    end
    redis.pcall('ZREM', WAITING .. queue, id)
    arm(queue)
  end

  -- A dependency does not hold a job back any more.
  local function meet(dependency, id, now)
    if redis.call('SREM', UNMET .. id, dependency) == 1 then
      edge_is_gone(dependency, id)
      if redis.call('EXISTS', UNMET .. id) == 0 then
        start(id, now)
      end
    end
  end

  return {
    arm_for = arm_for, await = await, depend = depend, drop_edge = drop_edge,
    edge_is_gone = edge_is_gone, forsake = forsake, look_up = look_up, meet = meet, start = start,
    state_of = state_of, tell_dependents = tell_dependents,
  }
end

local made_dependencies

local function dependencies()
  made_dependencies = made_dependencies or make_dependencies()
  return made_dependencies
end

-- To be called for every job that ends, and is not about to come again.
local function ended(id, outcome)
  if redis.call('SISMEMBER', WANTED, id) == 1 then
    dependencies().tell_dependents(id, outcome)
  end
end

local function all_ended(ids, outcome)
  if #ids == 0 or redis.call('EXISTS', WANTED) == 0 then
    return
  end
  for i, wanted in ipairs(redis.call('SMISMEMBER', WANTED, unpack(ids))) do
    if wanted == 1 then
      dependencies().tell_dependents(ids[i], outcome)
    end
  end
end
