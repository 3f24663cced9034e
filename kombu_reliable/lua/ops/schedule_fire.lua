-- Schedule fire: publishes what is due by a schedule and plans its next occurrence, if nobody has
-- done so before.
--
-- ARGV  now | '', queue of ticks, name, revision and time of the occurrence, as they were read
--       ('' as time: not an occurrence, but a run that somebody asked for),
--       the set of declarations of who fires ('' for none), how long it counts as living (ms),
--       the next occurrence, when it fires, number of runs, number of lines of history, the lines,
--       lane and number for the publish, then the messages as publish_featured takes them
-- Reply what was done: fired (without keys, if a run that somebody asked for is asked for again with
--       the same number); or why nothing was published:
--       late      somebody else did it, or the schedule was changed
--       early     the time has not come
--       overlap   the last run has not ended
--       paused    so is the queue of one of the messages
--       orphaned  nobody declares it any more
--       refused   the publish was, as one whose unique key another job has
--       idle      there was nothing to publish
--       and the keys of what was stored
-- Cost  that of publish_featured
-- @embed publish_featured
-- @include clock
-- @include layout
-- @include room
-- @include schedule
local MESSAGE = 6
local REFUSAL = string.byte('!')
local queue, name, revision, at, set = unpack(ARGV, 2, 6)
local life, next_at, next_due = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local runs, lines = tonumber(ARGV[10]), tonumber(ARGV[11])
local FIRST_LINE = 12
local LANE = FIRST_LINE + lines
local FIRST_MESSAGE = LANE + 2
local version, keeper, pausing_now = unpack(redis.call('HMGET', META, 'v', 'keeper', 'paused'))
if foreign(version) then
  return refuse(version)
end
local now, key = clock(), SCHEDULE .. name
local found = redis.call('HMGET', key, 'rev', 'at', 'due', 'paused', 'deleted', 'rules', 'run',
  'digest', 'decls', 'count')
local asked = at == ''
if found[1] ~= revision or found[5] or not asked and (found[2] ~= at or found[4]) then
  return {'late'}
end
if not asked and (tonumber(found[3]) or 0) > now then
  return {'early'}
end

-- Whether a program lives that declares it, if it is code that does.
local function is_declared()
  local decls = found[8] and found[9] and cjson.decode(found[9])
  if not decls then
    return true
  end
  for _, about in pairs(decls) do
    local seen = about.set ~= '' and redis.call('ZSCORE', DECLARERS, about.set)
    if about.set == '' or seen and tonumber(seen) >= now - life then
      return true
    end
  end
  return false
end

local function any_paused()
  for i = FIRST_MESSAGE + 1, pausing_now and #ARGV or 0, MESSAGE do
    if redis.call('SISMEMBER', PAUSED, ARGV[i]) == 1 then
      return true
    end
  end
  return false
end

local function messages()
  local args = {ARGV[1]}
  for i = LANE, #ARGV do
    args[#args + 1] = ARGV[i]
  end
  return args
end

local rules = found[6] and cjson.decode(found[6]) or {}
local published = #ARGV >= FIRST_MESSAGE
local outcome = published and 'fired' or 'idle'
if not asked and set ~= '' then
  redis.call('ZADD', DECLARERS, now, set)
end
if not asked and not is_declared() then
  outcome = 'orphaned'
elseif (published or at == 'end') and rules.overlap == 0 and still_runs(found[7]) then
  outcome = 'overlap'
elseif published and any_paused() then
  outcome = 'paused'
end

local keys, refusal = {}, ''
if outcome == 'fired' then
  -- First of all: a full server must refuse before anything was changed.
  local reply = publish_featured(messages())
  for _, answer in ipairs(type(reply) == 'table' and reply or {reply}) do
    if asked and answer == '' then
      -- An attempt whose answer was lost has done it.
      return {outcome}
    elseif string.byte(answer) == REFUSAL then
      refusal = answer
    else
      keys[#keys + 1] = answer
    end
  end
  if #keys == 0 then
    outcome = 'refused'
  else
    redis.call('HSET', key, 'run', cjson.encode(keys), 'fired', now)
    if not asked then
      redis.call('HSET', key, 'last', at, 'count', (tonumber(found[10]) or 0) + runs)
    end
  end
else
  enter_full_server()
end
if outcome == 'orphaned' then
  redis.call('HSET', key, 'orphaned', 1)
  plan(queue, name, at, found[3], now, keeper)
  remember_run(name, now, '{"event":"orphaned"}')
  return {outcome}
end
if outcome == 'overlap' or outcome == 'paused' or outcome == 'refused' then
  if asked then
    return {outcome}
  end
  if at ~= 'end' then
    local why = outcome == 'refused' and refusal or outcome
    remember_run(name, now, cjson.encode({event = 'skipped', detail = why, at = tonumber(at)}))
  end
else
  for i = FIRST_LINE, LANE - 1 do
    remember_run(name, now, ARGV[i])
  end
end
if asked then
  return {outcome, unpack(keys)}
end
local on
if rules.after == 1 and (outcome == 'fired' or outcome == 'overlap') then
  next_at, next_due = 'end', ''
  on = outcome == 'fired' and keys or cjson.decode(found[7])
end
plan(queue, name, next_at, next_due, now, keeper, on)
return {outcome, unpack(keys)}
