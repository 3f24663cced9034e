-- @include extra
-- Unique jobs: of those that were published with the same key, one at a time.
--
-- A lock has two halves.  UNIQUE .. key is '<number>;<end (ms; 0: none)>;<job>', and the field 'u' of
-- that job's EXTRA hash '<number>;<life (ms; 0: no end)>;<key>'.  It counts only while the job lives,
-- has not failed, and both halves have the same number, see lib/displacing.lua.  So a lock that was
-- left behind, by whatever accident, holds nobody back.
local function lock_key(key, id, number, life, now)
  local ends = life > 0 and now + life or 0
  local lock = number .. string.format(';%.0f;', ends) .. id
  if life > 0 then
    redis.call('SET', UNIQUE .. key, lock, 'PX', string.format('%.0f', life))
  else
    redis.call('SET', UNIQUE .. key, lock)
  end
end
