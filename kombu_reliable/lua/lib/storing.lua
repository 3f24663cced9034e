-- @include retention
-- A completed job that is kept makes room for a new one with its id.
local function forget_if_completed(id)
  local head = redis.pcall('GETRANGE', JOB .. id, 0, 299)
  local length = type(head) == 'string' and tonumber(string.match(head, '^x(%d+)') and
    string.sub(head, 18, 21))
  if not length then
    return false
  end
  local queue = string.sub(head, 22, 21 + length)
  if #queue < length then
    queue = redis.call('GETRANGE', JOB .. id, 21, 20 + length)
  end
  if type(redis.pcall('ZSCORE', COMPLETED .. queue, id)) ~= 'string' then
    return false
  end
  forget_completed(queue, {id})
  return true
end

-- A job whose id another live job has is independent of that one, under a key of its own; no id
-- of a user's begins like that.
local function store_twin(id, number, record)
  if forget_if_completed(id) then
    redis.call('SET', JOB .. id, record)
    return id
  end
  local twin = string.format('~%.0f~', number) .. id
  redis.call('SET', JOB .. twin, record)
  redis.call('SADD', TWINS .. id, twin)
  return twin
end
