-- @include alarm
-- @include dead
-- @include dependency
-- @include history
-- @include run
-- @include twins
-- @include wake
-- Ends deliveries.  A settlement is five arguments: verdict, queue, id, token, detail.
--   ack      done, forget it
--   replace  forget it, others will publish its id again
--   cancel   forget it, nobody wants it any more
--   fail     to the dead letters; the detail says why, see dead.lua
--   requeue  back to its old place, counts as a delivery
--   release  back to its old place, does not count
--   once     no end: it stays leased, but is not delivered again.  If its lease is lost, it has
--            failed, which the claim finds out that would deliver it.
-- Its status: 1 settled, or its next run was published before; 0 nobody holds it;
-- -1 it was taken from its owner.  Acks, which are nearly all, are removed together.
local SETTLEMENT = 5

local function unlease(queue, ids)
  local removed = redis.pcall('ZREM', LEASED .. queue, unpack(ids))
  if type(removed) ~= 'number' or removed < #ids then
    -- Their leases had ended, but nobody has claimed them since.
    redis.pcall('ZREM', READY .. queue, unpack(ids))
  end
end

local function give_back(queue, id, at, counts)
  redis.call('ZADD', READY .. queue, at or 0, id)
  redis.pcall('HDEL', EXTRA .. id, 'once')
  if counts then
    mark_extra(id)
    if type(redis.pcall('HINCRBY', EXTRA .. id, 'n', 1)) == 'table' then
      redis.call('UNLINK', EXTRA .. id) -- foreign data
    end
  end
  arm(queue)
end

local function deliver_once(id)
  mark_extra(id)
  if type(redis.pcall('HSET', EXTRA .. id, 'once', 1)) == 'table' then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
    redis.call('HSET', EXTRA .. id, 'once', 1)
  end
end

-- Adds the status of each settlement in ARGV[first] to ARGV[last] to `reply`.
local function settle(first, last, now, retention, keep, reply)
  if last < first then
    return
  end
  local ids, doomed, queues, fenced = {}, {}, {}, 0
  local forgotten = {ack = {}, cancel = {}, replace = {}}
  for i = first, last, SETTLEMENT do
    ids[#ids + 1] = ARGV[i + 2]
  end
  local owners = redis.call('HMGET', OWNERS, unpack(ids))
  local ended, others = {}, {}
  for n, id in ipairs(ids) do
    local i = first + (n - 1) * SETTLEMENT
    local verdict, queue, token = ARGV[i], ARGV[i + 1], ARGV[i + 3]
    local status = 1
    if ended[id] then
      status = status_of_other(id, false, token)
    elseif not owned_by(owners[n], token) then
      status = status_of_other(id, owners[n], token)
    elseif verdict == 'once' then
      deliver_once(id)
    else
      ended[id] = true
      queues[queue] = queues[queue] or {}
      table.insert(queues[queue], id)
      if forgotten[verdict] then
        table.insert(forgotten[verdict], id)
        doomed[#doomed + 1] = JOB .. id
        doomed[#doomed + 1] = EXTRA .. id
        leave_twin(id)
      else
        others[#others + 1] = {verdict, queue, id, owner_place(owners[n]), ARGV[i + 4]}
      end
    end
    if status == -1 then
      fenced = fenced + 1
    end
    reply[#reply + 1] = status
  end
  if next(ended) then
    local names = {}
    for id in pairs(ended) do
      names[#names + 1] = id
    end
    redis.call('HDEL', OWNERS, unpack(names))
    for queue, leased in pairs(queues) do
      unlease(queue, leased)
    end
  end
  if #doomed > 0 then
    for _, id in ipairs(forgotten.replace) do
      dependencies().await(id, now + retention)
    end
    redis.call('UNLINK', unpack(doomed))
    all_ended(forgotten.ack, 'ok', now)
    all_ended(forgotten.cancel, 'gone')
  end
  for _, other in ipairs(others) do
    local verdict, queue, id, at, detail = other[1], other[2], other[3], other[4], other[5]
    if verdict ~= 'fail' then
      note(id, now, verdict == 'requeue' and 'requeued' or 'released')
      give_back(queue, id, at, verdict == 'requeue')
    elseif pcall(bury, queue, id, detail, now, keep) then
      alarm_by(queue, now + retention + 1)
    else
      -- Foreign data where the dead letters should be: the message must not be lost.
      give_back(queue, id, at, true)
    end
  end
  if fenced > 0 then
    redis.call('HINCRBY', META, 'fenced', fenced)
  end
end
