-- Purpose: what the five steps of idempotency share; the twins of state_of, _fenced, _completed,
--   _released and _wakes in core/idempotency/decisions.py.
-- KEYS, ARGV: none of its own.
-- Return: nothing. It defines state_of, owns, fenced, completed, released, and the states.
-- Fields of a row: s state, f fence, a attempt, t token, p fingerprint, l lease until, u retained
--   until, k tombstone, r frame, w waiters' inboxes, c since; instants in milliseconds.

local ABSENT, RUNNING, COMPLETED, UNKNOWN, EXPIRED = 0, 1, 2, 3, 4

-- The state of a key from its row (nil: none). A completed record ends when its retention does.
local function state_of(key, row)
  if not row then return ABSENT end
  local state = int(row, 's')
  if not row.s or not find(row.s, '^[0-4]$') then
    corrupt(key, 'the row has no valid state')
  end
  if state == COMPLETED and now >= int(row, 'u') then
    if int(row, 'k') ~= 0 then return EXPIRED end
    return ABSENT
  end
  return state
end

local function owns(row, token)
  return row ~= nil and row.t ~= nil and data(row, 't') == token
end

-- The caller does not hold the key; what the winner stored, if it has, is the answer.
local function fenced(key, state)
  local frame = ''
  if state == COMPLETED then frame = peek(key, 'r') end
  return {'fenced', 0, state, frame}
end

local function completed(row, token, frame, ttl_ms, retain_ms, tombstone_ms)
  local tombstone = 0
  if tombstone_ms > 0 then tombstone = 1 end
  return {
    s = COMPLETED, f = int(row, 'f'), a = int(row, 'a'), t = token, p = data(row, 'p'),
    r = frame, u = now + ttl_ms, k = tombstone, c = now,
    x = now + ttl_ms + math.max(retain_ms, tombstone_ms),
  }
end

local function released(row, token, retain_ms)
  return {
    s = ABSENT, f = int(row, 'f'), a = int(row, 'a'), t = token, c = now, x = now + retain_ms,
  }
end
