-- Purpose: a rate with a burst; the twin of core/limits/gcra.py, which explains it.
-- KEYS, ARGV: none of its own.
-- Return: nothing. Fields s, f, c.

local gcra = {}

function gcra.load(key) return read(key, 's', 'f', 'c') end

local function arrival_of(row, window_ms)
  if not row or int(row, 'c') > now + window_ms then return now, 0 end
  local whole = int(row, 's')
  if whole < now then return now, 0 end
  return whole, int(row, 'f')
end

local function gcra_quota(missing, amount, window_ms, burst)
  local room = burst * window_ms - missing
  if missing == 0 then return burst, 0 end
  local left = 0
  if room > 0 then left = divided(room, window_ms) end
  return left, divided_up((left + 1) * window_ms - room, amount)
end

local function write_arrival(key, whole, fraction, amount, by)
  local sum = fraction + by
  whole = whole + divided(sum, amount)
  replace(key, {x = whole + 1, s = whole, f = sum % amount, c = now})
end

function gcra.take(key, row, rule)
  local amount, window_ms, burst, cost = rule[2], rule[3], rule[4], rule[5]
  local whole, fraction = arrival_of(row, window_ms)
  local missing = (whole - now) * amount + fraction
  local left, reset = gcra_quota(missing, amount, window_ms, burst)
  if cost == 0 then return 0, left, reset, left, reset end
  if cost > burst then return NEVER, left, reset, left, reset end
  local needed = cost * window_ms
  local lacking = missing + needed - burst * window_ms
  if lacking > 0 then return divided_up(lacking, amount), left, reset, left, reset end
  local after, later = gcra_quota(missing + needed, amount, window_ms, burst)
  return 0, left, reset, after, later, function()
    write_arrival(key, whole, fraction, amount, needed)
  end
end

function gcra.charge(key, row, rule)
  local amount, window_ms, burst = rule[2], rule[3], rule[4]
  local whole, fraction = arrival_of(row, window_ms)
  local missing = (whole - now) * amount + fraction
  local room = 2 * burst * window_ms - missing
  local cost = 0
  if room > 0 then cost = math.min(rule[5], divided(room, window_ms)) end
  if cost > 0 then write_arrival(key, whole, fraction, amount, cost * window_ms) end
  return gcra_quota(missing + cost * window_ms, amount, window_ms, burst)
end

function gcra.refund(key, row, rule)
  local amount, window_ms, burst = rule[2], rule[3], rule[4]
  local whole, fraction = arrival_of(row, window_ms)
  local missing = floor_zero((whole - now) * amount + fraction - rule[5] * window_ms)
  if missing > 0 then write_arrival(key, now, 0, amount, missing) else remove(key) end
  return gcra_quota(missing, amount, window_ms, burst)
end

ALGORITHMS[2] = gcra
