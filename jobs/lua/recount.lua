-- Count anew what waits of each caller: a worker of format 1 takes jobs without counting them.
-- ARGV: prefix
redis.call('DEL', shares)
for _, id in ipairs(redis.call('ZRANGE', queued, 0, -1)) do
  local record = redis.call('HMGET', job(id), 'caller', 'count')
  if record[1] then count_waiting(record[1], 1, tonumber(record[2])) end
end
return 1
