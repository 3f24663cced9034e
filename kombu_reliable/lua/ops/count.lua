-- Count: adds what a worker has counted to the statistics of today, at most once.
--
-- ARGV  now | '', lane, number of the call in its lane, for how long it is kept (ms), then per entry
--       a JSON array: queue, task, {name of a counter: how often},
--         then for the waits and for the runs: count, mean, sum of squared differences from
--         the mean, smallest, largest (ms), {bucket, how often, bucket, how often ...}; or {}
-- Reply 1 if it was counted, 0 if this call was made before
-- Cost  O(1) per bucket; at most 500 of them and of counters a call
-- @include clock
-- @include layout
-- @include nonce
local version = redis.call('HGET', META, 'v')
if foreign(version) then
  return refuse(version)
end
-- This write may grow, so a full server refuses here.
if remember(ARGV[2], ARGV[3], 1) == 1 then
  return 0
end
if not version then
  redis.call('HSET', META, 'v', LAYOUT)
end

local DAY = 86400000 -- ms
local MOST = 5000 -- pairs of a queue and a task a day; what comes beyond is counted as one
local now = clock()
local day = math.floor(now / DAY)
local life = string.format('%.0f', (day + 1) * DAY + tonumber(ARGV[4]) - now)
local index = COUNTED .. day

local function key_of(queue, task)
  local pair = #queue .. ':' .. queue .. task
  if redis.call('SISMEMBER', index, pair) == 0 then
    if redis.call('SCARD', index) >= MOST then
      pair = 0 .. ':' -- of no queue and no task
    end
    redis.call('SADD', index, pair)
  end
  return STATS .. day .. ':' .. pair
end

local function text(number)
  return string.format('%.17g', number)
end

-- Two means and sums of squares become one without the loss of digits that adding squares costs.
local function merge(key, kind, count, mean, squares, low, high, buckets)
  local old = redis.call('HMGET', key, kind .. '_count', kind .. '_mean', kind .. '_squares',
    kind .. '_min', kind .. '_max')
  local before = tonumber(old[1] or nil) or 0
  if before > 0 then
    local all, distance = before + count, mean - tonumber(old[2])
    squares = tonumber(old[3]) + squares + distance * distance * before * count / all
    mean = tonumber(old[2]) + distance * count / all
    low, high = math.min(low, tonumber(old[4])), math.max(high, tonumber(old[5]))
    count = all
  end
  redis.call('HSET', key, kind .. '_count', text(count), kind .. '_mean', text(mean),
    kind .. '_squares', text(squares), kind .. '_min', text(low), kind .. '_max', text(high))
  for i = 1, #buckets, 2 do
    redis.call('HINCRBY', key, kind .. buckets[i], buckets[i + 1])
  end
end

local function count(entry)
  local queue, task, counters, waits, runs = unpack(entry)
  local key = key_of(queue, task)
  for name, often in pairs(counters) do
    redis.call('HINCRBY', key, name, often)
  end
  if #waits > 0 then
    merge(key, 'w', unpack(waits))
  end
  if #runs > 0 then
    merge(key, 'r', unpack(runs))
  end
  redis.call('PEXPIRE', key, life)
end

for i = 5, #ARGV do
  -- Foreign data under one key must not keep the others from being counted.
  pcall(count, cjson.decode(ARGV[i]))
end
redis.pcall('PEXPIRE', index, life)
return 1
