-- @include extra
-- What happened to a job off the happy path: a line an event, '<ms> <event> <detail>', in its
-- EXTRA hash ('h').  The first line and the last nineteen are kept.
local function note(id, now, event, detail)
  local LINES, LENGTH = 20, 200
  local history = extra_get(id, 'h')
  local line = string.format('%.0f %s ', now, event)
    .. string.gsub(string.sub(detail or '', 1, LENGTH), '%c', ' ')
  if history then
    local _, breaks = string.gsub(history, '\n', '')
    if breaks + 2 > LINES then
      history = string.gsub(history, '^([^\n]*\n)[^\n]*\n', '%1')
    end
    line = history .. '\n' .. line
  end
  extra_set(id, 'h', line)
end
