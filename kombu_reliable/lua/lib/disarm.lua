-- A queue that a job has left may need nobody any more.  What is delayed may: the marker may
-- stand for the clock that somebody has to watch.
local function disarm(queue)
  if redis.call('EXISTS', READY .. queue, DELAYED .. queue, TICKETS .. queue) == 0 then
    redis.call('DEL', WAKE .. queue)
  end
end
