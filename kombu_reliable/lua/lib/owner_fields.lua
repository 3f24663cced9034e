-- The parts of what lib/owner.lua describes that hardly any claim or settlement needs.
local function owner_token(owner)
  return string.match(owner, '^[^;]*')
end

local function owner_place(owner)
  return string.match(owner, '^[^;]*;(%-?%d+)%a*;')
end

local function owner_worker(owner)
  return string.match(owner, ';([^;]*)$')
end
