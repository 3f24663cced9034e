-- @include alarm
-- @include dead
-- @include dependency
-- @include ended
-- @include throttle_alarms
-- @include wake
-- Works through what the ends of jobs mean for those that wait for them, in bounded steps.  What
-- is left keeps an alarm, that of the queue '': whoever serves it does the next step.
local function releasing(_, now, hold, retention, keep)
  local EDGES = 100   -- a step
  local DOOM = 3      -- what a death costs, in edges
  local ENTRIES = 100 -- a step
  local WAIT, IGNORE, BEYOND = 0, 2, '(3'
  local all = dependencies()
  local left, progress = math.max(EDGES - all.told_already(), 0), false
  local problem

  -- What a job waits for will not succeed: it becomes a dead letter.
  local function doom(dependency, id, reason)
    local _, queue = all.look_up(id)
    if redis.call('SISMEMBER', UNMET .. id, dependency) == 0 then
      return
    end
    if queue and redis.call('ZREM', WAITING .. queue, id) == 1 then
      local fine, error_ = pcall(bury, queue, id, reason, now, keep)
      if not fine then
        redis.call('ZADD', WAITING .. queue, now, id)
        error(error_, 0)
      end
      -- Retention may have deleted it at once.
      if string.sub(dependency, 1, 1) ~= '!' and redis.call('EXISTS', JOB .. id) == 1 then
        redis.call('HSET', EXTRA .. id, 'cause', dependency)
      end
      alarm_by(queue, now + retention + 1)
      left = left - DOOM + 1
    end
    all.stop_waiting(id)
  end

  local function judge(dependency, id, outcome, policy)
    if outcome == 'ok' or policy == IGNORE or id == '' then
      all.meet(dependency, id, now)
    elseif outcome == 'gone' or policy ~= WAIT then
      doom(dependency, id, 'dependency')
    end
  end

  -- Foreign data in the way of one job does not hold back the others.
  local function judge_all(edges, dependents, dependency, outcome)
    local done = {}
    for i = 1, #edges, 2 do
      if left <= 0 then
        break
      end
      left = left - 1
      local policy = math.floor(tonumber(edges[i + 1]))
      local fine, error_ = pcall(judge, dependency, edges[i], outcome, policy)
      if fine then
        done[#done + 1] = edges[i]
      else
        problem = error_
      end
    end
    if #done > 0 then
      redis.call('ZREM', dependents, unpack(done))
      progress = true
    end
  end

  -- Each of these says whether there is more to do.
  local function tell_all(outcome, name, key)
    local dependents = DEPENDENTS .. name
    judge_all(redis.call('ZRANGE', dependents, 0, left - 1, 'WITHSCORES'), dependents, key, outcome)
    return redis.call('EXISTS', dependents) == 1
  end

  local function tell_of_failure(_, _, key)
    if all.state_of(key) ~= 'dead' then
      return false -- it was replayed
    end
    local dependents = DEPENDENTS .. key
    judge_all(redis.call('ZRANGEBYSCORE', dependents, 1, BEYOND, 'WITHSCORES', 'LIMIT', 0, left),
      dependents, key, 'failed')
    if redis.call('EXISTS', dependents) == 0 then
      redis.call('SREM', WANTED, key)
    end
    return redis.call('ZCOUNT', dependents, 1, BEYOND) > 0
  end

  local function undo(_, name, id)
    local found = redis.call('SPOP', UNMET .. name, left)
    for _, dependency in ipairs(found) do
      -- The same job may wait for the same again.
      if redis.call('SISMEMBER', UNMET .. id, dependency) == 0 then
        all.drop_edge(dependency, id)
      end
    end
    left = left - #found
    return redis.call('EXISTS', UNMET .. name) == 1
  end

  local ways = {ok = tell_all, gone = tell_all, failed = tell_of_failure, undo = undo}

  local function work_off()
    for _ = 1, ENTRIES do
      local entry = left > 0 and redis.call('LINDEX', RELEASES, 0)
      if not entry then
        return
      end
      local what, name, key = string.match(entry, '^(%a+);([^;]*);(.*)$')
      local fine, more = true, false
      if ways[what] then
        fine, more = pcall(ways[what], what, name, key)
      end
      if not fine then
        problem = more
      end
      if more then
        redis.call('LMOVE', RELEASES, RELEASES, 'LEFT', 'RIGHT') -- the others have their turn
      else
        redis.call('LPOP', RELEASES)
        progress = true
      end
    end
  end

  -- Whom a job expects has not come; under IGNORE it runs all the same.
  local function give_up(dependency, id)
    if id == '' then
      if redis.call('EXISTS', JOB .. dependency) == 0 then
        all_ended({dependency}, 'gone')
      end
      return
    end
    if all.state_of(dependency) then
      return
    end
    local policy = redis.call('ZSCORE', DEPENDENTS .. dependency, id)
    if policy and math.floor(tonumber(policy)) == IGNORE then
      all.meet(dependency, id, now)
      all.drop_edge(dependency, id)
    elseif policy then
      doom(dependency, id, 'dependency-timeout')
    end
  end

  local function lose_patience()
    local notes = redis.call('ZRANGEBYSCORE', EXPECTED, '-inf', now, 'LIMIT', 0, math.floor(EDGES / DOOM))
    for _, note in ipairs(notes) do
      left = left - 1
      local length, rest = string.match(note, '^(%d+):(.*)$')
      if length then
        length = tonumber(length)
        local fine, error_ = pcall(give_up, string.sub(rest, 1, length),
          string.sub(rest, length + 1))
        problem = not fine and error_ or problem
      end
    end
    if #notes > 0 then
      redis.call('ZREM', EXPECTED, unpack(notes))
      progress = true
    end
  end

  -- Nobody can have published while the server was away.
  if not hold or now >= hold then
    lose_patience()
  end
  work_off()
  local throttles = serve_throttles(now)

  local entry = redis.call('LINDEX', RELEASES, 0)
  local expected = tonumber(redis.call('ZRANGE', EXPECTED, 0, 0, 'WITHSCORES')[2])
  if expected and hold then
    expected = math.max(expected, hold)
  end
  local next = sooner(expected, throttles)
  if entry then
    redis.call('ZADD', ALARMS, now, '')
    local name = string.match(entry, '^%a+;([^;]*);')
    local first = name and redis.call('ZRANGE', DEPENDENTS .. name, 0, 0)[1]
    local _, queue = all.look_up(first or '')
    if queue and progress then
      arm(queue)
    end
  elseif next then
    redis.call('ZADD', ALARMS, next, '')
  else
    redis.call('ZREM', ALARMS, '')
  end
  all.alarm_is_set()
  if problem and not progress then
    error(problem, 0)
  end
end
