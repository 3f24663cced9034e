-- Tagged: a part of the jobs that have some tags, in order of their publish.  It looks at a bounded
-- number of them, and says where to go on.
--
-- ARGV  now | '', 'all' | 'any' of the tags, '1' for the newest first,
--       where to go on ('' at the beginning), how many matches to pass over, how many to return,
--       how many members to look at, then the tags
-- Reply where to go on ('' at the end), how many matches are still to be passed over,
--       then per match: key of the job
-- Cost  O(log n) per member looked at
-- @include layout
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
local newest, after = ARGV[3] == '1', ARGV[4]
local skip, limit, budget = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local CHUNK, STEPS = 500, 100
local sets = {}
for i = 8, #ARGV do
  sets[#sets + 1] = TAG .. ARGV[i]
end

-- Scores cost as much as all else, so they come only where they are needed.
local function read(key, from, count, ...)
  local bound = from ~= '' and '(' .. from
  if newest then
    return redis.call('ZRANGE', key, bound or '+inf', '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, count, ...)
  end
  return redis.call('ZRANGE', key, bound or '-inf', '+inf', 'BYSCORE', 'LIMIT', 0, count, ...)
end

local found, full = {}, false

local function take(id)
  if skip > 0 then
    skip = skip - 1
  else
    found[#found + 1] = id
    full = #found >= limit
  end
end

-- The smallest set is gone through, and the others are asked about its members.
local function intersect()
  local sizes, smallest = {}, 1
  for i, key in ipairs(sets) do
    sizes[i] = redis.call('ZCARD', key)
    if sizes[i] < sizes[smallest] then
      smallest = i
    end
  end
  if sizes[smallest] == 0 then
    return true
  end
  local base = table.remove(sets, smallest)
  for _ = 1, STEPS do
    local count = math.min(CHUNK, budget)
    local ids = read(base, after, count)
    if #ids == 0 then
      return true
    end
    budget = budget - #ids * math.max(1, #sets)
    local scores = {}
    for i, key in ipairs(sets) do
      scores[i] = redis.call('ZMSCORE', key, unpack(ids))
    end
    local last
    for n, id in ipairs(ids) do
      local match = true
      for i = 1, #sets do
        match = match and scores[i][n]
      end
      last = id
      if match then
        take(id)
        if full then
          break
        end
      end
    end
    after = redis.call('ZSCORE', base, last)
    if full then
      return false
    end
    if #ids < count then
      return true
    elseif budget <= 0 then
      return false
    end
  end
  return false
end

-- Parts of all sets are merged, up to where the first of them ends.
local function unite()
  local count = math.max(1, math.min(CHUNK, math.floor(budget / #sets)))
  local matches, scores, ended = {}, {}, true
  local edge
  for _, key in ipairs(sets) do
    local members = read(key, after, count, 'WITHSCORES')
    for i = 1, #members, 2 do
      scores[members[i]] = members[i + 1]
    end
    if #members == 2 * count then
      ended = false
      local last = tonumber(members[#members])
      edge = edge and (newest and math.max(edge, last) or math.min(edge, last)) or last
    end
  end
  for id, score in pairs(scores) do
    local at = tonumber(score)
    if not edge or (newest and at >= edge or not newest and at <= edge) then
      matches[#matches + 1] = id
    end
  end
  table.sort(matches, function(a, b)
    local one, other = tonumber(scores[a]), tonumber(scores[b])
    if newest then
      return one > other
    end
    return one < other
  end)
  for n, id in ipairs(matches) do
    after = scores[id]
    take(id)
    if full then
      return ended and n == #matches
    end
  end
  budget = budget - math.max(1, #matches) * #sets
  return ended
end

local ended = false
if ARGV[2] == 'all' then
  ended = intersect()
else
  for _ = 1, STEPS do
    ended = unite()
    if ended or full or budget <= 0 then
      break
    end
  end
end
return {ended and '' or after, skip, unpack(found)}
