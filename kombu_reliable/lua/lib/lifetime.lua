-- @include alarm
-- @include binding
-- @include discard
-- @include pausing
-- Queues that do not live for ever.  Only those have a LIFE hash:
--   life   ms for which the queue may stay unused; 0: no limit
--   auto   1 if it goes with its last consumer
--   used   when it was last used
--   gone   once it was deleted: when to sweep it next, until nobody can be about to publish to it
--   swept  1 if the last sweep found nothing
-- ATTENDANCE holds its consumers, scored by the time until which they are believed to live.
--
-- The functions are made when they are needed: making them would cost each claim, which hardly
-- ever does.
local function lifetimes()
  local SIGN = 20000   -- consumers sign at least so often, ms
  local LINGER = 10000 -- what was routed before the deletion arrives within this time, ms
  local GRID = 5000    -- sweeps of several queues share a claim, ms
  local SWEPT = 30000  -- without any claim, the memory of a deleted queue goes after so long, ms
  local STEP = 200

  -- How often a consumer must sign.
  local function sign_every(life)
    return life > 0 and math.max(100, math.min(SIGN, math.floor(life / 3))) or SIGN
  end

  -- How long a consumer that stays silent is believed to live.
  local function believed_for(life)
    return life > 0 and life + sign_every(life) or 3 * SIGN
  end

  local function read(queue)
    local fields = redis.call('HMGET', LIFE .. queue, 'life', 'auto', 'used', 'gone', 'swept')
    if not fields[1] then
      return nil
    end
    local life, used, gone = tonumber(fields[1]), tonumber(fields[3]), tonumber(fields[4] or nil)
    local auto, swept = fields[2] == '1', fields[5] == '1'
    return {life = life, auto = auto, used = used, gone = gone, swept = swept}
  end

  -- Until when somebody is believed to consume the queue; nil if nobody ever did.
  local function attended_until(queue)
    return tonumber(redis.call('ZREVRANGE', ATTENDANCE .. queue, 0, 0, 'WITHSCORES')[2])
  end

  -- When the queue has to go, or to be swept; nil while nothing says so.
  local function ends_at(queue, record)
    if record.gone then
      return record.gone
    end
    local attended = attended_until(queue)
    if record.life > 0 then
      return math.max(record.used + record.life, attended or 0)
    end
    -- A queue that never had a consumer waits for the first one.
    return record.auto and attended or nil
  end

  local function watch(queue)
    local at = ends_at(queue, read(queue))
    if at then
      alarm_by(queue, at)
    end
  end

  -- One step; returns how many it removed.
  local function unbind_all(queue)
    local notes = redis.call('ZRANGE', BOUND .. queue, 0, STEP - 1)
    for _, note in ipairs(notes) do
      local length, rest = string.match(note, '^(%d+):(.*)$')
      length = tonumber(length)
      unbind(queue, string.sub(rest, 1, length), string.sub(rest, length + 1))
    end
    return #notes
  end

  -- Deletes a queue as far as one step goes.  What is leased stays with its owners; what they
  -- give back, and what was on its way, a later sweep finds.  Returns how many jobs it deleted.
  local function sweep(queue, record, now)
    local deleted = discarding()(queue)
    local found = unbind_all(queue) + deleted > 0
    if not found and record.swept then
      redis.call('UNLINK', LIFE .. queue, ATTENDANCE .. queue)
      return deleted
    end
    local again = found and now or math.ceil((now + LINGER) / GRID) * GRID
    redis.call('DEL', ATTENDANCE .. queue)
    set_paused(queue, false)
    redis.call('SREM', QUEUES, queue)
    redis.call('HSET', LIFE .. queue, 'gone', again, 'swept', found and 0 or 1)
    if redis.call('EXISTS', LEASED .. queue, DEAD .. queue, COMPLETED .. queue) == 0 then
      -- No alarm of this queue means anything else.
      redis.call('ZADD', ALARMS, again, queue)
      redis.call('PEXPIRE', LIFE .. queue, again - now + SWEPT)
    else
      alarm_by(queue, again)
      redis.call('PERSIST', LIFE .. queue)
    end
    return deleted
  end

  -- What time does to such a queue.  Returns when to look again, or nil.
  local function live_on(queue, now, hold)
    local record = read(queue)
    local at = record and ends_at(queue, record)
    if at and hold and not record.gone then
      at = math.max(at, hold) -- nobody could sign while the server was silent
    end
    if not at or at > now then
      return at or nil
    end
    if redis.call('EXISTS', LEASED .. queue) == 1 then
      return nil -- the end of the lease has an alarm
    end
    sweep(queue, record, now)
    record = read(queue)
    return record and record.gone
  end

  local all = {read = read, watch = watch, sweep = sweep, live_on = live_on}
  all.attended_until, all.sign_every, all.believed_for = attended_until, sign_every, believed_for
  return all
end
