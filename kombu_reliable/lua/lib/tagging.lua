-- @include extra
-- @include order
-- Tags: words by which jobs are found together.
--   TAG    per tag: the jobs that have it, scored by the order of their publish
--   TAGS   the tags that any job has, scored by how many have it
-- and of each job in its EXTRA hash: 'tags', a list as JSON.
--
-- Foreign data in the place of an index must not stand in the way of a job.
local function tags_of(id)
  local fine, tags = pcall(cjson.decode, extra_get(id, 'tags') or '[]')
  return fine and type(tags) == 'table' and tags or {}
end

local function tag_enter(id, tag, order)
  if redis.pcall('ZADD', TAG .. tag, order, id) == 1 then
    redis.pcall('ZINCRBY', TAGS, 1, tag)
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
  extra_set(id, 'tags', cjson.encode(all))
  return true
end
