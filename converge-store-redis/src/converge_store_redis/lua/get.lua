-- Values of fields, in order, the first ones: after so many bytes the rest is left for another call. KEYS: values (hash). ARGV: bytes, fields.
-- Few at a time where they are large, so that one step does not go far past the bytes.
local FEW, MANY, SMALL = 2, 64, 8192
local bytes, values, at, chunk = tonumber(ARGV[1]), {}, 2, FEW
while at <= #ARGV and bytes > 0 do
  local last, size = math.min(#ARGV, at + chunk - 1), 0
  for _, value in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, at, last))) do
    values[#values + 1] = value
    if value then size = size + #value end
  end
  at, bytes, chunk = last + 1, bytes - size, size < SMALL and math.min(MANY, 2 * chunk) or FEW
end
return values
