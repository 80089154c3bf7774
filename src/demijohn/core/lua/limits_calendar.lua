-- Purpose: a quota per calendar period; the twin of core/limits/calendar.py, which explains it.
-- KEYS, ARGV: none of its own.
-- Return: nothing. Fields p, n; burst is the unit of the period.

local MONTH, YEAR, DAY_MS = 1, 2, 86400000

local calendar = {}

function calendar.load(key) return read(key, 'p', 'n') end

local function days_of(year, month)
  if month <= 2 then year, month = year - 1, month + 12 end
  local era = divided(year, 400)
  local of_era = year - era * 400
  local of_year = divided(153 * (month - 3) + 2, 5)
  return era * 146097 + of_era * 365 + divided(of_era, 4) - divided(of_era, 100) + of_year - 719468
end

local function civil(days)
  local era = divided(days + 719468, 146097)
  local day = days + 719468 - era * 146097
  local of_era = divided(
    day - divided(day, 1460) + divided(day, 36524) - divided(day, 146096), 365)
  local of_year = day - (365 * of_era + divided(of_era, 4) - divided(of_era, 100))
  local month = divided(5 * of_year + 2, 153) + 3
  local year = era * 400 + of_era
  if month > 12 then return year + 1, month - 12 end
  return year, month
end

local function period(instant, window_ms, unit)
  if unit == 0 then
    local start = instant - instant % window_ms
    return start, start + window_ms
  end
  local year, month = civil(divided(instant, DAY_MS))
  if unit == YEAR then return days_of(year, 1) * DAY_MS, days_of(year + 1, 1) * DAY_MS end
  local start = days_of(year, month) * DAY_MS
  if month == 12 then return start, days_of(year + 1, 1) * DAY_MS end
  return start, days_of(year, month + 1) * DAY_MS
end

local function used_in_period(row, rule)
  local start, finish = period(now, rule[3], rule[4])
  if not row then return start, finish, 0 end
  local counted = int(row, 'p')
  if counted == finish then start, finish = period(finish, rule[3], rule[4]) end
  if counted == start then return start, finish, int(row, 'n') end
  return start, finish, 0
end

local function calendar_quota(finish, used, amount)
  local reset = 0
  if used ~= 0 then reset = finish - now end
  return floor_zero(amount - used), reset
end

function calendar.take(key, row, rule)
  local amount, cost = rule[2], rule[5]
  local start, finish, used = used_in_period(row, rule)
  local left, reset = calendar_quota(finish, used, amount)
  if cost == 0 then return 0, left, reset, left, reset end
  if cost > amount then return NEVER, left, reset, left, reset end
  if used + cost > amount then return finish - now, left, reset, left, reset end
  local after, later = calendar_quota(finish, used + cost, amount)
  return 0, left, reset, after, later, function()
    replace(key, {x = finish, p = start, n = used + cost})
  end
end

function calendar.charge(key, row, rule)
  local start, finish, used = used_in_period(row, rule)
  local cost = math.min(rule[5], floor_zero(2 * rule[2] - used))
  if cost > 0 then replace(key, {x = finish, p = start, n = used + cost}) end
  return calendar_quota(finish, used + cost, rule[2])
end

function calendar.refund(key, row, rule, at)
  local start, finish, used = used_in_period(row, rule)
  if start <= at and at < finish then used = floor_zero(used - rule[5]) end
  if used > 0 then replace(key, {x = finish, p = start, n = used}) else remove(key) end
  return calendar_quota(finish, used, rule[2])
end

ALGORITHMS[3] = calendar
