-- @include lanes
-- Makes a job ready, at a place that lib/place.lua made; whether it can be claimed by now.
-- All jobs become ready here but those that have no features, and are known to have none.
local function make_ready(queue, id, at, feat)
  if feat and string.find(feat, 'l', 1, true) then
    return lanes().enter(queue, id, at)
  end
  redis.call('ZADD', READY .. queue, at, id)
  return true
end
