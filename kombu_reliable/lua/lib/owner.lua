-- Who holds a leased job: '<token>;<place in the ready queue>;<worker>'.
local function owner_token(owner)
  return string.match(owner, '^[^;]*')
end

local function owner_place(owner)
  return string.match(owner, '^[^;]*;(%-?%d+);')
end

local function owner_worker(owner)
  return string.match(owner, ';([^;]*)$')
end

local function owned_by(owner, token)
  return owner and string.sub(owner, 1, #token + 1) == token .. ';'
end
