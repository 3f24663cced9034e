-- @include extra
-- @include remembering
-- @include retention
-- @include tags
-- @include throttling
-- @include tracking
-- @include unique
-- What some jobs have besides a place in a queue.  The field 'feat' of a job's EXTRA hash holds a
-- letter for each, in alphabetical order; so does its owner's entry while it is leased.
--
-- Every feature has a file of its own and hears of what befalls its jobs; how it begins is in
-- lib/entering.lua.  The arguments are queue, id, now and then
--   started  worker   it was claimed
--   paused   event, detail  a delivery ended and the job goes on: 'requeued', 'released', 'stalled' (its
--                     lease was lost), 'retried' (its next run was published), 'failed' (it is a
--                     dead letter; it need not have been delivered), 'replayed' (it was one)
--   ended    outcome  it is over: 'ok', 'gone' if it was removed, or 'replaced' if others go on under
--                     its id.  Its EXTRA hash still exists.
--                     A feature that keeps the job returns true, and puts it where it is to be
--   moved    queue    to another queue
-- What is told twice must do no harm.
local HOOKS = {h = history_hooks, k = tracking_hooks, l = throttle_hooks, r = retention_hooks}
HOOKS.t, HOOKS.u = tags_hooks, unique_hooks

local function features_of(id)
  return extra_get(id, 'feat') or ''
end

-- Tells each feature of a job; whether one of them returned true.
local function tell_features(feat, event, queue, id, ...)
  local kept = false
  if not feat or feat == '' then
    return kept
  end
  open_extra(id)
  for letter in string.gmatch(feat, '%a') do
    local hook = HOOKS[letter] and HOOKS[letter][event]
    kept = hook and hook(queue, id, ...) or kept
  end
  close_extra(id)
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
