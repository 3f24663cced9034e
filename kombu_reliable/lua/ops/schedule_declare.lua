-- Schedule declare: a program says which schedules its code declares, and that it is there.
--
-- Of the declarations of a name that living programs make, the newest one applies: that which was
-- seen first last.  It is applied once: what is changed at run time holds until another applies.
--
-- ARGV  now | '', queue of ticks, the set of declarations ('' if nobody stays for it),
--       how long it counts as living (ms),
--       then per schedule: name, digest, when, spec, rules, at, due
-- Reply the living sets, one string, behind a '!' if this one was not among them; then a word per
--       schedule: new, changed, same, older (a newer one applies), mended (nobody declared it for
--       a while)
-- Cost  O(log n) per schedule; at most 50 a call
-- @include clock
-- @include layout
-- @include schedule
local STRIDE, FIRST = 7, 5
local queue, set, life = ARGV[2], ARGV[3], tonumber(ARGV[4])
local version, keeper, paused = unpack(redis.call('HMGET', META, 'v', 'keeper', 'paused'))
if foreign(version) then
  return refuse(version)
end
pausing = paused
local now = clock()
redis.call('ZREMRANGEBYSCORE', DECLARERS, '-inf', now - life)
local back = set ~= '' and redis.call('ZADD', DECLARERS, now, set) == 1
local living, sets = {}, redis.call('ZRANGE', DECLARERS, 0, 99)
for _, one in ipairs(sets) do
  living[one] = true
end
table.sort(sets)
if #ARGV >= FIRST and not version then
  redis.call('HSET', META, 'v', LAYOUT)
end

-- The declarations of living programs, with this one among them, and the newest.
local function newest(decls, digest)
  local kept, best = {}, digest
  for one, about in pairs(decls) do
    if living[about.set] or one == digest then
      kept[one] = about
    end
  end
  kept[digest] = {set = set, first = kept[digest] and kept[digest].first or now}
  for one, about in pairs(kept) do
    local first = kept[best].first
    if about.first > first or about.first == first and one > best then
      best = one
    end
  end
  return kept, best
end

local function declare(name, digest, when, spec, rules, at, due)
  local key = SCHEDULE .. name
  local revision, applied, decls, old_when, old_at, old_due, deleted, orphaned =
    unpack(redis.call('HMGET', key, 'rev', 'digest', 'decls', 'when', 'at', 'due', 'deleted',
      'orphaned'))
  local kept, best = newest(decls and cjson.decode(decls) or {}, digest)
  redis.call('HSET', key, 'decls', cjson.encode(kept), 'rev', revision or 0)
  if best ~= digest then
    return 'older'
  end
  redis.call('HDEL', key, 'orphaned')
  if applied == digest then
    if deleted then
      return 'same'
    end
    if orphaned then
      plan(queue, name, old_at or '', old_due or '', now, keeper)
      return 'mended'
    end
    mend_tick(queue, name, now, keeper)
    return 'same'
  end
  redis.call('HDEL', key, 'deleted')
  redis.call('HSET', key, 'digest', digest, 'when', when, 'spec', spec, 'rules', rules,
    'rev', (revision or 0) + 1)
  if old_when == when and old_at and old_at ~= '' and not deleted then
    at, due = old_at, old_due -- another argument is no reason to fire at another time
  end
  local run = at == 'end' and redis.call('HGET', key, 'run')
  plan(queue, name, at, due, now, keeper, run and cjson.decode(run) or nil)
  return revision and not deleted and 'changed' or 'new'
end

local reply = {(back and '!' or '') .. table.concat(sets, ' ')}
for i = FIRST, #ARGV, STRIDE do
  reply[#reply + 1] = declare(unpack(ARGV, i, i + STRIDE - 1))
end
return reply
