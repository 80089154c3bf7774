-- Purpose: a quota per rolling window; the twin of core/limits/window.py, which explains it.
-- KEYS, ARGV: none of its own.
-- Return: nothing. Fields i, 0 to 10.

local PARTS, RING = 10, 11
local SLOTS = {[0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '10'}

local window = {}

function window.load(key)
  return read(key, 'i', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '10')
end

-- What is counted: the present part, numbers and counts of parts (oldest first), their sum, whether
-- the row can be gone on with.
local function counts_of(row, part)
  local seen = {index = divided(now, part), numbers = {}, counts = {}, used = 0, goes_on = false}
  if not row then return seen end
  local newest = int(row, 'i')
  if newest > seen.index then
    if newest - seen.index > RING then return seen end
    seen.index = newest
  end
  seen.goes_on, seen.newest = seen.index - newest < RING, newest
  for number = seen.index - PARTS, newest do
    local count = row[SLOTS[number % RING]]
    count = count and tonumber(count) or 0
    if count ~= 0 then
      seen.numbers[#seen.numbers + 1] = number
      seen.counts[#seen.counts + 1] = count
      seen.used = seen.used + count
    end
  end
  return seen
end

local function freed(seen, units, part)
  for i, count in ipairs(seen.counts) do
    units = units - count
    if units <= 0 then return (seen.numbers[i] + RING) * part - now end
  end
  return 0
end

local function window_quota(seen, amount, part)
  return floor_zero(amount - seen.used), freed(seen, floor_zero(seen.used - amount) + 1, part)
end

local function add_to_window(key, row, seen, part, cost)
  local slot, expiry = SLOTS[seen.index % RING], (seen.index + RING) * part
  if seen.newest == seen.index then
    local counted = {[slot] = int(row, slot) + cost}
    if int(row, 'x') ~= expiry then counted.x = expiry end  -- a refund has left an earlier one
    return update(key, counted)
  end
  local new = {x = expiry, i = seen.index, [slot] = cost}
  if not seen.goes_on then return replace(key, new) end
  for number = seen.newest + 1, seen.index - 1 do
    if row[SLOTS[number % RING]] then new[SLOTS[number % RING]] = false end
  end
  update(key, new)
end

function window.take(key, row, rule)
  local amount, part, cost = rule[2], divided_up(rule[3], PARTS), rule[5]
  local seen = counts_of(row, part)
  local left, reset = window_quota(seen, amount, part)
  if cost == 0 then return 0, left, reset, left, reset end
  if cost > amount then return NEVER, left, reset, left, reset end
  if cost > left then
    return freed(seen, seen.used + cost - amount, part), left, reset, left, reset
  end
  local later = reset
  if later == 0 then later = (seen.index + RING) * part - now end
  return 0, left, reset, left - cost, later, function()
    add_to_window(key, row, seen, part, cost)
  end
end

function window.charge(key, row, rule)
  local amount, part = rule[2], divided_up(rule[3], PARTS)
  local seen = counts_of(row, part)
  local cost = math.min(rule[5], floor_zero(2 * amount - seen.used))
  if cost > 0 then
    add_to_window(key, row, seen, part, cost)
    local last = #seen.numbers
    if seen.numbers[last] ~= seen.index then
      last = last + 1
      seen.numbers[last], seen.counts[last] = seen.index, 0
    end
    seen.counts[last] = seen.counts[last] + cost
    seen.used = seen.used + cost
  end
  return window_quota(seen, amount, part)
end

function window.refund(key, row, rule, at)
  local amount, part = rule[2], divided_up(rule[3], PARTS)
  local seen = counts_of(row, part)
  local left = {numbers = {}, counts = {}, used = 0}
  local new = {i = seen.index}
  for i, count in ipairs(seen.counts) do
    local number = seen.numbers[i]
    if number == divided(at, part) then count = count - rule[5] end
    if count > 0 then
      left.numbers[#left.numbers + 1] = number
      left.counts[#left.counts + 1] = count
      left.used = left.used + count
      new[SLOTS[number % RING]], new.x = count, (number + RING) * part
    end
  end
  if new.x then replace(key, new) else remove(key) end
  return window_quota(left, amount, part)
end

ALGORITHMS[1] = window
