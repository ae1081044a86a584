-- Checks, writes and the take of one call, in one atomic step. Knows keys, revisions and order, nothing of what they mean.
--
-- KEYS: values (hash: field -> 8 bytes of revision, then the value), revision (counter), then the sorted set of each family named in ARGV,
--       then the sleepers of each channel to wake, and last the witness of who calls.
-- ARGV: read from front to back, see below. A family's set is named by its place in KEYS; 0: the family is kept in no set.
-- After the checks and windows: 1 if the call is let through on a server that is full, or 0.
-- The last two: how long the witness lasts in seconds, and the revision that it must show, or a later one; 0: it need not be there.
-- Answer: {1, revision (0: there was nothing to do), taken} or {0, wrong checks, wrong windows}, or {-1}: the witness shows an
--       earlier revision, or is gone. Then nothing was written.
--       taken: {} or {0, wrong checks} or {1, time, rests in one string, values, heads}

local ARGV, call, sub, min = ARGV, redis.call, string.sub, math.min
local values, counter = KEYS[1], KEYS[2]
local CHUNK = 4000 -- unpack puts its results on Lua's stack, which holds 8,000
local MANY = 8
-- A member of more than 64 bytes, after all others: a set that has it is never kept as a list of up to 128, which each insertion walks through. It
-- is put beside many others, and stays.
local LONG = string.rep('~', 65)

