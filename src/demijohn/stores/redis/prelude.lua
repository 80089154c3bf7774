-- Purpose: what every step's Lua twin is written with, and what makes a run of steps atomic.
--   A script is: this file, the files that steps include, one function per kind of step, runner.lua.
--   A twin reads rows and notes what to write; the runner writes all of it at the end of the run.
--   So a run that fails in the middle (an unreadable row, a mistake in a twin) has written nothing,
--   and a step sees what the steps before it in the same run have noted.
-- KEYS: the rows of all steps, one behind the other.
-- ARGV: [1] the store's clock in milliseconds since the epoch, "" for the server's own;
--       [2] milliseconds by which rows outlive their expiry physically (0, except under test);
--       the rest: see runner.lua.
-- Return: nothing. It defines, for twins:
--   now                        the store's clock, in milliseconds since the epoch
--   read(key, field, ...)      a live row with these fields, or nil
--   int(row, field)            a field as a number; 0 where there is none
--   data(row, field)           a field as a string; "" where there is none
--   replace(key, row)          write a whole row; its field x (milliseconds) is its expiry
--   update(key, fields)        write some fields of a live row; false deletes a field
--   wake(key, inboxes)         tell those who wait on key; inboxes are separated by line feeds
--   corrupt(key, what)         stop: the row of key cannot be read
--   A row is a table from field to value: a number for an integer, a string for bytes.
--
-- Types: a hash keeps strings only. An integer is kept as its decimal digits; bytes are kept as
-- they are, except that bytes which look like an integer get \1 in front (and so do bytes that
-- look like an integer with such a mark), so that each reads back as what it was.

local now
local slack

local order = {}      -- keys in the order of their first write
local noted = {}      -- key -> {whole = boolean, fields = {field -> value, or false: deleted}}
local woken = {}      -- {key, inbox}, in order

local INTEGER = '^%-?%d+$'
local ESCAPED = '^\1+%-?%d+$'

local function corrupt(key, what)
  error({corrupt = 'CORRUPT ' .. what})
end

local function encode(value)
  if type(value) == 'number' then return string.format('%.0f', value) end
  if string.find(value, INTEGER) or string.find(value, ESCAPED) then return '\1' .. value end
  return value
end

local function decode(raw)
  if string.find(raw, INTEGER) then return tonumber(raw) end
  if string.find(raw, ESCAPED) then return string.sub(raw, 2) end
  return raw
end

local function fetch(key, fields)
  local raw = redis.pcall('HMGET', key, 'x', unpack(fields))
  if raw.err then
    if string.find(raw.err, 'WRONGTYPE', 1, true) then corrupt(key, 'the row is not a hash') end
    error(raw.err, 0)
  end
  if not raw[1] then
    for i = 2, #raw do
      if raw[i] then corrupt(key, 'the row has no expiry') end
    end
    -- A hash with none of these fields is no row of ours either.
    if #fields > 0 and redis.call('EXISTS', key) == 1 then
      corrupt(key, 'the row has no expiry')
    end
    return nil
  end
  local row = {x = decode(raw[1])}
  if type(row.x) ~= 'number' then corrupt(key, 'the expiry is not an integer') end
  for i, field in ipairs(fields) do
    if raw[i + 1] then row[field] = decode(raw[i + 1]) end
  end
  return row
end

local function read(key, ...)
  local note = noted[key]
  local row
  if not (note and note.whole) then row = fetch(key, {...}) end
  if note then
    row = row or {}
    for field, value in pairs(note.fields) do row[field] = value or nil end
  end
  if not row or row.x <= now then return nil end
  return row
end

local function int(row, field)
  local value = row and row[field]
  if type(value) == 'number' then return value end
  return 0
end

local function data(row, field)
  local value = row and row[field]
  if type(value) == 'string' then return value end
  return ''
end

local function note_of(key)
  if not noted[key] then
    noted[key] = {whole = false, fields = {}}
    order[#order + 1] = key
  end
  return noted[key]
end

local function replace(key, row)
  local note = note_of(key)
  note.whole = true
  note.fields = row
end

local function update(key, fields)
  local note = note_of(key)
  for field, value in pairs(fields) do note.fields[field] = value end
end

local function wake(key, inboxes)
  for inbox in string.gmatch(inboxes, '[^\n]+') do woken[#woken + 1] = {key, inbox} end
end

local function write(key, note)
  if note.whole then redis.call('DEL', key) end
  local set = {}
  for field, value in pairs(note.fields) do
    if value then
      set[#set + 1] = field
      set[#set + 1] = encode(value)
    elseif not note.whole then
      redis.call('HDEL', key, field)
    end
  end
  if #set > 0 then redis.call('HSET', key, unpack(set)) end
  if note.fields.x then
    redis.call('PEXPIREAT', key, string.format('%.0f', note.fields.x + slack))
  end
end
