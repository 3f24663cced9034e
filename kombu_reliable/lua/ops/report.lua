-- Report: the owner of a job tells how far it is, or something about it.
--
-- ARGV  now | '', key of the job, token, 'log' or 'progress', what
-- Reply 1 it is noted, 0 nobody holds the job, -1 it was taken from this owner
-- Cost  O(1)
-- @include clock
-- @include layout
-- @include record
-- @include room
-- @include run
local LINES = 50
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local id, token, kind, what = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now, _, stamp = clock()
local owner = redis.call('HGET', OWNERS, id)
if not owned_by(owner, token) then
  local status = status_of_other(id, owner, token)
  return status == 1 and -1 or status -- its next run is not this one's
end
local key = EXTRA .. id
local before = redis.pcall('HGET', key, kind)
if type(before) == 'table' then
  redis.call('UNLINK', key) -- foreign data
  before = false
end
if kind == 'log' then
  what = stamp .. ' ' .. what
  if before then
    local _, breaks = string.gsub(before, '\n', '')
    if breaks + 2 > LINES then
      before = string.gsub(before, '^([^\n]*\n)[^\n]*\n', '%1')
    end
    what = before .. '\n' .. what
  end
end
redis.call('HSET', key, kind, what)
mark_extra(id)
return 1
