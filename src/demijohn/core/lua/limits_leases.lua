-- Purpose: how many run at the same time; the twin of core/limits/leases.py, which explains it.
-- KEYS, ARGV: none of its own.
-- Return: nothing. Fields l, w; the window is the lease.

local TOKEN, SOON_MS = 8, 1000

local leases = {}

function leases.load(key) return read(key, 'l', 'w') end

-- The leases that hold, in the order of entering: {token, end}; and the number of the one of `token`.
local function places_of(row, lease_ms, token)
  local packed, places, own = data(row, 'l'), {}, nil
  for at = 0, #packed - 1, INSTANT + TOKEN do
    local finish = instant_at(packed, at)
    if finish > now and finish <= now + 2 * lease_ms then
      local holder = sub(packed, at + INSTANT + 1, at + INSTANT + TOKEN)
      places[#places + 1] = {holder, finish}
      if holder == token then own = #places end
    end
  end
  return places, own
end

local function write_places(key, places, waiters)
  local parts, last = {}, 0
  for i, place in ipairs(places) do
    parts[i] = pack_instant(place[2]) .. place[1]
    last = math.max(last, place[2])
  end
  local new = {x = last, l = table.concat(parts)}
  if waiters ~= '' then new.w = waiters end
  replace(key, new)
end

function leases.take(key, row, rule, token)
  local amount, lease_ms = rule[2], rule[3]
  local places, own = places_of(row, lease_ms, token)
  local left = floor_zero(amount - #places)
  if rule[5] == 0 then return 0, left, 0, left, 0 end
  if amount == 0 then return NEVER, left, 0, left, 0 end
  if not own and left == 0 then return SOON_MS, left, 0, left, 0 end
  places[own or #places + 1] = {token, now + lease_ms}
  return 0, left, 0, floor_zero(amount - #places), 0, function()
    write_places(key, places, data(row, 'w'))
  end
end

function leases.charge(key, row, rule)
  return floor_zero(rule[2] - #places_of(row, rule[3])), 0
end

leases.refund = leases.charge

function leases.leave(key, row, rule, token, name)
  local places, own = places_of(row, rule[3], token)
  if own then
    wake(name, data(row, 'w'))
    table.remove(places, own)
    if #places > 0 then write_places(key, places, '') else remove(key) end
  end
  return floor_zero(rule[2] - #places), 0
end

ALGORITHMS[5] = leases
