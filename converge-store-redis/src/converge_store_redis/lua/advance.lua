-- Lets the revisions go on behind ARGV[1], unless the counter is past it. KEYS: revision (counter).
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
