-- Purpose: add to how many requests were refused; the twin of decide_tally.
-- KEYS: the row.
-- ARGV: [1] how many more, [2] how long to keep the sum, in ms, [3] what to call it.
-- Return: tallied(sum).

return function(keys, args)
  local total = int(read(keys[1], 'n'), 'n') + tonumber(args[1])
  replace(keys[1], {x = now + tonumber(args[2]), n = total, c = now, d = args[3]})
  return {'tallied', 0, total}
end
