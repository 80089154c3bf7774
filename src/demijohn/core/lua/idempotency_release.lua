-- Purpose: give back a key that the caller holds, so that a retry runs; the twin of
--   decide_release.
-- KEYS: the row.
-- ARGV: [1] the key that waiters wait on, [2] token, [3] retention of the fence in ms.
-- Return: released(), or fenced(state, frame).
-- include: idempotency_rows.lua

return function(keys, args)
  local key = keys[1]
  local row = read(key, 's', 'f', 'a', 't', 'u', 'k', 'w')
  local state = state_of(key, row)
  local own = owns(row, args[2])
  if not own or state == COMPLETED or state == EXPIRED then return fenced(key, state) end
  if state == ABSENT then return {'released', 0} end  -- the reply to the first was lost
  wake(args[1], data(row, 'w'))
  replace(key, released(row, data(row, 't'), tonumber(args[3])))
  return {'released', 0}
end
