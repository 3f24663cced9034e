-- @include lanes
-- What the lives of throttled jobs mean for throttles; see lib/features.lua, where this is the
-- feature 'l'.  A job has its slots while it is leased.
local throttle_hooks = {}

throttle_hooks.paused = function(queue, id, _, event)
  if event == 'retried' or event == 'failed' then
    lanes().leave(queue, id) -- it may have lost its lease before
  end
  lanes().free(id)
end

throttle_hooks.ended = function(queue, id)
  lanes().leave(queue, id)
  lanes().free(id)
end

throttle_hooks.moved = function(queue, id, _, to)
  local at = redis.call('ZSCORE', THROTTLED .. to, id)
  if at and lanes().leave(queue, id) and lanes().enter(to, id, at) then
    arm(to)
  end
end
