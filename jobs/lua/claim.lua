-- Queue an attention map, unless somebody has asked for it in the last 30 s.
-- KEYS: claim, list. ARGV: message
-- Returns 1 if it was queued.
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 30) then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
