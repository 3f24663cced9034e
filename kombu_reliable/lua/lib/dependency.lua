-- @include alarm
-- @include features
-- @include place
-- @include ready
-- @include record
-- @include since
-- @include stirred
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
local made_dependencies

local function dependencies()
  if made_dependencies then
    return made_dependencies
  end
  local FAIL, IGNORE, AWAITED = 1, 2, 3 -- AWAITED: the score of '', see `await`
  local ARRIVALS = 35184372088832 -- a number of arrival as a fraction of this is exact
  local INLINE = 500 -- edges that a call does by itself
  local TWINS_SEEN = 1000
  local HEAD = 100 -- bytes of a record, more if the name of its queue is longer
  local FEW, TOLD = 5, 100 -- dependents that start at once: of one key, in a call
  local BLOCK = 16 -- numbers of arrival that are taken at once
  local undone, told, number, last = 0, 0, 0, 0
  local awake = {}
  local expecting -- whether anybody expects anything

  local function next_number()
    if number == last then
      last = redis.call('HINCRBY', META, 'seq', BLOCK)
      number = last - BLOCK
    end
    number = number + 1
    return number
  end

  local function wake(queue)
    if not awake[queue] then
      awake[queue] = true
      arm(queue)
    end
  end

  -- A set that is worked through in steps must not get new members meanwhile.
  local function set_aside(family, key)
    local name = string.format('!%.0f', next_number())
    redis.pcall('RENAME', family .. key, family .. name) -- it may be empty
    return name
  end

  -- The head of a record of ours, and its queue; nil if there is none.
  local function look_up(key)
    local head = redis.pcall('GETRANGE', JOB .. key, 0, HEAD)
    local length = type(head) == 'string' and tonumber(string.sub(head, 18, RECORD_HEAD))
    if not length then
      return nil
    end
    if #head < RECORD_HEAD + length then
      head = redis.call('GETRANGE', JOB .. key, 0, RECORD_HEAD + length)
    end
    return head, record_queue(head)
  end

  -- Notes what a claim has to do, for a job or for those in a set.  Somebody has to be awake; he
  -- wakes the rest.
  local function later(what, name, key, set, id)
    redis.call('RPUSH', RELEASES, what .. ';' .. name .. ';' .. key)
    if not stirred then
      alarm_by('', 0)
      local _, queue = look_up(id or redis.call('ZRANGE', set, 0, 0)[1] or '')
      if queue then
        arm(queue)
      end
    end
    stirred = true
  end

  local function note_of_edge(dependency, id)
    return #dependency .. ':' .. dependency .. id
  end

  local function expect(dependency, id, at)
    redis.call('ZADD', EXPECTED, at, note_of_edge(dependency, id))
    alarm_by('', at)
    expecting = true
  end

  local function edge_is_gone(dependency, id)
    if expecting == nil then
      expecting = redis.call('EXISTS', EXPECTED) == 1
    end
    if expecting then
      redis.call('ZREM', EXPECTED, note_of_edge(dependency, id))
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
  local function stop_waiting(id)
    undone = undone + redis.call('SCARD', UNMET .. id)
    if undone > INLINE then
      later('undo', set_aside(UNMET, id), id, nil, id)
      return
    end
    for _, dependency in ipairs(redis.call('SRANDMEMBER', UNMET .. id, INLINE)) do
      drop_edge(dependency, id)
    end
    redis.call('UNLINK', UNMET .. id)
  end

  -- A job that waits for nothing any more becomes ready, or delayed if it is not due.
  local function start(id, now)
    local head, queue = look_up(id)
    local due = head and redis.pcall('ZSCORE', WAITING .. queue, id)
    if not due then
      return
    end
    local fine, claimable = true, true
    due = tonumber(due) or 0 -- foreign data in the place of those who wait
    if due <= now then
      local at = place(string.sub(head, 2, 4), next_number())
      fine, claimable = pcall(make_ready, queue, id, at, features_of(id))
      if not fine then
        due = now + 1 -- and here: time will tell
      end
    end
    if due > now then
      redis.call('ZADD', DELAYED .. queue, due, id)
      alarm_by(queue, due)
    end
    redis.pcall('ZREM', WAITING .. queue, id)
    redis.pcall('SETRANGE', JOB .. id, 0, 'x')
    waits_since(id, math.max(due, now))
    if claimable then
      wake(queue)
    end
  end

  -- A dependency does not hold a job back any more; '' is no job, see `await`.
  local function meet(dependency, id, now)
    if id == '' then
      edge_is_gone(dependency, id)
    elseif redis.call('SREM', UNMET .. id, dependency) == 1 then
      edge_is_gone(dependency, id)
      if redis.call('EXISTS', UNMET .. id) == 0 then
        start(id, now)
      end
    end
  end

  -- Those who wait for what has succeeded are nearly always few.
  local function tell_a_few(key, now)
    local found = told < TOLD and redis.call('ZRANGE', DEPENDENTS .. key, 0, FEW)
    if not found or #found > FEW then
      return false
    end
    told = told + #found
    for _, id in ipairs(found) do
      if not pcall(meet, key, id, now) then
        return false -- foreign data; more is to be said elsewhere
      end
    end
    redis.call('UNLINK', DEPENDENTS .. key)
    redis.call('SREM', WANTED, key)
    return true
  end

  -- Tells those who wait for a key how it ended: 'ok', 'failed' (but it may be replayed) or
  -- 'gone' (and it will not).
  local function tell_dependents(key, outcome, now)
    if outcome == 'ok' and now and tell_a_few(key, now) then
      return
    end
    local dependents = DEPENDENTS .. key
    if outcome ~= 'failed' then
      redis.call('SREM', WANTED, key)
      local name = set_aside(DEPENDENTS, key)
      later(outcome, name, key, DEPENDENTS .. name)
    elseif redis.call('ZCOUNT', dependents, FAIL, '(' .. AWAITED) > 0 then
      later(outcome, '', key, dependents)
    end
  end

  -- By what is left; what this call adds to it from now on needs one again.
  local function alarm_is_set()
    stirred = false
  end

  local function told_already()
    return told
  end

  local function is_dead(key, head, queue)
    return string.sub(head, 1, 1) == 'x'
      and type(redis.pcall('ZSCORE', DEAD .. queue, key)) == 'string'
  end

  -- The newest of the live jobs under the id of another one; nil if there is none.
  local function newest_twin(key)
    local twins = redis.pcall('SRANDMEMBER', TWINS .. key, TWINS_SEEN)
    local newest, highest = nil, -1
    for _, twin in ipairs(twins) do
      local number = tonumber(string.match(twin, '^~(%d+)~') or nil)
      if number and number > highest and redis.call('EXISTS', JOB .. twin) == 1 then
        newest, highest = twin, number
      end
    end
    return newest
  end

  -- Whether a key's job has made room for others, one of which will have its id.
  local function is_awaited(key)
    return redis.call('ZSCORE', DEPENDENTS .. key, '')
  end

  local function is_completed(key, head, queue)
    return string.sub(head, 1, 1) == 'x'
      and type(redis.pcall('ZSCORE', COMPLETED .. queue, key)) == 'string'
  end

  -- 'live', 'dead', or nil for what is not there, finished or still to come; and whether it is
  -- known to have completed.
  local function state_of(key)
    local head, queue = look_up(key)
    local awaited = not head and is_awaited(key)
    if awaited then
      key = newest_twin(key) or key
      head, queue = look_up(key)
    end
    if head and is_completed(key, head, queue) then
      return nil, true
    end
    if head then
      return is_dead(key, head, queue) and 'dead' or 'live'
    end
    return awaited and 'live' or nil
  end

  -- Who depends on an id means the newest job that has it.
  local function meant_by(key)
    return is_awaited(key) and key or newest_twin(key) or key
  end

  -- Those who wait for a key whose job makes room for others wait for them, also those who come
  -- to depend on it before it is published again.  It may have been, and have ended.
  local function await(key, until_)
    local heir = redis.pcall('HGET', EXTRA .. key, 'heir')
    if type(heir) == 'string' then
      tell_dependents(key, heir)
      return
    end
    redis.call('ZADD', DEPENDENTS .. key, AWAITED, '')
    redis.call('SADD', WANTED, key)
    expect(key, '', until_)
  end

  -- The end of a further job under an id is that of the first, if this one made room for it, or is
  -- about to say so.
  local function tell_of_twin(twin, outcome)
    local key = string.match(twin, '^~%d+~(.*)$')
    if not key or redis.call('SISMEMBER', WANTED, key) == 0 then
      return
    end
    if is_awaited(key) then
      tell_dependents(key, outcome)
    elseif outcome ~= 'failed' and redis.call('EXISTS', JOB .. key) == 1 then
      redis.pcall('HSET', EXTRA .. key, 'heir', outcome)
      mark_extra(key)
    end
  end

  local function have_twins(keys)
    local twins = {}
    for i, key in ipairs(keys) do
      twins[i] = TWINS .. key
    end
    return redis.call('EXISTS', unpack(twins)) > 0
  end

  -- Whether what was announced may not have been published yet.  It is while one of those
  -- lives that come before it.
  local function is_to_come(before)
    for _, key in ipairs(before or {}) do
      if state_of(key) then
        return true
      end
    end
    return not before or #before == 0
  end

  -- Enters a job as the dependent of others.
  --   wanted   {on = keys, policy = number, within = ms for each key that is still to come, or 0,
  --            after = for each key those of which one lives until it is published}
  --   arrival  its number of arrival
  -- Returns whether there is anything to wait for.
  local function depend(id, queue, wanted, arrival, now)
    local unmet, wakes = {}, false
    local twins = have_twins(wanted.on)
    for i, key in ipairs(wanted.on) do
      local policy = string.sub(key, 1, 1) == '!' and FAIL or wanted.policy
      local within = wanted.within and wanted.within[i] or 0
      if twins then
        key = meant_by(key)
      end
      local state, done = state_of(key)
      local holds = within > 0 and not done and is_to_come(wanted.after and wanted.after[i])
      if state then
        holds = state == 'live' or policy ~= IGNORE
      end
      if holds then
        unmet[#unmet + 1] = key
        redis.call('ZADD', DEPENDENTS .. key,
          string.format('%.17g', policy + arrival / ARRIVALS), id)
        if not state then
          expect(key, id, now + within)
          wakes = true -- whoever watches the clock must know of this
        elseif state == 'dead' and policy == FAIL then
          later('failed', '', key, nil, id)
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

  -- Makes a job wait for exactly one other, however that ends.
  local function follow(leader, id, arrival)
    redis.call('ZADD', DEPENDENTS .. leader, string.format('%.17g', IGNORE + arrival / ARRIVALS), id)
    redis.call('SADD', UNMET .. id, leader)
    redis.call('SADD', WANTED, leader)
  end

  local all = {await = await, depend = depend, drop_edge = drop_edge, look_up = look_up, meet = meet}
  all.follow = follow
  all.state_of = state_of
  all.stop_waiting, all.tell_dependents = stop_waiting, tell_dependents
  all.tell_of_twin, all.told_already = tell_of_twin, told_already
  all.alarm_is_set = alarm_is_set
  made_dependencies = all
  return all
end

-- What the ends of jobs mean for those that wait for them; see lib/ended.lua.
local function tell_of_ends(ids, outcome, now)
  for i, wanted in ipairs(redis.call('SMISMEMBER', WANTED, unpack(ids))) do
    if wanted == 1 then
      dependencies().tell_dependents(ids[i], outcome, now)
    elseif string.byte(ids[i]) == 126 then
      dependencies().tell_of_twin(ids[i], outcome)
    end
  end
end

-- To be called for a waiting job that ends.
local function forsake(id)
  dependencies().stop_waiting(id)
end
