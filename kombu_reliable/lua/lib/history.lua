-- @include record
-- What happened to a job off the happy path: a line an event, '<ms> <event> <detail>', in its
-- EXTRA hash ('h').  The first line and the last nineteen are kept.
local function note(id, now, event, detail)
  local LINES, LENGTH = 20, 200
  local key = EXTRA .. id
  local history = redis.pcall('HGET', key, 'h')
  if type(history) == 'table' then
    redis.call('UNLINK', key) -- foreign data
    history = false
  end
  local line = string.format('%.0f %s ', now, event)
    .. string.gsub(string.sub(detail or '', 1, LENGTH), '%c', ' ')
  if history then
    local _, breaks = string.gsub(history, '\n', '')
    if breaks + 2 > LINES then
      history = string.gsub(history, '^([^\n]*\n)[^\n]*\n', '%1')
    end
    line = history .. '\n' .. line
  end
  redis.call('HSET', key, 'h', line)
  mark_extra(id)
end

-- What also those jobs note that simply succeed, if somebody may look at them.
local function history_entered(_, id, now)
  if redis.call('HEXISTS', EXTRA .. id, 'h') == 0 then
    note(id, now, 'put')
  end
end

local function history_started(_, id, now, worker)
  note(id, now, 'popped', worker)
end

local function history_ended(_, id, now, outcome)
  if outcome == 'ok' then
    note(id, now, 'completed')
  end
end

local history_hooks = {entered = history_entered, started = history_started, ended = history_ended}
