-- Values of fields, in order, the first ones: after so many bytes the rest is left for another call. KEYS: values (hash). ARGV: bytes, fields.
local CHUNK = 32
local bytes, values = tonumber(ARGV[1]), {}
for start = 2, #ARGV, CHUNK do
  for _, value in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, start, math.min(#ARGV, start + CHUNK - 1)))) do
    values[#values + 1] = value
    if value then bytes = bytes - #value end
  end
  if bytes <= 0 then break end
end
return values
