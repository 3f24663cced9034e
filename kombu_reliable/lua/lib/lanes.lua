-- @include alarm
-- @include clock
-- @include limits
-- @include place
-- @include queue_limits
-- @include tracking
-- @include turns
-- @include wake
-- Jobs that share limits, see lib/limits.lua, wait in lanes.  A lane is a queue and a set of throttles,
-- and perhaps the key of those who take turns; it is called by the digest of that and the name of its
-- queue.
--   LANE          per lane: its jobs, by place
--   LANE_INFO     per lane: what its jobs want as they say it ('t'), where it is parked ('p')
--   THROTTLED     per queue: the jobs in its lanes, by place
--   TICKETS       per queue: the lanes that a claim has to look at, by place of their first job, or
--                 of their turn
--   PENDING       per throttle: the jobs that wait, by time
--   PARKED        per throttle: the queues that have lanes which wait for it
--   PARKED_LANES  per throttle and queue: these lanes, by place
--   THROTTLE_ALARMS  the throttles for which a time has to be kept
--   THROTTLES     the names of all throttles
-- A lane with jobs has a ticket or is parked.  While a throttle has room, every queue that has a
-- lane parked there has a ticket of a lane with that throttle.
--
-- What a job wants is JSON in its EXTRA hash ('lane'): d the digest, f 1 if it is for taking turns,
-- t a list of [name, concurrency, ms between two starts, burst, rate], '' for no limit;
-- or [name], if it takes part and leaves the limits to others.
--
-- The functions are made when they are needed: making them would cost each call.
local made_lanes

