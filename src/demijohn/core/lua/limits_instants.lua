-- Purpose: instants in bytes, as logs and leases have them; the twins of those in core/limits/row.py.
-- KEYS, ARGV: none of its own.
-- Return: nothing. It defines INSTANT, instant_at(packed, at) and pack_instant(instant).

local INSTANT = 6

local function instant_at(packed, at)
  local a, b, c, d, e, f = byte(packed, at + 1, at + INSTANT)
  return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
end

local function pack_instant(instant)
  local bytes = {}
  for i = INSTANT, 1, -1 do
    bytes[i] = instant % 256
    instant = divided(instant, 256)
  end
  return string.char(unpack(bytes))
end
