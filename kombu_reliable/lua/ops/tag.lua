-- Tag: gives tags to jobs, or takes them away.
--
-- ARGV  now | '', '1' to give, '0' to take, tags (JSON list), how many a job may have,
--       for how long they are kept once completed, if nobody has said so ('<ms>;<number>', ''),
--       then the keys of the jobs
-- Reply per job: done, unknown, too-many (it keeps those that it had)
-- Cost  O(log n) per job and tag; at most 25 jobs a call
-- @include acting
-- @include marks
-- @include whereabouts
local give, wanted, most, keep = ARGV[2] == '1', cjson.decode(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

local function give_to(id)
  if not tags_give(id, wanted, most) then
    return 'too-many'
  end
  mark(id, 't', keep)
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
