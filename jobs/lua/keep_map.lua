-- Keep an attention map as long as its job's images live, or why there is none, and tell its watchers.
-- ARGV: prefix, id, image, layer, the map or the reason, seconds that a reason is kept (or '': it is a map),
--   result_ttl, the object store that has the map (or ''), its name there
-- Returns 1; 0 if the job is unknown or was purged: then nothing is kept.
local id, place = ARGV[2], ARGV[3] .. ':' .. ARGV[4]
local key = prefix .. 'attention:' .. id .. ':' .. place
redis.call('DEL', prefix .. 'attention-claim:' .. id .. ':' .. place)
local record = redis.call('HMGET', job(id), 'state', 'expires_at', 'retention', 'purged')
if not record[1] or record[4] then return 0 end
if ARGV[6] ~= '' then
  redis.call('SET', key, ARGV[5], 'EX', ARGV[6])
else
  local expires = math.ceil(tonumber(record[2] or (now() + tonumber(record[3] or ARGV[7]))))
  redis.call('SET', key, ARGV[8] == '' and ARGV[5] or 'in:' .. ARGV[8], 'EXAT', expires)
  redis.call('SADD', maps(id), place)
  redis.call('EXPIREAT', maps(id), expires)
  if ARGV[8] ~= '' then redis.call('ZADD', expiring, expires, ARGV[9] .. ' ' .. ARGV[8]) end
end
local name = id .. '/' .. ARGV[3] .. '/' .. ARGV[4]
local nodes = redis.call('SMEMBERS', watchers(name))
redis.call('DEL', watchers(name))
for _, node in ipairs(nodes) do redis.call('PUBLISH', prefix .. 'news:' .. node, name) end
return 1
