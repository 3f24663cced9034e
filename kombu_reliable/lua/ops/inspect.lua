-- Inspect: everything about jobs but their messages, which may be large.
--
-- ARGV  now | '', then the keys of the jobs
-- Reply per job: its state, '' if there is none; then, if there is one:
--       rank, time of publish, queue, score in its place, owner, deliveries that ended without
--       an outcome, reason, failure, group, policy, history, what holds it back,
--       tags (JSON), 1 if it is tracked, progress, what was logged, when it completed,
--       how many jobs it waits for, how many of them follow, their keys,
--       how many jobs wait for it, how many of them follow, their keys
-- Cost  O(log n) per job; at most 25 jobs a call
-- @include layout
-- @include whereabouts
local SHOWN = 100 -- keys of others; of a few jobs more than of many
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local shown = math.max(1, math.floor(5 * SHOWN / math.max(5, #ARGV - 1)))
local reply = {}
local POLICIES = {[0] = 'wait', 'fail', 'ignore'}

local function add(...)
  for i = 1, select('#', ...) do
    reply[#reply + 1] = select(i, ...) or ''
  end
end

local function add_others(count, list, key, ...)
  local size = redis.pcall(count, key)
  if type(size) ~= 'number' or size == 0 then
    return add(0, 0)
  end
  local keys = redis.call(list, key, ...)
  add(size, #keys, unpack(keys))
end

-- What becomes of a waiting job if what it waits for fails.
local function policy_of(id)
  local dependency = redis.pcall('SRANDMEMBER', UNMET .. id)
  local score = type(dependency) == 'string' and redis.pcall('ZSCORE', DEPENDENTS .. dependency, id)
  return type(score) == 'string' and POLICIES[math.floor(tonumber(score))]
end

for i = 2, #ARGV do
  local id = ARGV[i]
  local job = find(id)
  if not job or job.state == 'nowhere' then
    add('')
  else
    local noted = redis.pcall('HMGET', EXTRA .. id, 'n', 'reason', 'failure', 'group', 'h', 'lane',
      'tags', 'progress', 'log', 'done')
    noted = noted.err and {} or noted
    add(job.state, job.rank, job.published, job.queue, job.score, job.owner)
    add(noted[1], noted[2], noted[3], noted[4], job.state == 'waiting' and policy_of(id), noted[5])
    local tracked = type(redis.pcall('ZSCORE', TRACKED, id)) == 'string'
    add(noted[6], noted[7], tracked and 1, noted[8], noted[9], noted[10])
    add_others('SCARD', 'SRANDMEMBER', UNMET .. id, shown)
    add_others('ZCARD', 'ZRANGE', DEPENDENTS .. id, 0, shown - 1)
  end
end
return reply
