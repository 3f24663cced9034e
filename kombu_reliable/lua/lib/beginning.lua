-- @include owner_fields
-- @include run
-- Deliveries of a marked job that ended without an outcome, why there must be no other, if so, and
-- the letters of its features, and since when it waits, if that was noted.  An owner that is still
-- noted lost its lease, and loses the job by this claim.
local function deliveries_before(id, limit, now)
  local owner = redis.call('HGET', OWNERS, id)
  local noted = redis.pcall('HMGET', EXTRA .. id, 'n', 'once', 'unwanted', 'feat', 'since')
  if noted.err then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
  end
  local before, feat = tonumber(noted[1] or 0) or 0, noted[4] or ''
  if owner then
    fence(owner_token(owner), now)
    before = before + 1
    redis.call('HSET', EXTRA .. id, 'n', before)
  end
  if noted[3] then
    return before, 'unwanted', feat
  end
  if noted[2] then
    return before, 'lost', feat
  end
  return before, limit > 0 and before >= limit and 'delivery-limit' or nil, feat, noted[5]
end
