-- Purpose: after the view, charge what it cost, give back what it did not, leave places; the twin of
--   decide_settle.
-- KEYS: the row of each limit.
-- ARGV: [1] token of a place; the key of each limit as waiters know it; then for each limit: act (0
--       none, 1 charge, 2 refund, 3 leave), algorithm (0: leave it out), amount, window in ms, burst,
--       cost, and when it was taken, in ms.
-- Return: settled(now, and for each limit: left, ms until there is more).
-- include: limits_rows.lua

local CHARGE, REFUND, LEAVE = 1, 2, 3

local function settle(key, name, token, act, rule, at)
  local algorithm = ALGORITHMS[rule[1]]
  if not algorithm then return 0, 0 end
  local row = algorithm.load(key)
  if act == LEAVE and rule[1] == LEASES then return algorithm.leave(key, row, rule, token, name) end
  if act == REFUND then return algorithm.refund(key, row, rule, at) end
  if act ~= CHARGE then rule[5] = 0 end
  return algorithm.charge(key, row, rule)
end

return function(keys, args)
  local outcome = {'settled', 0, now}
  for i, key in ipairs(keys) do
    local from = 1 + #keys + (i - 1) * 7
    local rule = rule_at(args, from + 1)
    local left, reset = settle(
      key, args[1 + i], args[1], tonumber(args[from + 1]), rule, tonumber(args[from + 7]))
    outcome[#outcome + 1] = left
    outcome[#outcome + 1] = reset
  end
  return outcome
end
