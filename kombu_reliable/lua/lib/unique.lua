-- @include locking
-- The job's half: number, life, key; nil if it has none.
local function half_of(id)
  return string.match(extra_get(id, 'u') or '', '^(%d+);(%d+);(.*)$')
end

-- The key's half: number, end, job; nil if there is none.
local function lock_of(key)
  local lock = redis.pcall('GET', UNIQUE .. key)
  if type(lock) ~= 'string' then
    return nil -- foreign data gives way
  end
  return string.match(lock, '^(%d+);(%d+);(.*)$')
end

-- Gives up the key of a job; whether it still had it.
local function free_key(id)
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

local function unique_paused(_, id, _, event)
  if event == 'failed' then
    free_key(id)
  end
end

local function unique_ended(_, id)
  free_key(id)
end

-- What lib/features.lua tells.
local unique_hooks = {paused = unique_paused, ended = unique_ended}
