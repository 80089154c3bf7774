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
--   peek(key, field)           one field more, as a string, of a row that read has returned
--   int(row, field)            a field as a number; 0 where there is none
--   data(row, field)           a field as a string; "" where there is none
--   replace(key, row)          write a whole row; its field x (milliseconds) is its expiry
--   update(key, fields)        write some fields of a live row; false deletes a field
--   remove(key)                delete a row
--   wake(key, inboxes)         tell those who wait on key; inboxes are separated by line feeds
--   corrupt(key, what)         stop: the row of key cannot be read
--   A row that was read is opaque: use int and data. One to write is a table from field to value: a
--   number for an integer, a string for bytes.
--
-- Types: a hash keeps strings only. An integer is kept as its decimal digits; bytes are kept as
-- they are, except that bytes which look like an integer get \1 in front (and so do bytes that
-- look like an integer with such a mark), so that each reads back as what it was.

local now
local slack

local order = {}      -- keys in the order of their first write
local noted = {}      -- key -> {whole = boolean, fields = {field -> as kept, or false: deleted}}
                      -- (whole without a field: the row is deleted)
local present = {}    -- key -> whether the server has a row, live or not
local woken = {}      -- {key, inbox}, in order

local find, format, byte, sub = string.find, string.format, string.byte, string.sub
local INTEGER = '^%-?%d+$'
local MARKED = '^\1+%-?%d+$'

local function corrupt(key, what)
  error({corrupt = 'CORRUPT ' .. what})
end

-- Nearly all bytes begin with none of \1, -, 0 to 9, and need no closer look.
local function is_plain(raw)
  local first = byte(raw)
  return not first or first > 57 or (first < 48 and first ~= 45 and first ~= 1)
end

local function encode(value)
  if type(value) == 'number' then return format('%.0f', value) end
  if is_plain(value) then return value end
  if find(value, INTEGER) or find(value, MARKED) then return '\1' .. value end
  return value
end

local function int(row, field)
  local raw = row and row[field]
  if raw and find(raw, INTEGER) then return tonumber(raw) end
  return 0
end

local function data(row, field)
  local raw = row and row[field]
  if not raw then return '' end
  if is_plain(raw) then return raw end
  if find(raw, INTEGER) then return '' end
  if find(raw, MARKED) then return sub(raw, 2) end
  return raw
end

local function fetch(key, fields)
  local raw = redis.pcall('HMGET', key, 'x', unpack(fields))
  if raw.err then
    if find(raw.err, 'WRONGTYPE', 1, true) then corrupt(key, 'the row is not a hash') end
    error(raw.err, 0)
  end
  if raw[1] and not find(raw[1], INTEGER) then corrupt(key, 'the expiry is not an integer') end
  local row = {x = raw[1]}
  for i = 1, #fields do
    local value = raw[i + 1]
    if value then
      if not raw[1] then corrupt(key, 'the row has no expiry') end
      row[fields[i]] = value
    end
  end
  if not raw[1] then return nil end
  present[key] = true
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
  if not row or not row.x or tonumber(row.x) <= now then return nil end
  return row
end

local function peek(key, field)
  local note = noted[key]
  local row = note and note.fields
  if not note or (row[field] == nil and not note.whole) then
    row = {[field] = redis.call('HGET', key, field)}
  end
  return data(row, field)
end

local function note_of(key)
  local note = noted[key]
  if not note then
    note = {whole = false, fields = {}}
    noted[key] = note
    order[#order + 1] = key
  end
  return note
end

local function update(key, fields)
  local kept = note_of(key).fields
  for field, value in pairs(fields) do kept[field] = value and encode(value) end
end

local function replace(key, row)
  local note = note_of(key)
  note.whole = true
  note.fields = {}
  update(key, row)
end

local function remove(key)
  replace(key, {})
end

local function wake(key, inboxes)
  for inbox in string.gmatch(inboxes, '[^\n]+') do woken[#woken + 1] = {key, inbox} end
end

-- A full server refuses what needs memory, but not once a script has written something else: so
-- where there is a row already, DEL or PEXPIREAT comes first, and who has begun may renew, complete
-- and release on a full server. A new row is refused, before anything was written.
local function write(key, note)
  local expiry = note.fields.x
  if expiry and slack > 0 then expiry = format('%.0f', expiry + slack) end
  if note.whole and present[key] then redis.call('DEL', key) end
  if not note.whole and expiry and tonumber(expiry) > now then
    redis.call('PEXPIREAT', key, expiry)
    expiry = nil
  end
  local set, count = {}, 0
  for field, value in pairs(note.fields) do
    if value then
      set[count + 1] = field
      set[count + 2] = value
      count = count + 2
    elseif not note.whole then
      redis.call('HDEL', key, field)
    end
  end
  if count > 0 then redis.call('HSET', key, unpack(set)) end
  if expiry then redis.call('PEXPIREAT', key, expiry) end
end
