-- Enters a sleeper into the sleepers of channels. KEYS: the sleepers of each channel. ARGV: the sleeper's name, milliseconds for which it counts.
-- The score is when it entered, by this server's clock: a wake tells whoever has waited longest, and moves it behind all others until it enters again.
-- Who has not entered again for so long is gone.
local now = redis.call('TIME')
local at = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', at - ARGV[2])
  redis.call('ZADD', KEYS[i], at, ARGV[1])
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return #KEYS
