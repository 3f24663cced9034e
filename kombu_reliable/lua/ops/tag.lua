-- Tag: gives tags to jobs, or takes them away.
--
-- ARGV  now | '', '1' to give, '0' to take, tags (JSON list), how many a job may have,
--       for how long they are kept once completed, if nobody has said so ('<ms>;<number>', ''),
--       then the keys of the jobs
-- Reply per job: done, unknown, too-many (it keeps those that it had)
-- Cost  O(log n) per job and tag; at most 50 jobs a call
-- @include acting
-- @include marks
-- @include whereabouts
local give, wanted, most, keep = ARGV[2] == '1', cjson.decode(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

local function give_to(id)
  local have, new = tags_of(id), 0
  local known = {}
  for _, tag in ipairs(have) do
    known[tag] = true
  end
  for _, tag in ipairs(wanted) do
    new = new + (known[tag] and 0 or 1)
  end
  if #have + new > most then
    return 'too-many'
  end
  local order = redis.call('HGET', EXTRA .. id, 'order')
  if not order then
    order = redis.call('HINCRBY', META, 'seq', 1)
    redis.call('HSET', EXTRA .. id, 'order', order)
  end
  redis.call('HSET', EXTRA .. id, 'tags', cjson.encode(tags_put(id, have, wanted, order)))
  set_letter(id, 't', true)
  if keep ~= '' and redis.call('HSETNX', EXTRA .. id, 'keep', keep) == 1 then
    set_letter(id, 'r', true)
  end
  return 'done'
end

local function take_from(id)
  local taken, rest = {}, {}
  for _, tag in ipairs(wanted) do
    taken[tag] = true
  end
  for _, tag in ipairs(tags_of(id)) do
    if taken[tag] then
      tag_leave(id, tag)
    else
      rest[#rest + 1] = tag
    end
  end
  if #rest > 0 then
    redis.call('HSET', EXTRA .. id, 'tags', cjson.encode(rest))
  else
    redis.call('HDEL', EXTRA .. id, 'tags')
    set_letter(id, 't', false)
  end
  return 'done'
end

return act(6, function(id)
  local job = find(id)
  if not job or job.state == 'nowhere' then
    return 'unknown'
  end
  return (give and give_to or take_from)(id)
end)
