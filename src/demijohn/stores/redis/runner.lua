-- Purpose: run the steps of one Store.run, stop behind the first that halts, write, wake.
-- KEYS: the rows of all steps, one behind the other.
-- ARGV: [1], [2] see prelude.lua; then for each step: the number of its kind in `kinds`, how many
--       of KEYS are its own, how many arguments follow, and these arguments.
-- Return: {how many rows were written, outcome, ...}; an outcome is {status, 1 if it halts else 0,
--         value, ...}. An unreadable row is an error that starts with CORRUPT; nothing is written.

local function clock()
  slack = tonumber(ARGV[2])
  if ARGV[1] ~= '' then
    now = tonumber(ARGV[1])
  else
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
end

local function slice(from, first, count)
  local part = {}
  for i = 1, count do part[i] = from[first + i - 1] end
  return part
end

local function decide()
  local outcomes = {}
  local key, arg = 1, 3
  while ARGV[arg] do
    local kind, keys, args = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    local outcome = kinds[kind](slice(KEYS, key, keys), slice(ARGV, arg + 3, args))
    outcomes[#outcomes + 1] = outcome
    if outcome[2] == 1 then break end
    key = key + keys
    arg = arg + 3 + args
  end
  return outcomes
end

clock()
local whole, outcomes = pcall(decide)
if not whole then
  if type(outcomes) ~= 'table' then error(outcomes, 0) end
  return redis.error_reply(outcomes.corrupt or outcomes.err)
end
for _, key in ipairs(order) do write(key, noted[key]) end
-- A user who may not publish still gets the answer: the rows are written, and waiters look again
-- once a second.
for _, message in ipairs(woken) do redis.pcall('PUBLISH', message[2], message[1]) end
table.insert(outcomes, 1, #order)
return outcomes
