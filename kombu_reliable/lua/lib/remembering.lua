-- @include history
-- What also those jobs note that simply succeed, if somebody may look at them.
local function history_started(_, id, now, worker)
  note(id, now, 'popped', worker)
end

local function history_ended(_, id, now, outcome)
  if outcome == 'ok' then
    note(id, now, 'completed')
  end
end

local history_hooks = {started = history_started, ended = history_ended}
