-- @include dependency
-- To be called for the jobs that end and are not about to come again.  The outcome is 'ok',
-- 'failed' (a dead letter, which may be replayed) or 'gone'.  Who says what time it is lets a few
-- dependents start at once; what else there is to do is left to the next claim.
local function all_ended(ids, outcome, now)
  if #ids > 0 and redis.call('EXISTS', WANTED) == 1 then
    tell_of_ends(ids, outcome, now)
  end
end
