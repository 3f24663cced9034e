-- Unique jobs: of those that were published with the same key, one at a time.
--
-- A lock has two halves.  UNIQUE .. key is '<number>;<end (ms; 0: none)>;<job>', and the field 'u' of
-- that job's EXTRA hash '<number>;<life (ms; 0: no end)>;<key>'.  It counts only while the job lives,
-- has not failed, and both halves have the same number, see lib/displacing.lua.  So a lock that was
-- left behind, by whatever accident, holds nobody back.

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

local function lock_key(key, id, number, life, now)
  local ends = life > 0 and now + life or 0
  local lock = number .. string.format(';%.0f;', ends) .. id
  if life > 0 then
    redis.call('SET', UNIQUE .. key, lock, 'PX', string.format('%.0f', life))
  else
    redis.call('SET', UNIQUE .. key, lock)
  end
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

-- A job was published with a key.  lib/displacing.lua has found out its number and, if it waits
-- behind another one only because of the key, that one.
local function unique_entered(_, id, now, wanted)
  local number = string.format('%.0f', wanted.number)
  local half = number .. string.format(';%.0f;', wanted.life) .. wanted.key
  if type(redis.pcall('HSET', EXTRA .. id, 'u', half)) == 'table' then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
    redis.call('HSET', EXTRA .. id, 'u', half)
  end
  if wanted.leader then
    redis.call('HSET', EXTRA .. id, 'behind', wanted.leader)
  end
  lock_key(wanted.key, id, number, wanted.life, now)
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
local unique_hooks = {entered = unique_entered, paused = unique_paused, ended = unique_ended}
