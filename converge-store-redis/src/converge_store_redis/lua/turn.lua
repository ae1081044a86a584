-- Checks, writes and the take of one call, in one atomic step. Knows keys, revisions and order, nothing of what they mean.
--
-- KEYS: values (hash: field -> 8 bytes of revision, then the value), revision (counter), then the sorted set of each family named in ARGV,
--       then the sleepers' set of each channel to wake.
-- ARGV: cursor-read, see below. A family's set is named by its place in KEYS; 0: the family is kept in no set.
-- Answer: {1, revision (0: there was nothing to do), taken} or {0, failed checks, failed windows}: then nothing was written.
--       taken: {} or {0, failed checks} or {1, time, members, also, heads}

local at = 0
local function read()
  at = at + 1
  return ARGV[at]
end
local function number()
  return tonumber(read())
end

local values, counter = KEYS[1], KEYS[2]
local CHUNK = 4000 -- unpack puts its results on Lua's stack, which holds 8,000

local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]

-- n, then n fields, then n expected revisions (8 bytes, or empty for absent); answers the indexes that failed
local function check()
  local failed = {}
  local n = number()
  for start = 1, n, CHUNK do
    local count = math.min(CHUNK, n - start + 1)
    local first = at + start
    local found = redis.call('HMGET', values, unpack(ARGV, first, first + count - 1))
    for i = 1, count do
      local have = found[i]
      if have then have = string.sub(have, 1, 8) else have = '' end
      if have ~= ARGV[at + n + start + i - 1] then failed[#failed + 1] = start + i - 1 end
    end
  end
  at = at + 2 * n
  return failed
end

local function chunked(command, key, list)
  for start = 1, #list, CHUNK do
    redis.call(command, key, unpack(list, start, math.min(#list, start + CHUNK - 1)))
  end
end

local failed = check()
local missed = {}
for i = 1, number() do
  local least, most = read(), read()
  if (least ~= '' and now < tonumber(least)) or (most ~= '' and now > tonumber(most)) then missed[#missed + 1] = i end
end
if #failed > 0 or #missed > 0 then return {0, failed, missed} end

local revision, stamp
local function revise()
  if not revision then
    revision = redis.call('INCR', counter)
    stamp = struct.pack('>I8', revision)
  end
end

if number() > 0 then revise() end -- there are batches: one that only checks has a revision, too

-- deletes: number of families; each: place of its set, n, n fields
local gone = {}
for _ = 1, number() do
  local place, n = number(), number()
  local first = #gone
  for i = 1, n do gone[first + i] = ARGV[at + i] end
  if place > 0 then
    for start = 1, n, CHUNK do
      redis.call('ZREM', KEYS[place], unpack(ARGV, at + start, at + math.min(n, start + CHUNK - 1)))
    end
  end
  at = at + n
end
if #gone > 0 then chunked('HDEL', values, gone) end

-- puts: number of families; each: place of its set, n, n fields, n values
local put = {}
for _ = 1, number() do
  local place, n = number(), number()
  local first = #put
  for i = 1, n do
    put[first + 2 * i - 1] = ARGV[at + i]
    put[first + 2 * i] = stamp .. ARGV[at + n + i]
  end
  if place > 0 then
    local members = {}
    for i = 1, n do
      members[2 * i - 1] = 0
      members[2 * i] = ARGV[at + i]
    end
    chunked('ZADD', KEYS[place], members)
  end
  at = at + 2 * n
end
if #put > 0 then chunked('HSET', values, put) end

-- the take: 0, or 1, checks, limit, place of the set to take from, place of the set to put in, length of a prefix, prefix to put, tail, also fields'
-- prefixes (n, each), length of the id at a member's end, number of ranges; each: least member to look at (as ZRANGEBYLEX writes it), greatest
local function take()
  if number() == 0 then return {} end
  local refused = check()
  local limit, from, to, skip = number(), KEYS[number()], KEYS[number()], number()
  local prefix, tail = read(), read()
  local also = {}
  for i = 1, number() do also[i] = read() end
  local id = number()
  local count = number()
  local page = count == 1 and limit + 1 or math.max(8, math.ceil(2 * limit / count))
  local ranges, chosen = {}, {}
  local function refill(range)
    range.list = redis.call('ZRANGEBYLEX', from, range.least, range.most, 'LIMIT', 0, page)
    range.next = 1
    range.whole = #range.list < page
    if #range.list > 0 then range.least = '(' .. range.list[#range.list] end
  end
  for i = 1, count do
    ranges[i] = {least = read(), most = read()}
  end
  if #refused > 0 then return {0, refused} end
  for i = 1, count do refill(ranges[i]) end
  local function head(range)
    if range.next > #range.list and not range.whole then refill(range) end
    return range.list[range.next]
  end
  if count == 1 then
    local list = ranges[1].list
    for i = 1, math.min(limit, #list) do chosen[i] = list[i] end
    ranges[1].next = #chosen + 1
  else
    local rests = {}
    for i = 1, count do
      local member = head(ranges[i])
      rests[i] = member and string.sub(member, skip + 1) or false
    end
    while #chosen < limit do
      local best, which = false, 0
      for i = 1, count do
        local rest = rests[i]
        if rest and (not best or rest < best) then best, which = rest, i end
      end
      if not best then break end
      local range = ranges[which]
      chosen[#chosen + 1] = range.list[range.next]
      range.next = range.next + 1
      local member = head(range)
      rests[which] = member and string.sub(member, skip + 1) or false
    end
  end
  local heads = {}
  for i = 1, count do heads[i] = head(ranges[i]) or '' end
  if #chosen == 0 then return {1, string.format('%.0f', now), {}, {}, heads} end
  revise()
  local text = stamp .. string.format('%.0f', now)
  local puts, members, fields = {}, {}, {}
  for i, member in ipairs(chosen) do
    local field = prefix .. string.sub(member, skip + 1) .. tail
    puts[2 * i - 1], puts[2 * i] = field, text
    members[2 * i - 1], members[2 * i] = 0, field
    local name = string.sub(member, -id)
    for j = 1, #also do fields[#fields + 1] = also[j] .. name end
  end
  chunked('ZREM', from, chosen)
  chunked('HDEL', values, chosen)
  chunked('HSET', values, puts)
  chunked('ZADD', to, members)
  local found = #fields > 0 and redis.call('HMGET', values, unpack(fields)) or {}
  return {1, string.format('%.0f', now), chosen, found, heads}
end
local taken = take()

-- wakes: number of channels; each: place of its sleepers, its name. Of each, the sleeper that has waited longest is told; one that nobody hears is dropped.
for _ = 1, number() do
  local sleepers, name = KEYS[number()], read()
  for _ = 1, 8 do
    local sleeper = redis.call('ZPOPMIN', sleepers)[1]
    if not sleeper then break end
    if redis.call('PUBLISH', sleeper, name) > 0 then break end
  end
end

return {1, revision or 0, taken}
