-- Purpose: take from all limits of a request or from none; the twin of decide_take.
-- KEYS: the row of each limit.
-- ARGV: [1] a tag that comes back, [2] 1 to take as much as there is of what is asked,
--       [3] token of a place, [4] inbox to be woken when a place is free, "" for none; then for each
--       limit: algorithm (0: leave it out; +16: refuse nothing), amount, window in ms, burst, cost.
-- Return: taken(tag, now, granted, ...), or halting: refused(tag, now, 0, ...); then for each limit:
--         left, ms until there is more, wait in ms (0: it admits).
-- include: limits_rows.lua

local SHADOW = 16

-- Returns for each limit its rule and the results of its take behind it, {0} for one left out;
-- whether any refuses; the least that is left of any.
local function take_each(keys, rules, token)
  local taken, refused, least = {}, false, nil
  for i, key in ipairs(keys) do
    local rule = rules[i]
    local algorithm = ALGORITHMS[rule[1] % SHADOW]
    taken[i] = {0}
    if algorithm then
      local row = algorithm.load(key)
      taken[i] = {algorithm.take(key, row, rule, token)}
      taken[i].row = row
      if rule[1] < SHADOW then
        if taken[i][1] ~= 0 then refused = true end
        if not least or taken[i][2] < least then least = taken[i][2] end
      end
    end
  end
  return taken, refused, least
end

local function admitted(tag, granted, taken)
  local outcome = {'taken', 0, tag, now, granted}
  for _, each in ipairs(taken) do
    outcome[#outcome + 1] = each[4] or 0
    outcome[#outcome + 1] = each[5] or 0
    outcome[#outcome + 1] = each[1]
    if each[6] then each[6]() end
  end
  return outcome
end

local function await(key, row, inbox)
  local waiters = data(row, 'w')
  if waiters == '' then
    update(key, {w = inbox})
  elseif not find('\n' .. waiters .. '\n', '\n' .. inbox .. '\n', 1, true) then
    update(key, {w = waiters .. '\n' .. inbox})
  end
end

return function(keys, args)
  local rules, asked = {}, 0
  for i = 1, #keys do
    rules[i] = rule_at(args, 4 + (i - 1) * 5)
    asked = math.max(asked, rules[i][5])
  end
  local tag, inbox = tonumber(args[1]), args[4]
  local taken, refused, least = take_each(keys, rules, args[3])
  if not refused then return admitted(tag, asked, taken) end
  if args[2] == '1' and least > 0 then
    local granted = math.min(asked, least)
    for i = 1, #keys do rules[i][5] = math.min(rules[i][5], granted) end
    return admitted(tag, granted, (take_each(keys, rules, args[3])))
  end
  local outcome = {'refused', 1, tag, now, 0}
  for i, each in ipairs(taken) do
    outcome[#outcome + 1] = each[2] or 0
    outcome[#outcome + 1] = each[3] or 0
    outcome[#outcome + 1] = each[1]
    if inbox ~= '' and rules[i][1] == LEASES and each.row and each[1] > 0 then
      await(keys[i], each.row, inbox)
    end
  end
  return outcome
end
