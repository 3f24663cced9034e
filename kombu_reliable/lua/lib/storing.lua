-- A job whose id another live job has is independent of that one, under a key of its own; no id
-- of a user's begins like that.
local function store_twin(id, number, record)
  local twin = string.format('~%.0f~', number) .. id
  redis.call('SET', JOB .. twin, '-' .. record)
  redis.call('SADD', TWINS .. id, twin)
  return twin
end