local witness, demanded = KEYS[#KEYS], tonumber(ARGV[#ARGV])
if demanded > 0 and tonumber(call('GET', witness) or '0') < demanded then return {-1} end

local at = 0
local function read()
  at = at + 1
  return ARGV[at]
end
local function number()
  return tonumber(read())
end

local now = call('TIME')
now = now[1] * 1000000 + now[2]

-- n, n fields, then for each run of fields with one expected revision their number and it ('': absent); answers the indexes of the wrong ones, and
-- where the fields begin
local function check()
  local wrong, run, expected, last, revised = {}, 0, '', false, ''
  local n = number()
  local first = at
  at = at + n
  for start = 1, n, CHUNK do
    local count = min(CHUNK, n - start + 1)
    local found = call('HMGET', values, unpack(ARGV, first + start, first + start + count - 1))
    for i = 1, count do
      local have = found[i]
      if run == 0 then run, expected = number(), read() end
      run = run - 1
      if have ~= last then last, revised = have, have and sub(have, 1, 8) or '' end -- what was taken together has one value
      if revised ~= expected then wrong[#wrong + 1] = start + i - 1 end
    end
  end
  return wrong, first
end

local function chunked(command, key, list)
  for start = 1, #list, CHUNK do
    call(command, key, unpack(list, start, min(#list, start + CHUNK - 1)))
  end
end

local function add(key, members)
  if #members >= 2 * MANY then members[#members + 1], members[#members + 2] = '0', LONG end
  chunked('ZADD', key, members)
end

local wrong, checked = check()
local missed = {}
for i = 1, number() do
  local least, most = read(), read()
  if (least ~= '' and now < tonumber(least)) or (most ~= '' and now > tonumber(most)) then missed[#missed + 1] = i end
end
if #wrong > 0 or #missed > 0 then return {0, wrong, missed} end

-- The first write of a run: if the server refuses writes (no memory, a replica, a full disk), it does so here, before anything has changed.
-- A server without memory refuses only what may need more, and only as a run's first write: a deletion of nothing lets the rest pass.
local has_room = number() == 1
local revision, stamp
local function revise()
  if not revision then
    if has_room then call('HDEL', values, '') end
    revision = call('INCR', counter)
    stamp = struct.pack('>I8', revision)
    call('SET', witness, revision, 'EX', ARGV[#ARGV - 1])
  end
end

if number() > 0 then revise() end -- there are batches: one that only checks has a revision, too

local function delete(place, first, last)
  for start = first, last, CHUNK do
    local stop = min(last, start + CHUNK - 1)
    if place > 0 then call('ZREM', KEYS[place], unpack(ARGV, start, stop)) end
    call('HDEL', values, unpack(ARGV, start, stop))
  end
end

-- deletes: number of runs of checked fields of one family, each: place of its set, first, last of them; then number of families, each: place of its
-- set, n, n fields
for _ = 1, number() do
  delete(number(), checked + number(), checked + number())
end
for _ = 1, number() do
  local place, n = number(), number()
  delete(place, at + 1, at + n)
  at = at + n
end

-- puts: number of families; each: place of its set, n, n fields, 0 or 1 and n values
local put = {}
local pairs_put = 0
for _ = 1, number() do
  local place, n = number(), number()
  local first = at
  at = at + n + 1
  local members = {}
  if ARGV[at] == '1' then
    for i = 1, n do
      put[pairs_put + 1], put[pairs_put + 2] = ARGV[first + i], stamp .. ARGV[at + i]
      pairs_put = pairs_put + 2
    end
    at = at + n
  else
    for i = 1, n do
      put[pairs_put + 1], put[pairs_put + 2] = ARGV[first + i], stamp
      pairs_put = pairs_put + 2
    end
  end
  if place > 0 then
    for i = 1, n do members[2 * i - 1], members[2 * i] = '0', ARGV[first + i] end
    add(KEYS[place], members)
  end
end
chunked('HSET', values, put)

-- Whether rest a stands before rest b, byte by byte; Lua's own order of strings is that of the server's locale.
local function before(a, b)
  local length = min(#a, #b)
  for i = 13, length do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- The ranges of a take: each reads its set a page at a time. `rest` is the first that is left, `high` and `low` are its first 12 bytes as numbers
-- (a rest ends with an id of 16), by which nearly all are told apart.
local from, page
local function step(range)
  range.next = range.next + 1
  if range.next > #range.list and not range.whole then
    range.list = call('ZRANGEBYLEX', from, range.least, range.most, 'LIMIT', 0, page)
    range.next = 1
    range.whole = #range.list < page
    if #range.list > 0 then range.least = '(' .. range.list[#range.list] end
  end
  local member = range.list[range.next]
  if member then
    range.rest = sub(member, range.skip)
    range.high, range.low = struct.unpack('>I6I6', range.rest)
  else
    range.rest = nil
  end
end

local function least(ranges)
  local best, high, low
  for i = 1, #ranges do
    local range = ranges[i]
    if range.rest then
      local its_high = range.high
      if not best or its_high < high or its_high == high and (range.low < low or range.low == low and before(range.rest, best.rest)) then
        best, high, low = range, its_high, range.low
      end
    end
  end
  return best
end

-- the take: 0, or 1, checks, limit, place of the set to take from, place of the set to put in, prefix to put, tail, tags of the families to read (n,
-- each), number of ranges; each: length of its prefix, least member to look at (as ZRANGEBYLEX writes it), greatest
local function take()
  if number() == 0 then return {} end
  local refused = check()
  local limit, source, to, prefix, tail = number(), number(), KEYS[number()], read(), read()
  from = KEYS[source]
  local also = {}
  for i = 1, number() do also[i] = read() end
  local ranges = {}
  for i = 1, number() do ranges[i] = {skip = number() + 1, first = read(), most = read(), list = {}, next = 0} end
  if #refused > 0 then return {0, refused} end
  page = #ranges == 1 and limit + 1 or math.max(8, math.ceil(2 * limit / #ranges))
  for i = 1, #ranges do
    ranges[i].least = ranges[i].first
    step(ranges[i])
  end
  local chosen, rests = {}, {}
  if #ranges == 1 then
    local range = ranges[1]
    for i = 1, min(limit, #range.list) do
      chosen[i], rests[i] = range.list[i], sub(range.list[i], range.skip)
    end
    range.next, range.last = #chosen, chosen[#chosen]
    step(range)
  else
    for i = 1, limit do
      local range = least(ranges)
      if not range then break end
      range.last = range.list[range.next]
      chosen[i], rests[i] = range.last, range.rest
      step(range)
    end
  end
  local heads = {}
  for i = 1, #ranges do heads[i] = ranges[i].rest or '' end
  local time = string.format('%.0f', now)
  if #chosen == 0 then return {1, time, '', {}, heads} end
  revise()
  local text = stamp .. time
  local puts, members, fields = {}, {}, {}
  local wide, count = #also, 0
  for i = 1, #rests do
    local rest = rests[i]
    local field, odd = prefix .. rest .. tail, 2 * i - 1
    puts[odd], puts[odd + 1] = field, text
    members[odd], members[odd + 1] = '0', field
    local id = wide > 0 and sub(rest, -16)
    for j = 1, wide do
      count = count + 1
      fields[count] = also[j] .. id
    end
  end
  -- What is taken of a range stands together in it.
  for i = 1, #ranges do
    local range = ranges[i]
    if range.last then call('ZREMRANGEBYLEX', from, range.first, '[' .. range.last) end
  end
  chunked('HDEL', values, chosen)
  chunked('HSET', values, puts)
  add(to, members)
  local found = #fields > 0 and call('HMGET', values, unpack(fields)) or {}
  return {1, time, table.concat(rests), found, heads}
end
local taken = take()

-- wakes: number of channels; each: place of its sleepers, its name. Of each, the sleeper that has waited longest is told; one that nobody hears is dropped.
-- A user without the right to the channel tells nobody: all else is written by now, and who sleeps looks for itself after a while.
-- Who was told stays, so that it need not enter again before it looks, but behind all that have entered: a process that hangs is told once, not each time.
local BEHIND = 1000000000000
for _ = 1, number() do
  local sleepers, name = KEYS[number()], read()
  for _ = 1, 32 do
    local sleeper = call('ZRANGE', sleepers, 0, 0)[1]
    if not sleeper then break end
    if redis.pcall('PUBLISH', sleeper, name) ~= 0 then
      call('ZADD', sleepers, BEHIND + math.floor(now / 1000), sleeper)
      break
    end
    call('ZREM', sleepers, sleeper)
  end
end

return {1, revision or 0, taken}
