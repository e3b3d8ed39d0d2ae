-- Cancel the jobs whose deadline has come, a hundred at most: Redis serves others between two such calls.
-- ARGV: prefix, result_ttl, record_ttl
-- Returns their ids.
local late = redis.call('ZRANGEBYSCORE', deadlines, '-inf', string.format('%.6f', now()), 'LIMIT', 0, 100)
for _, id in ipairs(late) do
  redis.call('ZREM', deadlines, id)
  local record = redis.call('HMGET', job(id), 'state', 'created_at', 'deadline')
  if is_open(record[1]) then is_late(id, record[2], record[3], tonumber(ARGV[2]), tonumber(ARGV[3])) end
end
finish_all()
return late
