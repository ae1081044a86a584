-- How many members each range has. KEYS: the sorted set of each range. ARGV: for each range least, greatest.
local counts = {}
for i = 1, #KEYS do
  counts[i] = redis.call('ZLEXCOUNT', KEYS[i], ARGV[2 * i - 1], ARGV[2 * i])
end
return counts
