-- Further live jobs under the id of another one have keys of their own, '~<sequence>~<id>', and
-- are listed under the id, so that whoever asks for it finds them all.
local function leave_twin(key)
  if string.byte(key) == 126 then
    local id = string.match(key, '^~%d+~(.*)$')
    if id then
      redis.pcall('SREM', TWINS .. id, key) -- foreign data there is nothing to leave
    end
  end
end
