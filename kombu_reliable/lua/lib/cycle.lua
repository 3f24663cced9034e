-- Whether a job that came to depend on others would wait for itself.  Only a job that somebody
-- waits for can.  The search goes up, from what the others wait for, and if that is too much
-- down, from those that wait for the job; if that is too much as well the answer is yes.
local function closes_cycle(id, on)
  local LIMIT = 2000 -- edges
  if redis.call('SISMEMBER', WANTED, id) == 0 then
    return false
  end

  local function above(key)
    return redis.call('SCARD', UNMET .. key), function()
      return redis.call('SMEMBERS', UNMET .. key)
    end
  end

  local function below(key)
    return redis.call('ZCARD', DEPENDENTS .. key), function()
      local found = {}
      for _, dependent in ipairs(redis.call('ZRANGE', DEPENDENTS .. key, 0, -1)) do
        if redis.call('SISMEMBER', UNMET .. dependent, key) == 1 then
          found[#found + 1] = dependent
        end
      end
      return found
    end
  end

  -- nil if it would take too long to find out.
  local function leads(from, to, neighbours)
    local seen, todo, looked = {}, {}, 0
    for _, key in ipairs(from) do
      todo[#todo + 1] = key
    end
    while #todo > 0 do
      local key = table.remove(todo)
      local count, read = neighbours(key)
      looked = looked + count
      if looked > LIMIT then
        return nil
      end
      for _, neighbour in ipairs(count > 0 and read() or {}) do
        if to[neighbour] then
          return true
        end
        if not seen[neighbour] then
          seen[neighbour] = true
          todo[#todo + 1] = neighbour
        end
      end
    end
    return false
  end

  local targets = {}
  for _, key in ipairs(on) do
    targets[key] = true
  end
  if targets[id] then
    return true
  end
  local answer = leads(on, {[id] = true}, above)
  if answer == nil then
    answer = leads({id}, targets, below)
  end
  return answer ~= false
end
