-- Purpose: store the response of a key that the caller holds; the twin of decide_complete.
-- KEYS: the row.
-- ARGV: [1] the key that waiters wait on, [2] token, [3] frame, [4] ttl in ms,
--       [5] retention in ms, [6] life of the tombstone in ms (0: none).
-- Return: completed(), or fenced(state, frame).
-- include: idempotency_rows.lua

return function(keys, args)
  local key = keys[1]
  local row = read(key, 's', 'f', 'a', 't', 'p', 'u', 'k', 'w')
  local state = state_of(key, row)
  local own = owns(row, args[2])
  if not own or state == ABSENT or state == EXPIRED then return fenced(key, state) end
  if state == COMPLETED then return {'completed', 0} end  -- the reply to the first was lost
  local ttl_ms, retain_ms, tombstone_ms = tonumber(args[4]), tonumber(args[5]), tonumber(args[6])
  wake(args[1], data(row, 'w'))
  replace(key, completed(row, data(row, 't'), args[3], ttl_ms, retain_ms, tombstone_ms))
  return {'completed', 0}
end
