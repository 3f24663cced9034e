-- @include extra
-- @include tags
-- @include tracking
-- What a job is found by, besides its id: its tags, and that it is tracked.
--
-- `feat` in the EXTRA hash of a job has one letter per feature, in alphabetical order; the entry of
-- its owner has them as well, so that the settlement of a plain job reads nothing more.

-- To be called before the EXTRA hash goes.
local function forget_marks(id)
  tags_leave(id)
  track_leave(id)
end

-- Adds a letter to those of a job, or takes it away, also while somebody holds the job.
local function set_letter(id, letter, on)
  local letters = extra_get(id, 'feat') or ''
  local rest = string.gsub(letters, letter, '')
  if on then
    local before = string.match(rest, '^[a-' .. letter .. ']*')
    rest = before .. letter .. string.sub(rest, #before + 1)
  end
  if rest == letters then
    return
  end
  if rest == '' then
    extra_delete(id, 'feat')
  else
    extra_set(id, 'feat', rest)
  end
  local owner = redis.call('HGET', OWNERS, id)
  local place, worker = string.match(owner or '', '^([^;]*;%-?%d+)%a*(;.*)$')
  if place then
    redis.call('HSET', OWNERS, id, place .. rest .. worker)
  end
end

local function mark(id, letter, keep)
  set_letter(id, letter, true)
  set_letter(id, 'h', true)
  if keep ~= '' and redis.call('HSETNX', EXTRA .. id, 'keep', keep) == 1 then
    set_letter(id, 'r', true)
  end
end
