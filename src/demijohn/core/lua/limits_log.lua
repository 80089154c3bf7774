-- Purpose: an exact log; the twin of core/limits/log.py, which explains it.
-- KEYS, ARGV: none of its own.
-- Return: nothing. Field h.

local log = {}

function log.load(key) return read(key, 'h') end

-- How many instants are not after `instant`.
local function not_after(history, instant)
  local low, high = 0, divided(#history, INSTANT)
  while low < high do
    local middle = divided(low + high, 2)
    if instant_at(history, middle * INSTANT) <= instant then low = middle + 1 else high = middle end
  end
  return low
end

local function live_history(row, window_ms)
  local history = data(row, 'h')
  if #history < INSTANT then return now, '' end
  local newest = instant_at(history, #history - INSTANT)
  if newest > now + window_ms then return now, '' end
  return math.max(newest, now), sub(history, not_after(history, now - window_ms) * INSTANT + 1)
end

local function leaves(history, units, window_ms)
  return instant_at(history, (units - 1) * INSTANT) + window_ms - now
end

local function log_quota(history, amount, window_ms)
  local used = divided(#history, INSTANT)
  if used == 0 then return amount, 0 end
  local more, reset = floor_zero(used - amount) + 1, 0
  if more <= used then reset = leaves(history, more, window_ms) end
  return floor_zero(amount - used), reset
end

local function write_history(key, history, window_ms)
  replace(key, {x = instant_at(history, #history - INSTANT) + window_ms, h = history})
end

function log.take(key, row, rule)
  local amount, window_ms, cost = rule[2], rule[3], rule[5]
  local at, history = live_history(row, window_ms)
  local left, reset = log_quota(history, amount, window_ms)
  if cost == 0 then return 0, left, reset, left, reset end
  if cost > amount then return NEVER, left, reset, left, reset end
  local lacking = divided(#history, INSTANT) + cost - amount
  if lacking > 0 then return leaves(history, lacking, window_ms), left, reset, left, reset end
  history = history .. string.rep(pack_instant(at), cost)
  local after, later = log_quota(history, amount, window_ms)
  return 0, left, reset, after, later, function() write_history(key, history, window_ms) end
end

function log.charge(key, row, rule)
  local amount, window_ms = rule[2], rule[3]
  local at, history = live_history(row, window_ms)
  local cost = math.min(rule[5], floor_zero(2 * amount - divided(#history, INSTANT)))
  if cost > 0 then
    history = history .. string.rep(pack_instant(at), cost)
    write_history(key, history, window_ms)
  end
  return log_quota(history, amount, window_ms)
end

function log.refund(key, row, rule, at)
  local _, history = live_history(row, rule[3])
  local finish = not_after(history, at)
  local first = math.max(not_after(history, at - 1), finish - rule[5])
  history = sub(history, 1, first * INSTANT) .. sub(history, finish * INSTANT + 1)
  if history ~= '' then write_history(key, history, rule[3]) else remove(key) end
  return log_quota(history, rule[2], rule[3])
end

ALGORITHMS[4] = log
