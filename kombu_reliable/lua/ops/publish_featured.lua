-- Publish featured: stores messages of which some have features, each at most once.  Plain ones go
-- through publish, which does not pay for declaring what they do not use.
--
-- ARGV  now | '', lane, number of the first message in its lane, then per message: id, queue, rank,
--       due, tail, features; all but the last as publish has them
--       features: '' or a JSON object of what lib/entering.lua names, and
--       run  [token, key]: published by the owner of this delivery, whose next run it is.
--            Ends the delivery in the same step; refused if it was taken from its owner.
--       depends  what it waits for, see lib/dependency.lua
-- Reply as publish has it; '!' for a message that was refused, '!cycle' for one that would wait
--       for itself, '!skip <job>' or '!raise <job>' for one whose unique key that job has
-- Cost  O(log n) per message and dependency; at most 200 messages and 300 dependencies a call
-- @include clock
-- @include delaying
-- @include entering
-- @include history
-- @include layout
-- @include nonce
-- @include owner
-- @include place
-- @include ready
-- @include record
-- @include run
-- @include wake
-- @defer cycle: closes_cycle
-- @defer dependency: tell_of_ends, dependencies, forsake
-- @defer displacing: make_way
-- @defer features: tell_features, features_of, end_features
-- @defer lanes: lanes
-- @defer storing: store_twin
local STRIDE = 6
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
  local past = redis.pcall('HGET', EXTRA .. key, 'p')
  if type(past) == 'table' then
    redis.call('UNLINK', EXTRA .. key) -- foreign data
    past = nil
  end
  redis.call('HDEL', EXTRA .. key, 'n', 'once', 'heir', 'progress')
  redis.call('HSET', EXTRA .. key, 'p', string.sub(token .. ';' .. (past or ''), 1, PAST_RUNS))
  local now = clock()
  note(key, now, 'retried')
  tell_features(owner_features(owner), 'paused', queue, key, now, 'retried')
  if pausing then
    lanes().reopen(queue)
  end
  return true
end

-- Whether a message is not to be stored, because another job has its unique key; who has.
local function is_in_the_way(unique, number, now)
  local holder, leader
  if redis.call('EXISTS', UNIQUE .. unique.key) == 1 then
    holder, leader = make_way(unique, now)
  end
  unique.number, unique.leader = number, leader
  return holder
end

-- Stores the record.  Returns its key and whether it is a new job; or why it is not stored, and nil.
local function store(at, number, record, features, now)
  local run = features.run
  if run and not succeeded[run[1]] then
    if end_run(run[1], run[2]) then
      succeeded[run[1]] = true
      redis.call('SET', JOB .. run[2], 'x' .. record)
      features.unique = nil -- it has what its job has
      return run[2], false
    elseif is_fenced(run[1]) or has_next_run(run[2], run[1]) then
      return '!', nil
    end
  end
  local unique = features.unique
  local holder = unique and is_in_the_way(unique, number, now)
  if holder then
    return '!' .. unique.conflict .. ' ' .. holder, nil
  end
  local id = ARGV[at]
  record = (has_features(features) and 'x' or '-') .. record
  if not redis.call('SET', JOB .. id, record, 'NX') then
    id = store_twin(id, number, record)
  end
  return id, true
end

-- Whether a job has to wait for others; then it has its place among those that do.
local function waits(id, queue, due, number, features, now)
  local leader, depends = features.unique and features.unique.leader, features.depends
  if leader then
    dependencies().follow(leader, id, number)
  end
  if not (depends and dependencies().depend(id, queue, depends, number, now) or leader) then
    return false
  end
  redis.call('ZADD', WAITING .. queue, math.max(now, due), id)
  return true
end

local meta = redis.call('HMGET', META, 'v', 'keeper', 'paused')
if foreign(meta[1]) then
  return refuse(meta[1])
end
pausing = meta[3]
local now, _, stamp = clock()
local count = (#ARGV - 3) / STRIDE
local skip = remember(ARGV[2], ARGV[3], count)
if not meta[1] then
  redis.call('HSET', META, 'v', LAYOUT)
end
local sequence = redis.call('HINCRBY', META, 'seq', count - skip) - count

-- Returns the key under which the message is stored, or why it is not.
local function publish(at, number)
  local queue, rank, due = ARGV[at + 1], ARGV[at + 2], due_at(ARGV[at + 3], now)
  local features = ARGV[at + 5]
  features = features ~= '' and cjson.decode(features) or {}
  local run, depends = features.run, features.depends
  if depends and closes_cycle(run and run[2] or ARGV[at], depends.on) then
    return '!cycle'
  end
  local id, fresh = store(at, number, rank .. stamp .. ARGV[at + 4], features, now)
  if fresh == nil then
    return id
  end
  local feat = enter_features(queue, id, now, features, fresh and number)
  if waits(id, queue, due, number, features, now) then
    return id
  end
  if due > now then
    delay(queue, id, due, now, meta[2])
  elseif make_ready(queue, id, place(rank, number), feat) then
    arm(queue)
  end
  return id
end

local reply = {}
for i = 1, count do
  reply[i] = i <= skip and '' or publish(4 + (i - 1) * STRIDE, sequence + i)
end
if count == 1 and string.byte(reply[1]) == 33 then
  -- Nothing was stored.  Who has not got the answer asks again, and must not be told that his
  -- message is there.
  redis.call('ZADD', PRODUCERS, ARGV[3] - 1, ARGV[2])
end
return count == 1 and reply[1] or reply
