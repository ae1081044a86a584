-- Pages of members with their values, in order. KEYS: values (hash), then the sorted set of each range. ARGV: entries, bytes of values (after so many
-- the rest is left for another call, so that nobody waits long for this one), then for each range least, greatest, limit.
-- Answer: for each range members, values, 1 if there may be more of it.
-- Values are read few at a time where they are large, so that one step does not go far past the bytes.
local FEW, MANY, SMALL = 2, 64, 8192
local chunk = FEW
local entries, bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local pages = {}
for i = 2, #KEYS do
  local at = 3 * i - 3
  local limit = tonumber(ARGV[at + 2])
  local members = {}
  if entries > 0 and bytes > 0 then
    members = redis.call('ZRANGEBYLEX', KEYS[i], ARGV[at], ARGV[at + 1], 'LIMIT', 0, math.min(limit, entries))
  end
  local asked = (entries > 0 and bytes > 0) and math.min(limit, entries) or 0
  local values, taken = {}, 0
  while taken < #members and bytes > 0 do
    local last, size = math.min(#members, taken + chunk), 0
    for j, value in ipairs(redis.call('HMGET', KEYS[1], unpack(members, taken + 1, last))) do
      values[taken + j] = value
      if value then size = size + #value end
    end
    taken, bytes, chunk = last, bytes - size, size < SMALL and math.min(MANY, 2 * chunk) or FEW
  end
  local more = (taken < #members or (#members == asked and asked < limit)) and 1 or 0
  for j = #members, taken + 1, -1 do members[j] = nil end
  entries = entries - taken
  pages[i - 1] = {members, values, more}
end
return pages
