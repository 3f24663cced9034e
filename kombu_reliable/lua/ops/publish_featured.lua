-- Publish featured: stores messages of which some have features.  Plain ones go through
-- publish, which does not pay for declaring what they do not use.
--
-- ARGV  as in lib/publishing.lua, and per message its features: '' or a JSON object
--       run  [token, key]: published by the owner of this delivery, whose next run it is.
--            Ends the delivery in the same step; refused if it was taken from its owner.
--       depends  what it waits for, see lib/dependency.lua
--       unique   the key that only one job may have, see lib/unique.lua
-- Reply as in lib/publishing.lua; '!' for a message that was refused, '!cycle' for one that
--       would wait for itself, '!skip <job>' or '!raise <job>' for one whose key that job has
-- Cost  O(log n) per message and dependency; at most 200 messages and 300 dependencies a call
-- @include history
-- @include publishing
-- @include cycle
-- @include dependency
-- @include record
-- @include run
-- @defer unique: locks
local STRIDE = 6
local FEATURES = 5
local ALONE = 3 + STRIDE -- the number of arguments for a single message
local succeeded = {} -- tokens of the runs that this call has ended

-- Ends the current run of a job whose next one is about to be stored; false if somebody else
-- has it.  Its deliveries are counted anew.
local function end_run(token, key)
  local owner = redis.call('HGET', OWNERS, key)
  local record = owned_by(owner, token) and redis.call('GET', JOB .. key)
  if not record then
    return false
  end
  local queue = record_queue(record)
  redis.call('HDEL', OWNERS, key)
  if redis.call('ZREM', LEASED .. queue, key) == 0 then
    redis.call('ZREM', READY .. queue, key)
  end
  local past, history, unwanted, unique =
    unpack(redis.call('HMGET', EXTRA .. key, 'p', 'h', 'unwanted', 'u'))
  redis.call('UNLINK', EXTRA .. key)
  redis.call('HSET', EXTRA .. key, 'p', string.sub(token .. ';' .. (past or ''), 1, PAST_RUNS))
  if history then
    redis.call('HSET', EXTRA .. key, 'h', history)
  end
  if unwanted then
    redis.call('HSET', EXTRA .. key, 'unwanted', unwanted)
  end
  if unique then
    redis.call('HSET', EXTRA .. key, 'u', unique)
  end
  note(key, clock(), 'retried')
  return true
end

-- Stores a record whose key no other job must have; whether it did.
local function store_unique(at, number, record, unique, now)
  local holder, leader = locks().make_way(unique, now)
  if holder then
    if #ARGV == ALONE then
      -- Nothing was stored.  Who has not got the answer asks again, and must not be told that his
      -- message is there.
      redis.call('ZADD', PRODUCERS, ARGV[3] - 1, ARGV[2])
    end
    return '!' .. unique.conflict .. ' ' .. holder, false
  end
  local id = store_new(ARGV[at], number, record)
  locks().take(unique, id, number, now, leader)
  return id, true, leader
end

-- Stores the record; whether it did, and behind which other job it waits, if any.  A next run has
-- the key of its job already.
local function store(at, number, record, features, now)
  local run = features.run
  if run and not succeeded[run[1]] then
    if end_run(run[1], run[2]) then
      succeeded[run[1]] = true
      redis.call('SET', JOB .. run[2], 'x' .. record)
      return run[2], true
    elseif is_fenced(run[1]) or has_next_run(run[2], run[1]) then
      return '!', false
    end
  end
  if features.unique then
    return store_unique(at, number, record, features.unique, now)
  end
  return store_new(ARGV[at], number, record)
end

-- Whether a job has to wait for others; then it has its place among those that do.
local function waits(id, at, number, depends, leader, now)
  if leader then
    dependencies().follow(leader, id, number)
  end
  if not (depends and dependencies().depend(id, ARGV[at + 1], depends, number, now) or leader) then
    return false
  end
  redis.call('ZADD', WAITING .. ARGV[at + 1], math.max(now, due_at(ARGV[at + 3], now)), id)
  return true
end

return publish(STRIDE, function(at, number, record)
  local features = ARGV[at + FEATURES]
  features = features ~= '' and cjson.decode(features) or {}
  local run, depends = features.run, features.depends
  if depends and closes_cycle(run and run[2] or ARGV[at], depends.on) then
    return '!cycle', false
  end
  local now = tonumber(string.sub(record, 4, 16))
  local id, stored, leader = store(at, number, record, features, now)
  if stored and (depends or leader) and waits(id, at, number, depends, leader, now) then
    stored = false
  end
  return id, stored
end)
