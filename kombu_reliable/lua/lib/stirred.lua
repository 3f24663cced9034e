-- Whether this call has put something into RELEASES, see lib/dependency.lua.
local stirred = false
