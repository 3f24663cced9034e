-- Finds jobs by their keys.  The record says in which queue a job is, and it is in one place there.
--
-- The states are 'ready', 'throttled', 'delayed', 'leased', 'waiting', 'failed', 'completed';
-- 'nowhere' is a record that damage has left behind.  A ready or throttled job may still have the
-- owner that lost its lease.
local PLACES = {ready = READY, delayed = DELAYED, leased = LEASED, waiting = WAITING, failed = DEAD}
PLACES.throttled, PLACES.completed = THROTTLED, COMPLETED
local STATES = {'ready', 'delayed', 'leased', 'waiting', 'failed', 'throttled', 'completed'}

-- Returns a table of state, score, rank (text), published (text), queue, owner; nil if there is
-- no record of ours.  It looks first where the job is likely to be.
local function find(id, likely)
  local head = redis.pcall('GETRANGE', JOB .. id, 0, 299)
  if type(head) ~= 'string' then
    return nil -- foreign data
  end
  local rank, published, length = string.match(head, '^[-x](%d%d%d)(' .. string.rep('%d', 13)
    .. ')(%d%d%d%d)')
  if not rank then
    return nil
  end
  length = tonumber(length)
  local queue = string.sub(head, 22, 21 + length)
  if #queue < length then
    queue = redis.call('GETRANGE', JOB .. id, 21, 20 + length)
  end
  local job = {rank = rank, published = published, queue = queue, state = 'nowhere', owner = false}
  for i = likely and 0 or 1, #STATES do
    local state = STATES[i] or likely
    local score = redis.pcall('ZSCORE', PLACES[state] .. queue, id)
    if type(score) == 'string' then
      job.state, job.score = state, score
      break
    end
  end
  if job.state == 'ready' or job.state == 'leased' or job.state == 'throttled' then
    job.owner = redis.call('HGET', OWNERS, id)
  end
  return job
end
