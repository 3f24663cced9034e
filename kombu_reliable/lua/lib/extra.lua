-- @include record
-- The EXTRA hash of a job, which few jobs have.
-- Where several features look at it in turn it is opened: read with one call, and what they have
-- changed is written with one when it is closed.  Foreign data in its place gives way.
-- They may look at these fields, and set any.
local FIELDS = {'feat', 'h', 'task', 'order', 'held', 'keep', 'tags', 'done', 'reason', 'lane', 'u'}
local opened = {}

-- `fresh`: the job was just stored, with the flag of those that have an EXTRA hash.
local function open_extra(id, fresh)
  local fields = {}
  local found = fresh and fields or redis.pcall('HMGET', EXTRA .. id, unpack(FIELDS))
  if found.err then
    redis.call('UNLINK', EXTRA .. id)
  end
  for i, field in ipairs(FIELDS) do
    fields[field] = found[i] or nil
  end
  opened[id] = {fields = fields, changed = {}, marked = fresh or next(fields) ~= nil}
end

local function close_extra(id)
  local extra = opened[id]
  opened[id] = nil
  if not extra then
    return -- it was dropped
  end
  local set, gone = {}, {}
  for field in pairs(extra.changed) do
    local value = extra.fields[field]
    if value then
      set[#set + 1] = field
      set[#set + 1] = value
    else
      gone[#gone + 1] = field
    end
  end
  if #gone > 0 then
    redis.call('HDEL', EXTRA .. id, unpack(gone))
  end
  if #set > 0 then
    redis.call('HSET', EXTRA .. id, unpack(set))
    if not extra.marked then
      mark_extra(id)
    end
  end
end

local function drop_extra(id)
  opened[id] = nil
  redis.call('UNLINK', EXTRA .. id)
end

-- The value of a field, or false.
local function extra_get(id, field)
  if opened[id] then
    return opened[id].fields[field] or false
  end
  local value = redis.pcall('HGET', EXTRA .. id, field)
  return type(value) ~= 'table' and value
end

local function extra_set(id, field, value)
  local extra = opened[id]
  if extra then
    extra.fields[field], extra.changed[field] = value, true
    return
  end
  local new = redis.pcall('HSET', EXTRA .. id, field, value)
  if type(new) == 'table' then
    redis.call('UNLINK', EXTRA .. id)
    new = redis.call('HSET', EXTRA .. id, field, value)
  end
  if new == 1 then
    mark_extra(id)
  end
end

local function extra_delete(id, field)
  local extra = opened[id]
  if not extra then
    redis.pcall('HDEL', EXTRA .. id, field)
  elseif extra.fields[field] then
    extra.fields[field], extra.changed[field] = nil, true
  end
end
