-- Purpose: run the steps of one Store.run, stop behind the first that halts, write, wake.
-- KEYS: the rows of all steps, one behind the other.
-- ARGV: [1], [2] see prelude.lua; then for each step: the number of its kind in `kinds`, how many
--       of KEYS are its own, how many arguments follow, how many other arguments follow these, the
--       arguments, and the others: with them it is decided when a later step of the run halts.
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
  return {unpack(from, first, first + count - 1)}
end

-- Decide all steps, those before number `halted` with their other arguments where they have such.
local function decide(halted)
  local outcomes, spared = {}, false
  local key, arg, step = 1, 3, 1
  while ARGV[arg] do
    local kind, keys = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1])
    local args, others = tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3])
    local from, count = arg + 4, args
    if step < halted and others > 0 then from, count = from + args, others end
    local outcome = kinds[kind](slice(KEYS, key, keys), slice(ARGV, from, count))
    outcomes[#outcomes + 1] = outcome
    if outcome[2] == 1 then
      if not spared or halted > 0 then break end
      order, noted, woken = {}, {}, {}
      return decide(step)
    end
    spared = spared or others > 0
    key = key + keys
    arg = arg + 4 + args + others
    step = step + 1
  end
  return outcomes
end

clock()
local whole, outcomes = pcall(decide, 0)
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
