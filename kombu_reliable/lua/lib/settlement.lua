-- @include alarm
-- @include endings
-- @include ended
-- @include owner
-- @include lanes
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

-- Adds the status of each settlement in ARGV[first] to ARGV[last] to `reply`.
local function settle(first, last, now, retention, keep, reply)
  if last < first then
    return
  end
  local ids, done, doomed, queues, fenced = {}, {}, {}, {}, 0
  for i = first, last, SETTLEMENT do
    ids[#ids + 1] = ARGV[i + 2]
  end
  local owners = redis.call('HMGET', OWNERS, unpack(ids))
  local over, others = {}, {}
  for n, id in ipairs(ids) do
    local i = first + (n - 1) * SETTLEMENT
    local verdict, queue, token = ARGV[i], ARGV[i + 1], ARGV[i + 3]
    local status = 1
    if over[id] then
      status = status_of_other(id, false, token)
    elseif not owned_by(owners[n], token) then
      status = status_of_other(id, owners[n], token)
    elseif verdict == 'once' then
      deliver_once(id)
    else
      over[id] = true
      queues[queue] = queues[queue] or {}
      table.insert(queues[queue], id)
      if verdict == 'ack' then
        done[#done + 1] = id
        local feat = owner_features(owners[n])
        if not (feat and tell_features(feat, 'ended', queue, id, now, 'ok')) then
          doomed[#doomed + 1] = JOB .. id
          doomed[#doomed + 1] = EXTRA .. id
          if string.byte(id) == 126 then
            leave_twin(id)
          end
        end
      else
        others[#others + 1] = n
      end
    end
    if status == -1 then
      fenced = fenced + 1
    end
    reply[#reply + 1] = status
  end
  if next(over) then
    local names = {}
    for id in pairs(over) do
      names[#names + 1] = id
    end
    redis.call('HDEL', OWNERS, unpack(names))
    for queue, leased in pairs(queues) do
      unlease(queue, leased)
      if pausing then
        lanes().reopen(queue)
      end
    end
  end
  if #doomed > 0 then
    redis.call('UNLINK', unpack(doomed))
  end
  all_ended(done, 'ok', now)
  for _, n in ipairs(others) do
    local i = first + (n - 1) * SETTLEMENT
    settle_otherwise(ARGV[i], ARGV[i + 1], ids[n], owners[n], ARGV[i + 4], now, retention, keep)
  end
  if fenced > 0 then
    redis.call('HINCRBY', META, 'fenced', fenced)
  end
end
