-- @include extra
-- The score under which a job is found by its tags, and among the tracked jobs: by when it was
-- published.  In all sets it is the same, so that they can be merged.
local function order_of(id)
  local order = extra_get(id, 'order')
  if not order then
    order = redis.call('HINCRBY', META, 'seq', 1)
    extra_set(id, 'order', order)
  end
  return order
end
