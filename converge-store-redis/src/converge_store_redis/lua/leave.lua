-- Strikes a sleeper out. KEYS: the sleepers of each channel. ARGV: the sleeper's name.
for i = 1, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
return #KEYS
