-- Purpose: forget what was taken; the twin of decide_reset.
-- KEYS: the rows.
-- ARGV: none.
-- Return: reset(how many there were).

return function(keys, args)
  local count = 0
  for _, key in ipairs(keys) do
    if read(key) then
      remove(key)
      count = count + 1
    end
  end
  return {'reset', 0, count}
end
