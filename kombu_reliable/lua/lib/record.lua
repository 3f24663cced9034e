-- A job's record is one string: flag, rank, time of publish, queue, envelope.
--   1      '-', or 'x' when the job has an EXTRA hash
--   2-4    rank 0-255 (higher runs first), three digits
--   5-17   time of publish, ms
--   18-21  length of the queue's name in bytes, four digits
--   22-    the queue's name, then the envelope
local RECORD_HEAD = 21

local function mark_extra(id)
  -- Only what is there: SETRANGE would make a broken record of a missing one.
  if redis.call('EXISTS', JOB .. id) == 1 then
    redis.call('SETRANGE', JOB .. id, 0, 'x')
  end
end

local function record_queue(record)
  return string.sub(record, RECORD_HEAD + 1, RECORD_HEAD + tonumber(string.sub(record, 18, 21)))
end
