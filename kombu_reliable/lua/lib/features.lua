-- @include history
-- @include owner_fields
-- @include record
-- @include retention
-- @include tags
-- @include throttling
-- @include tracking
-- @include unique
-- What some jobs have besides a place in a queue.  The field 'feat' of a job's EXTRA hash holds a
-- letter for each, in alphabetical order; so does its owner's entry while it is leased.
--
-- Every feature has a file of its own and hears of what befalls its jobs.  `arguments` below are
-- queue, id, now and then
--   started  worker   it was claimed
--   paused   event, detail  a delivery ended and the job goes on: 'requeued', 'released', 'stalled' (its
--                     lease was lost), 'retried' (its next run was published), 'failed' (it is a
--                     dead letter; it need not have been delivered), 'replayed' (it was one)
--   ended    outcome  it is over: 'ok', 'gone' if it was removed, or 'replaced' if others go on under
--                     its id.  Its EXTRA hash still exists.
--                     A feature that keeps the job returns true, and puts it where it is to be
--   moved    queue    to another queue
--   entered  value    it was published with this feature, or its next run was; the value is what
--                     the publish has under NAMES
-- What is told twice must do no harm.
local HOOKS = {h = history_hooks, k = tracking_hooks, l = throttle_hooks, r = retention_hooks}
HOOKS.t, HOOKS.u = tags_hooks, unique_hooks
local NAMES = {h = 'history', k = 'track', l = 'throttles', r = 'retain', t = 'tags', u = 'unique'}

local function features_of(id)
  local feat = redis.pcall('HGET', EXTRA .. id, 'feat')
  return type(feat) == 'string' and feat or ''
end

-- Tells each feature of a job; whether one of them returned true.
local function tell_features(feat, event, ...)
  local kept = false
  for letter in string.gmatch(feat or '', '%a') do
    local hook = HOOKS[letter] and HOOKS[letter][event]
    kept = hook and hook(...) or kept
  end
  return kept
end

-- To be called before what is known of a job goes.  Returns those that are to be removed.
local function end_features(queue, ids, outcome, now)
  local over = {}
  for _, id in ipairs(ids) do
    if not tell_features(features_of(id), 'ended', queue, id, now, outcome) then
      over[#over + 1] = id
    end
  end
  return over
end

-- Gives a job the features with which it is published, beside those that it has from a run
-- before; returns the letters of all.
local function enter_features(queue, id, now, values)
  local letters = {}
  local before = features_of(id)
  for letter, name in pairs(NAMES) do
    local value = values[name]
    if value ~= nil and HOOKS[letter] then
      HOOKS[letter].entered(queue, id, now, value)
      letters[#letters + 1] = letter
    elseif string.find(before, letter, 1, true) then
      letters[#letters + 1] = letter
    end
  end
  table.sort(letters)
  local feat = table.concat(letters)
  if feat ~= before then
    redis.call('HSET', EXTRA .. id, 'feat', feat)
    mark_extra(id)
  end
  return feat
end
