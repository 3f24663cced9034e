-- Tags: words by which jobs are found together.
--   TAG    per tag: the jobs that have it, scored by the order of their publish
--   TAGS   the tags that any job has, scored by how many have it
-- and of each job in its EXTRA hash: 'tags', a list as JSON, and 'order', its score, which is the
-- same in all sets, so that they can be merged.
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

-- Gives a job tags beyond those in `have`; returns all of them.
local function tags_put(id, have, wanted, order)
  local all, known = {}, {}
  for i, tag in ipairs(have) do
    all[i], known[tag] = tag, true
  end
  for _, tag in ipairs(wanted) do
    if not known[tag] then
      all[#all + 1], known[tag] = tag, true
      tag_enter(id, tag, order)
    end
  end
  return all
end

-- To be called before the EXTRA hash goes.
local function tags_ended(id)
  for _, tag in ipairs(tags_of(id)) do
    tag_leave(id, tag)
  end
end
