-- Since when a job waits to be claimed, where that is neither the time of its publish nor the delay
-- that it was published with: in its EXTRA hash, '<ms>', with ' lost' behind it if its worker lost
-- it.  What is older than the publish was said of an earlier run.  Who calls this marks the job.
local function waits_since(id, at, lost)
  redis.pcall('HSET', EXTRA .. id, 'since', string.format('%.0f', at) .. (lost and ' lost' or ''))
end
