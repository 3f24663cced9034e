-- Tells those who wait for a job that it has ended: outcome 'ok', 'failed' or 'gone'.
local function ended(id, outcome, now)
end

-- A waiting job ends, and waits for nothing any more.
local function forsake(id)
end
