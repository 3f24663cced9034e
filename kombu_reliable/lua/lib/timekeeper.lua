-- One worker watches the clock for the next alarm, a second one takes over a little later,
-- the others sleep: a due job then costs two claims, however many workers idle.
-- A post is '<worker>;<time for which it promised to claim>;<time at which it did so>'.
local GRACE = 20
local FRESH = 1000

-- Takes a post that is free, its own, promised too late, or whose holder did not act or was
-- not heard of for longer than an idle worker sleeps.
local function take_post(field, post, worker, now, due, lease)
  local holder, at, since = string.match(post or '', '^([^;]*);([^;]*);(.*)$')
  at, since = tonumber(at), tonumber(since)
  local vacant = not (holder and at and since) or holder == worker or at > due or at < now - GRACE
    or now - since > lease / 2
  if not vacant then
    return false
  end
  if holder ~= worker or at ~= due or now - since > FRESH then
    redis.call('HSET', META, field, worker .. ';' .. due .. ';' .. now)
  end
  return true
end

-- Returns when this worker must claim again (ms), or nil if others watch.  A claim without a
-- name comes from somebody who does not stay, and takes no post.
local function keep_time(worker, now, due, first, second, lease)
  if not due and (first or second) then
    -- Nothing to watch.  A post that stayed would be taken for a promise to wake.
    redis.call('HDEL', META, 'keeper', 'deputy')
  end
  if not due or worker == '' then
    return nil
  end
  due = math.max(due, now)
  if take_post('keeper', first, worker, now, due, lease) then
    return due
  end
  if take_post('deputy', second, worker, now, due + GRACE, lease) then
    return due + GRACE
  end
  return nil
end
