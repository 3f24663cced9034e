-- The parts of what lib/owner.lua describes.
local function owner_token(owner)
  return string.match(owner, '^[^;]*')
end

local function owner_place(owner)
  return string.match(owner, '^[^;]*;(%-?%d+)%a*;')
end

local function owner_worker(owner)
  return string.match(owner, ';([^;]*)$')
end
