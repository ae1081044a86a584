-- What kind of value each key is. KEYS: the keys.
local kinds = {}
for i = 1, #KEYS do kinds[i] = redis.call('TYPE', KEYS[i]).ok end
return kinds
