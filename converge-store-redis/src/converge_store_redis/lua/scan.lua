-- Pages of members with their values, in order. KEYS: values (hash), then the sorted set of each range. ARGV: for each range least, greatest, limit.
local CHUNK = 4000 -- unpack puts its results on Lua's stack, which holds 8,000
local pages = {}
for i = 2, #KEYS do
  local at = 3 * (i - 2)
  local members = redis.call('ZRANGEBYLEX', KEYS[i], ARGV[at + 1], ARGV[at + 2], 'LIMIT', 0, ARGV[at + 3])
  local values = {}
  for start = 1, #members, CHUNK do
    local last = math.min(#members, start + CHUNK - 1)
    for j, value in ipairs(redis.call('HMGET', KEYS[1], unpack(members, start, last))) do values[start + j - 1] = value end
  end
  pages[i - 1] = {members, values}
end
return pages
