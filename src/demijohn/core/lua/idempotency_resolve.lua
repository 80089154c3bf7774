-- Purpose: decide, as an operator, a key whose outcome is unknown; the twin of decide_resolve.
-- KEYS: the row.
-- ARGV: [1] the key that waiters wait on, [2] frame ("": let a retry run), [3] ttl in ms,
--       [4] retention in ms.
-- Return: resolved(), or refused(state).
-- include: idempotency_rows.lua

return function(keys, args)
  local key = keys[1]
  local row = read(key, 's', 'f', 'a', 'p', 'l', 'u', 'k', 'w')
  local state = state_of(key, row)
  local lost = state == RUNNING and now >= int(row, 'l')
  if not lost and state ~= UNKNOWN then return {'refused', 0, state} end
  local ttl_ms, retain_ms = tonumber(args[3]), tonumber(args[4])
  wake(args[1], data(row, 'w'))
  -- Without a token the owner that may still live is fenced from here on.
  if args[2] ~= '' then
    replace(key, completed(row, '', args[2], ttl_ms, retain_ms, 0))
  else
    replace(key, released(row, '', retain_ms))
  end
  return {'resolved', 0}
end
