-- Purge: deletes what waits in a queue, ready and delayed, in bounded steps.
--
-- ARGV  now | '', queue
-- Reply number of jobs deleted; 0 when none is left
-- Cost  at most 200 jobs a call
-- @include layout
-- @include owner
local STEP = 200
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end

local function purge(key)
  local ids = redis.call('ZRANGE', key, 0, STEP - 1)
  if #ids == 0 then
    return 0
  end
  redis.call('ZREM', key, unpack(ids))
  -- A job that was taken back from an owner still has that owner's entry.
  redis.call('HDEL', OWNERS, unpack(ids))
  for _, id in ipairs(ids) do
    redis.call('UNLINK', JOB .. id, EXTRA .. id)
  end
  return #ids
end

local deleted = purge(READY .. ARGV[2])
if deleted == 0 then
  deleted = purge(DELAYED .. ARGV[2])
end
if deleted == 0 then
  redis.call('DEL', WAKE .. ARGV[2])
end
return deleted
