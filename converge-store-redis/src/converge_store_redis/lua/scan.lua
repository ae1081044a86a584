-- Pages of members with their values, in order. KEYS: values (hash), then the sorted set of each range. ARGV: for each range least, greatest, limit.
local pages = {}
for i = 2, #KEYS do
  local at = 3 * (i - 2)
  local members = redis.call('ZRANGEBYLEX', KEYS[i], ARGV[at + 1], ARGV[at + 2], 'LIMIT', 0, ARGV[at + 3])
  pages[i - 1] = {members, #members > 0 and redis.call('HMGET', KEYS[1], unpack(members)) or {}}
end
return pages
