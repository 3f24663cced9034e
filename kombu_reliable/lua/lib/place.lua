-- The place in a ready queue: a higher rank first, in order of arrival inside a rank.
-- 2^45 arrivals fit a rank, and 255 * 2^45 + 2^45 is still an exact double.
local function place(rank, sequence)
  return sequence - rank * 35184372088832
end
