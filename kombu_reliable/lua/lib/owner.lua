-- Who holds a leased job: '<token>;<place in the ready queue><features>;<worker>'.
local function owned_by(owner, token)
  return owner and string.sub(owner, 1, #token + 1) == token .. ';'
end
