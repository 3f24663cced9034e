-- @include tagging
-- How a job loses its tags.
local function tag_leave(id, tag)
  if redis.pcall('ZREM', TAG .. tag, id) == 1 then
    local left = redis.pcall('ZINCRBY', TAGS, -1, tag)
    if type(left) == 'string' and tonumber(left) <= 0 then
      redis.pcall('ZREM', TAGS, tag)
    end
  end
end

local function tags_leave(id)
  for _, tag in ipairs(tags_of(id)) do
    tag_leave(id, tag)
  end
end

local function tags_ended(_, id, _, outcome)
  -- Those of a job that is kept go with it.
  if outcome ~= 'ok' or not extra_get(id, 'done') then
    tags_leave(id)
  end
end

local tags_hooks = {ended = tags_ended}
