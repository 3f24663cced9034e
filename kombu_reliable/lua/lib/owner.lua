-- Who holds a leased job: '<token>;<place in the ready queue><features>;<worker>'.
local function owned_by(owner, token)
  return owner and string.sub(owner, 1, #token + 1) == token .. ';'
end

-- The letters of the job's features, see lib/features.lua; nil if it has none.
local function owner_features(owner)
  return string.match(owner, '^[^;]*;%-?%d+(%a+);')
end
