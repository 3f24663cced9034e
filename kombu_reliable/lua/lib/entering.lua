-- @include event
-- @include extra
-- @include history
-- @include lanes
-- @include locking
-- @include tagging
-- How a job gets the features of lib/features.lua: by the values with which it is published.
local NAMES = {h = 'history', k = 'track', l = 'throttles', r = 'retain', t = 'tags', u = 'unique'}

local function enter(letter, queue, id, now, value)
  if letter == 'h' then
    if not extra_get(id, 'h') then
      note(id, now, 'put')
    end
  elseif letter == 'k' then
    local next_run = extra_get(id, 'task')
    track_enter(id, value)
    if not next_run then
      tracked_event(queue, id, now, 'put')
    end
  elseif letter == 'l' then
    if value == '' then
      extra_delete(id, 'lane')
    else
      extra_set(id, 'lane', value)
      redis.call('HSET', META, 'lanes', 1) -- from now on claims look for them
      lanes().published[id] = true
    end
  elseif letter == 'r' then
    if not extra_get(id, 'keep') then
      extra_set(id, 'keep', value)
    end
  elseif letter == 't' then
    -- What a next run brings with it is beside what its job has, and was counted when it was sent.
    tags_give(id, value, 1000)
  else
    -- lib/displacing.lua has found out its number and, if it waits behind another job only because
    -- of the key, that one.
    local number = string.format('%.0f', value.number)
    extra_set(id, 'u', number .. string.format(';%.0f;', value.life) .. value.key)
    if value.leader then
      extra_set(id, 'behind', value.leader)
    end
    lock_key(value.key, id, number, value.life, now)
  end
end

-- Whether a job will have features that is published with these values.
local function has_features(values)
  for _, name in pairs(NAMES) do
    if values[name] ~= nil then
      return true
    end
  end
  return false
end

-- Gives a job the features with which it is published, beside those that it has from a run
-- before; returns the letters of all.
--   fresh  the number of its publish if it was just stored, with the flag that it needs
local function enter_features(queue, id, now, values, fresh)
  local letters = {}
  open_extra(id, fresh)
  local before = extra_get(id, 'feat') or ''
  if fresh and (values.track or values.tags) then
    extra_set(id, 'order', fresh) -- as lib/order.lua would
  end
  for letter, name in pairs(NAMES) do
    local value = values[name]
    if value ~= nil then
      enter(letter, queue, id, now, value)
    end
    if value ~= nil or string.find(before, letter, 1, true) then
      letters[#letters + 1] = letter
    end
  end
  table.sort(letters)
  local feat = table.concat(letters)
  if feat ~= before then
    extra_set(id, 'feat', feat)
  end
  close_extra(id)
  return feat
end
