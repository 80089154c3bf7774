-- Purpose: extend the lease of a key that the caller holds; the twin of decide_renew.
-- KEYS: the row.
-- ARGV: [1] token, [2] lease in ms from now.
-- Return: renewed(), or fenced(state, frame).
-- include: idempotency_rows.lua

return function(keys, args)
  local key, lease_ms = keys[1], tonumber(args[2])
  local row = read(key, 's', 't', 'l', 'u', 'k')
  local state = state_of(key, row)
  local own = owns(row, args[1])
  -- UNKNOWN: the owner that was believed lost lives after all.
  if not own or (state ~= RUNNING and state ~= UNKNOWN) then return fenced(key, state) end
  -- Retention counts from the end of the lease, so both move together.
  local moved = now + lease_ms - int(row, 'l')
  update(key, {s = RUNNING, l = now + lease_ms, x = int(row, 'x') + moved})
  return {'renewed', 0}
end
