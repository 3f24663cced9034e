-- Overview: what there is to measure about queues, and the counters of the namespace.
--
-- ARGV  now | '', then the names of queues
-- Reply now (ms), leases lost, settlements fenced, dead letters trimmed, ends untold; then per queue:
--       ready, delayed, waiting, leased, failed, throttled, 1 if it is paused, for how long the job
--       has waited that is ready or throttled and waits for longest (ms; -1: none)
-- Cost  O(log n) per queue, for each of its priorities; at most 100 queues a call
-- @include clock
-- @include layout
local meta = redis.call('HMGET', META, 'v', 'expired', 'fenced', 'trimmed', 'untold')
if foreign(meta[1]) then
  return refuse(meta[1])
end
local now = clock()
local SPAN = 35184372088832 -- of the scores of one rank, see lib/place.lua
local RANKS = 16 -- of which the first in line is looked at
local reply = {now}
for i = 2, 5 do
  reply[i] = tonumber(meta[i] or 0) or 0
end

-- Foreign data is nothing of ours to be counted.
local function size(key)
  local count = redis.pcall('ZCARD', key)
  return type(count) == 'number' and count or 0
end

-- Since when a ready job waits: as its record, its EXTRA hash or its delay say.
local function waits_since(id)
  local head = redis.pcall('GETRANGE', JOB .. id, 0, 99)
  local published, length = string.match(type(head) == 'string' and head or '',
    '^[-x]%d%d%d(' .. string.rep('%d', 13) .. ')(%d%d%d%d)')
  if not published then
    return now
  end
  published = tonumber(published)
  if string.sub(head, 1, 1) == 'x' then
    local since = redis.pcall('HGET', EXTRA .. id, 'since')
    since = type(since) == 'string' and tonumber(string.match(since, '^%d+'))
    if since and since >= published then
      return since
    end
  end
  local from = 21 + tonumber(length)
  local sign, due = string.match(redis.call('GETRANGE', JOB .. id, from, from + 30), '^@(%+?)(%d+);')
  if not due then
    return published
  end
  return math.max(published, sign == '+' and published + due or tonumber(due))
end

-- Inside a rank the first in line came first, or nearly so.
local function oldest(key)
  local since, least = now, '-inf'
  for _ = 1, RANKS do
    local found = redis.pcall('ZRANGEBYSCORE', key, least, '+inf', 'WITHSCORES',
      'LIMIT', 0, 1)
    if not found[1] then
      break
    end
    since = math.min(since, waits_since(found[1]))
    least = string.format('%.0f', (math.floor(tonumber(found[2]) / SPAN) + 1) * SPAN)
  end
  return now - since
end

for i = 2, #ARGV do
  local queue = ARGV[i]
  local ready, throttled = size(READY .. queue), size(THROTTLED .. queue)
  for _, count in ipairs({ready, size(DELAYED .. queue), size(WAITING .. queue),
      size(LEASED .. queue), size(DEAD .. queue), throttled}) do
    reply[#reply + 1] = count
  end
  reply[#reply + 1] = redis.call('SISMEMBER', PAUSED, queue)
  reply[#reply + 1] = math.max(ready > 0 and oldest(READY .. queue) or -1,
    throttled > 0 and oldest(THROTTLED .. queue) or -1)
end
return reply
