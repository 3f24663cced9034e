-- Whether a job that came to depend on others would wait for itself.  Only a job that somebody
-- waits for can.  The search goes up, from what the others wait for, and if that is too much
-- down, from those that wait for the job; if that is too much as well the answer is yes.
local function closes_cycle(id, on)
  local LIMIT = 2000 -- edges
  local targets = {}
  for _, key in ipairs(on) do
    targets[key] = true
  end
  if targets[id] then
    return true
  end
  if redis.call('SISMEMBER', WANTED, id) == 0 then
    return false
  end
  local waiting = {}
  for i, key in ipairs(on) do
    waiting[i] = UNMET .. key
  end
  if redis.call('EXISTS', unpack(waiting)) == 0 then
    return false
  end

  local function above(key)
    return redis.call('SRANDMEMBER', UNMET .. key, LIMIT + 1)
  end

  local function below(key)
    local found = redis.call('ZRANGE', DEPENDENTS .. key, 0, LIMIT)
    for i, dependent in ipairs(found) do
      -- What is about to be undone is no edge any more.
      if redis.call('SISMEMBER', UNMET .. dependent, key) == 0 then
        found[i] = key
      end
    end
    return found
  end

  -- Whether a way leads from some keys to one of others; nil if it would take too long to say.
  local function leads(from, to, neighbours)
    local todo, seen, looked = {}, {}, 0
    for i, key in ipairs(from) do
      todo[i] = key
    end
    for i = 1, LIMIT do
      if not todo[i] then
        return false
      end
      local found = neighbours(todo[i])
      looked = looked + #found
      if looked > LIMIT then
        return nil
      end
      for _, key in ipairs(found) do
        if to[key] then
          return true
        end
        if not seen[key] then
          seen[key] = true
          todo[#todo + 1] = key
        end
      end
    end
    return nil
  end

  local answer = leads(on, {[id] = true}, above)
  if answer == nil then
    answer = leads({id}, targets, below)
  end
  return answer ~= false
end
