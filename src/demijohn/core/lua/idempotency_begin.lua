-- Purpose: claim an idempotency key, or learn what stands in the way; the twin of decide_begin.
-- KEYS: the name of the row; behind it the names that earlier secrets gave it.
-- ARGV: [1] fingerprint, [2] token, [3] lease in ms, [4] retention in ms,
--       [5] what a lapsed lease leads to (0 run, 1 refuse), [6] inbox of the caller, "" for none.
-- Return: run(index, fence, attempt, taken_over), or halting: replay(index, frame),
--         busy(index, lease_left_ms), unknown(index, since_ms), mismatch(index), expired(index);
--         index counts KEYS from 0.
-- include: idempotency_rows.lua

-- The row to work on: the first that holds a record, else the first that ever did.
local function found(keys)
  local remains, remains_at
  for i, key in ipairs(keys) do
    local row = read(key, 's', 'f', 'a', 't', 'p', 'l', 'u', 'k', 'w', 'c')
    local state = state_of(key, row)
    if state ~= ABSENT then return i, row, state end
    if row and not remains then remains, remains_at = row, i end
  end
  return remains_at or 1, remains, ABSENT
end

local function run(key, index, row, state, own, args)
  local lease_ms, retain_ms = tonumber(args[3]), tonumber(args[4])
  local repeated = state == RUNNING and own
  local step = 1
  if repeated then step = 0 end
  -- An attempt goes on counting after a loss or a release; a completed record was the end of one.
  local attempt = step
  if int(row, 's') ~= COMPLETED then attempt = int(row, 'a') + step end
  local fence = int(row, 'f') + step
  local new = {
    s = RUNNING, f = fence, a = attempt, t = args[2], p = args[1], l = now + lease_ms, c = now,
    x = now + lease_ms + retain_ms,
  }
  if repeated then new.c = int(row, 'c') end
  local waiters = data(row, 'w')
  if state == RUNNING and waiters ~= '' then new.w = waiters end
  replace(key, new)
  local taken_over = 0
  if state == RUNNING and not own then taken_over = 1 end
  return {'run', 0, index, fence, attempt, taken_over}
end

local function busy(key, index, row, inbox)
  local waiters = data(row, 'w')
  local known = string.find('\n' .. waiters .. '\n', '\n' .. inbox .. '\n', 1, true)
  if inbox ~= '' and waiters == '' then
    update(key, {w = inbox})
  elseif inbox ~= '' and not known then
    update(key, {w = waiters .. '\n' .. inbox})
  end
  return {'busy', 1, index, int(row, 'l') - now}
end

local function unknown(key, index, row, state)
  if state == UNKNOWN then return {'unknown', 1, index, int(row, 'c')} end
  update(key, {s = UNKNOWN, c = now, w = false})
  return {'unknown', 1, index, now}
end

return function(keys, args)
  local at, row, state = found(keys)
  local key, index = keys[at], at - 1
  local own = owns(row, args[2])
  if state == ABSENT then return run(key, index, row, state, own, args) end
  if state == EXPIRED then return {'expired', 1, index} end
  if data(row, 'p') ~= args[1] then return {'mismatch', 1, index} end
  if state == COMPLETED then return {'replay', 1, index, peek(key, 'r')} end
  if state == UNKNOWN then return unknown(key, index, row, state) end
  if own then return run(key, index, row, state, own, args) end
  if now < int(row, 'l') then return busy(key, index, row, args[6]) end
  if tonumber(args[5]) == 1 then return unknown(key, index, row, state) end
  return run(key, index, row, state, own, args)
end
