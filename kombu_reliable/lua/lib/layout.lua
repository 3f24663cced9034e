-- Data of an unknown layout is refused before anything is read or written.
-- A missing version is an empty namespace: the publish that fills it sets the version.
local function foreign(version)
  return version and version ~= LAYOUT
end

local function refuse(version)
  return redis.error_reply('KRLAYOUT the data has layout ' .. version ..
    ', this version of kombu_reliable reads layout ' .. LAYOUT)
end
