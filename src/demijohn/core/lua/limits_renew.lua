-- Purpose: keep a place for another lease; the twin of decide_renew in core/limits.
-- KEYS: the row.
-- ARGV: [1] token, [2] lease in ms from now.
-- Return: renewed(), or fenced() if the lease has lapsed.
-- include: limits_rows.lua
-- include: limits_instants.lua
-- include: limits_leases.lua

return function(keys, args)
  local row, lease_ms = leases.load(keys[1]), tonumber(args[2])
  local places, own = places_of(row, lease_ms, args[1])
  if not own then return {'fenced', 0} end
  places[own][2] = now + lease_ms
  write_places(keys[1], places, data(row, 'w'))
  return {'renewed', 0}
end
