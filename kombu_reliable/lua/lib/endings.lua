-- @include alarm
-- @include dead
-- @include dependency
-- @include ended
-- @include ends
-- @include features
-- @include history
-- @include owner
-- @include owner_fields
-- @include ready
-- @include record
-- @include run
-- @include since
-- @include twins
-- @include wake
-- What is rare in the life of a delivery: every end but a success.
local function give_back(queue, id, at, counts, feat, now)
  local claimable = make_ready(queue, id, at or 0, feat)
  redis.pcall('HDEL', EXTRA .. id, 'once')
  if counts then
    mark_extra(id)
    if type(redis.pcall('HINCRBY', EXTRA .. id, 'n', 1)) == 'table' then
      redis.call('UNLINK', EXTRA .. id) -- foreign data
    end
    waits_since(id, now)
  end
  tell_features(feat, 'paused', queue, id, now, counts and 'requeued' or 'released')
  if claimable then
    arm(queue)
  end
end

local function forget(id)
  redis.call('UNLINK', JOB .. id, EXTRA .. id)
  leave_twin(id)
end

-- Settles in another way than with success what has been taken from its owner.
local function settle_otherwise(verdict, queue, id, owner, detail, now, retention, keep)
  local at, feat = owner_place(owner), owner_features(owner)
  if verdict == 'cancel' then
    if not tell_features(feat, 'ended', queue, id, now, 'gone') then
      forget(id)
    end
    all_ended({id}, 'gone')
  elseif verdict == 'replace' then
    dependencies().await(id, now + retention)
    if not tell_features(feat, 'ended', queue, id, now, 'replaced') then
      forget(id)
    end
  elseif verdict ~= 'fail' then
    if verdict == 'requeue' then
      note(id, now, 'requeued')
    end
    give_back(queue, id, at, verdict == 'requeue', feat, now)
  elseif pcall(bury, queue, id, detail, now, keep) then
    alarm_by(queue, now + retention + 1)
  else
    -- Foreign data where the dead letters should be: the message must not be lost.
    give_back(queue, id, at, true, feat, now)
  end
end

local function deliver_once(id)
  mark_extra(id)
  if type(redis.pcall('HSET', EXTRA .. id, 'once', 1)) == 'table' then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
    redis.call('HSET', EXTRA .. id, 'once', 1)
  end
end

-- Somebody has canceled it while it was held.
local function end_unwanted(queue, id, record, now)
  local reason = redis.call('HGET', EXTRA .. id, 'unwanted')
  if #end_features(queue, {id}, 'gone', now) > 0 then
    forget(id)
  end
  -- Foreign data where ends are told must not keep a job alive.
  pcall(tell, queue, id, record, 'canceled', reason, now)
  all_ended({id}, 'gone')
end

-- Ends a job that would be claimed, and must not be, or has no record.
local function end_undelivered(queue, id, record, death, now, retention, keep)
  redis.call('HDEL', OWNERS, id)
  if not record then
    end_features(queue, {id}, 'gone', now)
    redis.call('UNLINK', EXTRA .. id)
    leave_twin(id)
    all_ended({id}, 'gone')
  elseif death == 'unwanted' then
    end_unwanted(queue, id, record, now)
  else
    bury(queue, id, death, now, keep)
    alarm_by(queue, now + retention + 1)
  end
end
