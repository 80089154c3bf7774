-- Purpose: what the steps of limits share. The algorithms are files of their own, of which a script has
--   those that its steps need; they put themselves into ALGORITHMS, by number.
-- KEYS, ARGV: none of its own.
-- Return: nothing. Of an algorithm: load(key) returns the row; take(key, row, rule) returns 0 or the
--   wait in ms, the quota before (left, ms until there is more), the quota after, and a function that
--   writes; charge(key, row, rule) and refund(key, row, rule, at) return the quota and write.
-- A rule is {algorithm, amount, window in ms, burst, cost}.

local NEVER, LEASES = -1, 5
local ALGORITHMS = {}

local function divided(a, b) return (a - a % b) / b end       -- floor, exact below 2^53
local function divided_up(a, b) return divided(a + b - 1, b) end
local function floor_zero(a) if a > 0 then return a end return 0 end

-- The rule that begins behind args[at].
local function rule_at(args, at)
  return {
    tonumber(args[at + 1]), tonumber(args[at + 2]), tonumber(args[at + 3]), tonumber(args[at + 4]),
    tonumber(args[at + 5]),
  }
end
