-- Claims and renewals leave their time, to a twentieth of a lease.  Whoever finds more than half
-- a lease of silence (an outage, a restart of the server, a jump of its clock) suspends expiry
-- for one lease: owners that could not renew get the time to come back.
local function hear(now, seen, hold, lease)
  if seen and now - seen > lease / 2 then
    hold = now + lease
    redis.call('HSET', META, 'seen', now, 'hold', hold)
  elseif not seen or now - seen >= lease / 20 or now < seen then
    redis.call('HSET', META, 'seen', now)
  end
  return hold
end