local function lanes()
  if made_lanes then
    return made_lanes
  end
  local SPREAD = 100 -- queues in which a throttle that has room shows a ticket
  local RESTORED = 500 -- jobs that are looked at when foreign data is in the way
  local RANK = 35184372088832 -- see lib/place.lua
  local now, limits = clock(), limiting()
  local ours, blocked = limits.ours, limits.blocked
  local wants, published = {}, {}

  local function decode(text)
    local known = wants[text]
    if known == nil then
      local fine, found = pcall(cjson.decode, text)
      known = fine and type(found) == 'table' and type(found.d) == 'string'
        and type(found.t) == 'table' and found or false
      wants[text] = known
    end
    return known
  end

  -- What a job wants, and as it says it; false if it is in no lane.
  local function wanted(id)
    local text = redis.pcall('HGET', EXTRA .. id, 'lane')
    return type(text) == 'string' and decode(text), text
  end

  local restore

  local function tickets(queue, command, ...)
    local reply = redis.pcall(command, TICKETS .. queue, ...)
    if type(reply) == 'table' and reply.err then
      redis.call('UNLINK', TICKETS .. queue) -- foreign data
      restore(queue)
      reply = redis.call(command, TICKETS .. queue, ...)
    end
    return reply
  end

  local function parked_lanes(name, queue)
    return PARKED_LANES .. #name .. ':' .. name .. queue
  end

  -- Somebody has to look at a throttle at this time; whether that is news.
  local function look_at(name, at)
    alarm_by('', at)
    return redis.call('ZADD', THROTTLE_ALARMS, 'LT', 'CH', at, name) == 1
  end

  -- A throttle that nobody waits for, nobody holds and nobody has set is none any more.
  local function forget_unused(name)
    if redis.call('EXISTS', HELD .. name, PENDING .. name) == 0
        and not ours(LIMITS .. name, 'HGET', 'set') then
      redis.call('UNLINK', LIMITS .. name)
      redis.call('SREM', THROTTLES, name)
    end
  end

  -- Shows the first of the lanes that a queue has parked.
  local function unpark(name, queue)
    local key = parked_lanes(name, queue)
    local lane, at = unpack(ours(key, 'ZPOPMIN'))
    if lane then
      ours(LANE_INFO .. lane, 'HDEL', 'p')
      tickets(queue, 'ZADD', at, lane)
      arm(queue)
    end
    if redis.call('EXISTS', key) == 0 then
      ours(PARKED .. name, 'ZREM', queue)
    else
      ours(PARKED .. name, 'ZADD', now, queue)
    end
  end

  -- Lanes of a queue are left parked for a reason, see lib/limits.lua: if it ends by itself, somebody
  -- has to watch the clock for them.
  local function mind_clock(name, queue, reason)
    if reason ~= true then
      look_at(name, reason)
      redis.call('ZADD', WAKE .. queue, 0, '1')
    end
  end

  -- A throttle may have room: a lane of each queue that waits for it is looked at.
  local function opened(name)
    local queues = ours(PARKED .. name, 'ZRANGE', 0, SPREAD - 1)
    local reason = #queues > 0 and blocked(name)
    if reason then
      mind_clock(name, queues[1], reason)
      return
    end
    for _, queue in ipairs(queues) do
      unpark(name, queue)
    end
  end

  local function park(name, queue, lane, at, reason)
    ours(LANE_INFO .. lane, 'HSET', 'p', name)
    ours(parked_lanes(name, queue), 'ZADD', at, lane)
    ours(PARKED .. name, 'ZADD', 'NX', now, queue)
    tickets(queue, 'ZREM', lane)
    if reason ~= true then
      look_at(name, reason)
    end
  end

  -- A lane that was looked at stands at another place, or has gone (`at` is nil then): a throttle
  -- that has room must not be left without the first of the others.  Returns whether one was shown.
  local function hand_over(want, queue, at)
    local shown = false
    for _, one in ipairs(want.t) do
      local name = one[1]
      local first = ours(parked_lanes(name, queue), 'ZRANGE', 0, 0, 'WITHSCORES')[2]
      if first and (not at or tonumber(first) < tonumber(at)) then
        local reason = blocked(name)
        if reason then
          mind_clock(name, queue, reason)
        else
          unpark(name, queue)
          shown = true
        end
      end
    end
    return shown
  end

  -- What jobs bring with them holds until others of the throttle are published with something else.
  local function announce(one, published)
    local name, key = one[1], LIMITS .. one[1]
    redis.call('SADD', THROTTLES, name)
    local known = one[2] and ours(key, 'HMGET', 'dc', 'dr', 'db', 'dtext')
    if not known or known[1] and not published then
      return
    end
    local same = true
    for i = 1, 4 do
      same = same and known[i] == one[i + 1]
    end
    if not same then
      redis.call('HSET', key, 'dc', one[2], 'dr', one[3], 'db', one[4], 'dtext', one[5])
      limits.next_token(name) -- the pace is that of the new limits from now on
      opened(name)
    end
  end

  -- A job may start as soon as its throttles let it: it takes its place in its lane.  Returns
  -- whether a claim has to look at it.
  local function enter_lane(queue, id, at)
    local want, text = wanted(id)
    if not want then
      redis.call('ZADD', READY .. queue, at, id)
      return true
    end
    local lane = want.d .. queue
    ours(LANE .. lane, 'ZADD', at, id)
    ours(THROTTLED .. queue, 'ZADD', at, id)
    for _, one in ipairs(want.t) do
      ours(PENDING .. one[1], 'ZADD', now, id)
    end
    local said, parked = unpack(ours(LANE_INFO .. lane, 'HMGET', 't', 'p'))
    if said ~= text then
      redis.call('HSET', LANE_INFO .. lane, 't', text)
    end
    if not said or published[id] then
      for _, one in ipairs(want.t) do
        announce(one, published[id])
      end
      parked = redis.call('HGET', LANE_INFO .. lane, 'p')
    end
    if not parked then
      tickets(queue, 'ZADD', 'LT', at, lane)
      return true
    end
    local key = parked_lanes(parked, queue)
    if ours(key, 'ZADD', 'LT', 'CH', at, lane) == 0 or blocked(parked) then
      tracked_throttled(queue, id, now, parked)
      return false
    end
    -- Others may have been looked at first; now this one comes before them.
    unpark(parked, queue)
    return true
  end

  -- Where a lane stands, after its first job may have changed.
  local function arrange(queue, lane, want)
    local _, at = unpack(ours(LANE .. lane, 'ZRANGE', 0, 0, 'WITHSCORES'))
    local parked = ours(LANE_INFO .. lane, 'HGET', 'p')
    if at then
      if not want.f then
        local key = parked and parked_lanes(parked, queue) or TICKETS .. queue
        ours(key, 'ZADD', at, lane)
      end
      if not parked then
        hand_over(want, queue, not want.f and at)
      elseif not blocked(parked) then
        unpark(parked, queue)
      end
      return
    end
    tickets(queue, 'ZREM', lane)
    if parked then
      local key = parked_lanes(parked, queue)
      ours(key, 'ZREM', lane)
      if redis.call('EXISTS', key) == 0 then
        ours(PARKED .. parked, 'ZREM', queue)
      end
    end
    redis.call('UNLINK', LANE_INFO .. lane)
    for _, one in ipairs(want.t) do
      forget_unused(one[1])
    end
    hand_over(want, queue)
  end

  local function pull(queue, id, lane, want)
    local removed = ours(LANE .. lane, 'ZREM', id)
    ours(THROTTLED .. queue, 'ZREM', id)
    for _, one in ipairs(want.t) do
      ours(PENDING .. one[1], 'ZREM', id)
    end
    return removed == 1
  end

  -- Takes a job out of its lane; whether it was there.
  local function leave_lane(queue, id)
    local want = wanted(id)
    if not want then
      return false
    end
    local lane = want.d .. queue
    local there = pull(queue, id, lane, want)
    if there then
      arrange(queue, lane, want)
    end
    return there
  end

  -- Gives a job that starts, or goes on, its slots.
  local function take(id, want)
    want = want or wanted(id) or {t = {}}
    for _, one in ipairs(want.t) do
      ours(HELD .. one[1], 'ZADD', now, id)
    end
  end

  -- Takes them from one that has stopped.
  local function free(id)
    local want = wanted(id) or {t = {}}
    for _, one in ipairs(want.t) do
      ours(HELD .. one[1], 'ZREM', id)
      opened(one[1]) -- also if who looked for room has taken the slot from it before
      forget_unused(one[1])
    end
  end

  -- A job gets another place in its lane.
  local function rearrange(queue, id, at)
    local want = wanted(id)
    if want then
      ours(LANE .. want.d .. queue, 'ZADD', 'XX', at, id)
      ours(THROTTLED .. queue, 'ZADD', at, id)
      arrange(queue, want.d .. queue, want)
    end
  end

  -- The first of a lane's throttles that does not let it start, and why.
  local function obstacle(want)
    for _, one in ipairs(want.t) do
      local reason = blocked(one[1])
      if reason then
        return one[1], reason
      end
    end
    return nil
  end

  -- Starts jobs of a lane that has a ticket.
  --   at       of the ticket
  --   most     how many
  --   before   place of who comes next if this lane's first does not; nil if nobody does
  --   deliver  given id and place; whether it has delivered the job, which is over if not
  -- Returns how many it has started, and whether the lane has kept its ticket.
  local function serve(queue, lane, at, most, before, deliver)
    local text = ours(LANE_INFO .. lane, 'HGET', 't')
    local want = text and decode(text)
    if not want then
      -- Damage; the first job says who they are, if there is one.
      local first = ours(LANE .. lane, 'ZRANGE', 0, 0)[1]
      tickets(queue, 'ZREM', lane)
      local found, said = wanted(first or '')
      if found and found.d .. queue == lane then
        redis.call('HSET', LANE_INFO .. lane, 't', said)
        tickets(queue, 'ZADD', at, lane)
      end
      return 0, false
    end
    local started = 0
    for _ = 1, most do
      local id, place_of = unpack(ours(LANE .. lane, 'ZRANGE', 0, 0, 'WITHSCORES'))
      local waits = id and started > 0
        and (want.f or before and tonumber(place_of) > before or hand_over(want, queue, place_of))
      if not id or waits then
        break
      end
      local name, reason = obstacle(want)
      if name then
        tracked_throttled(queue, id, now, name)
        park(name, queue, lane, want.f and at or place_of, reason)
        hand_over(want, queue)
        return started, false
      end
      local delivered = deliver(id, place_of)
      pull(queue, id, lane, want)
      if not delivered then
        break -- its end may have shown somebody who comes before the next one
      end
      started = started + 1
      take(id, want)
      for _, one in ipairs(want.t) do
        limits.spend(one[1], 1)
      end
    end
    arrange(queue, lane, want)
    if want.f and started > 0 and redis.call('EXISTS', LANE .. lane) == 1 then
      -- The others have their turn before the next one of the same rank.
      local _, first = unpack(redis.call('ZRANGE', LANE .. lane, 0, 0, 'WITHSCORES'))
      local rank = -math.floor(tonumber(first) / RANK)
      tickets(queue, 'ZADD', place(rank, redis.call('HINCRBY', META, 'seq', 1)), lane)
    end
    return started, true
  end

  -- Gives the lanes of a queue that has lost its tickets new ones, as far as they are at its front.
  restore = function(queue)
    for _, id in ipairs(ours(THROTTLED .. queue, 'ZRANGE', 0, RESTORED - 1)) do
      local want = wanted(id)
      if want then
        arrange(queue, want.d .. queue, want)
      end
    end
  end

  local all = {arrange = arrange, tickets = tickets, enter = enter_lane, free = free}
  all.forget_unused = forget_unused
  all.later, all.leave, all.limits, all.opened, all.ours = look_at, leave_lane, limits, opened, ours
  all.rearrange, all.serve, all.take, all.wanted = rearrange, serve, take, wanted
  all.published = published
  add_queue_limits(all)
  add_turns(all)
  made_lanes = all
  return all
end
