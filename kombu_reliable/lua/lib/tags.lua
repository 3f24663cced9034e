-- @include order
-- Tags: words by which jobs are found together.
--   TAG    per tag: the jobs that have it, scored by the order of their publish
--   TAGS   the tags that any job has, scored by how many have it
-- and of each job in its EXTRA hash: 'tags', a list as JSON.
--
-- Foreign data in the place of an index must not stand in the way of a job.
local function tags_of(id)
  local text = redis.pcall('HGET', EXTRA .. id, 'tags')
  local fine, tags = pcall(cjson.decode, type(text) == 'string' and text or '[]')
  return fine and type(tags) == 'table' and tags or {}
end

local function tag_enter(id, tag, order)
  if redis.pcall('ZADD', TAG .. tag, order, id) == 1 then
    redis.pcall('ZINCRBY', TAGS, 1, tag)
  end
end

local function tag_leave(id, tag)
  if redis.pcall('ZREM', TAG .. tag, id) == 1 then
    local left = redis.pcall('ZINCRBY', TAGS, -1, tag)
    if type(left) == 'string' and tonumber(left) <= 0 then
      redis.pcall('ZREM', TAGS, tag)
    end
  end
end

-- Gives a job tags beside those that it has; false, and nothing is changed, if it would have more
-- than `most`.
local function tags_give(id, wanted, most)
  local have, all, known, order = tags_of(id), {}, {}, order_of(id)
  for i, tag in ipairs(have) do
    all[i], known[tag] = tag, true
  end
  for _, tag in ipairs(wanted) do
    if not known[tag] then
      all[#all + 1], known[tag] = tag, true
    end
  end
  if #all > most then
    return false
  end
  for i = #have + 1, #all do
    tag_enter(id, all[i], order)
  end
  redis.call('HSET', EXTRA .. id, 'tags', cjson.encode(all))
  return true
end

local function tags_leave(id)
  for _, tag in ipairs(tags_of(id)) do
    tag_leave(id, tag)
  end
end

local function tags_entered(_, id, _, tags)
  -- What a next run brings with it is beside what its job has, and was counted when it was sent.
  tags_give(id, tags, 1000)
end

local function tags_ended(_, id, _, outcome)
  -- Those of a job that is kept go with it.
  if outcome ~= 'ok' or redis.call('HEXISTS', EXTRA .. id, 'done') == 0 then
    tags_leave(id)
  end
end

local tags_hooks = {entered = tags_entered, ended = tags_ended}
