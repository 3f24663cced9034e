-- Publish: stores messages that need nothing but a queue, as nearly all do.
--
-- ARGV, reply: see lib/publishing.lua
-- Cost  O(log n) per message; at most 200 messages a call
-- @include publishing
return publish(5, function(at, number, record)
  return store_new(ARGV[at], number, record)
end)
