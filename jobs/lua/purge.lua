-- Take a job's images and maps away; one that has not ended is cancelled first.
-- ARGV: prefix, id, record_ttl
-- Returns nothing if it is unknown or has none left; else {stores that may have files of it (or ''), image, layer,
--   image, layer, ... of each map}.
local LATE = 60  -- seconds in which a worker may still write a file that it had begun
local id, record_ttl = ARGV[2], tonumber(ARGV[3])
local record = redis.call('HMGET', job(id), 'state', 'store', 'count', 'purged')
if not record[1] or record[4] then return false end
if is_open(record[1]) then
  finish(id, 'cancelled', '', '', 1, record_ttl)
  finish_all()
end
redis.call('HSET', job(id), 'purged', '1', 'expires_at', string.format('%.6f', now()))
redis.call('EXPIRE', job(id), record_ttl)
redis.call('EXPIRE', events(id), LATE)  -- whoever follows it hears of its end
local answer = {record[2] or ''}
for _, map in ipairs(redis.call('SMEMBERS', maps(id))) do
  redis.call('DEL', prefix .. 'attention:' .. id .. ':' .. map)
  local image, layer = map:match('^(%d+):(.*)$')
  table.insert(answer, image)
  table.insert(answer, layer)
end
redis.call('DEL', images(id), maps(id))
if record[2] then delete_images(id, record[3], record[2], now() + LATE) end
return answer
