-- @include owner_fields
-- @include record
-- @include run
-- A ready job may still have the owner that lost its lease and could come back.  Who acts on the
-- job takes it from that owner, as a claim would: the delivery counts, and its token is fenced.
local function disown(id, job, now)
  if not job.owner then
    return
  end
  fence(owner_token(job.owner), now)
  redis.call('HDEL', OWNERS, id)
  if type(redis.pcall('HINCRBY', EXTRA .. id, 'n', 1)) == 'table' then
    redis.call('UNLINK', EXTRA .. id) -- foreign data
    redis.call('HINCRBY', EXTRA .. id, 'n', 1)
  end
  mark_extra(id)
end
