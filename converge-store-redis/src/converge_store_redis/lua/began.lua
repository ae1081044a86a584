-- The revision at which a server's present history began for us: the first client that meets it writes down what the counter says then.
-- KEYS: histories (hash: a server's run and replication id -> revision), revision (counter). ARGV: run and replication id.
local began = redis.call('HGET', KEYS[1], ARGV[1])
if began then return tonumber(began) end
began = redis.call('GET', KEYS[2])
if not began then return 0 end -- nothing is here yet, and nothing is begun by looking
if redis.call('HLEN', KEYS[1]) >= 100 then redis.call('DEL', KEYS[1]) end
redis.call('HDEL', KEYS[1], '') -- changes nothing: after it even a full server takes the next line
redis.call('HSET', KEYS[1], ARGV[1], began)
return tonumber(began)
