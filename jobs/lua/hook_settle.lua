-- Say what became of a delivery that was leased.
-- ARGV: prefix, member, lease, event, id of the event, outcome, seconds until the next try, the attempt as JSON or ''
--   outcome: 'done' (delivered, or given up), 'again', 'back' (it was not tried), 'gone' (nothing more of the job)
local member, lease, event, event_id, outcome = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local id = member:match('^[^:]+:[^:]+:(.+)$')
local ttl = redis.call('TTL', job(id))
if ttl == -2 then  -- the job has expired
  hook_no_more(member)
  redis.call('DEL', hook(id), prefix .. 'hook-log:' .. id)
  return
end
if ARGV[8] ~= '' then
  local attempts = prefix .. 'hook-log:' .. id
  redis.call('RPUSH', attempts, ARGV[8])
  redis.call('LTRIM', attempts, -100, -1)
  if ttl > 0 then redis.call('EXPIRE', attempts, ttl) end
end
local waits = redis.call('HMGET', hook(id), event, 'leased')
local same = waits[1] and waits[1]:match('^%S+') == event_id  -- a newer one may have taken its place
if outcome == 'gone' then
  redis.call('HDEL', job(id), 'webhook')
  redis.call('DEL', hook(id))
elseif outcome == 'done' and same then
  redis.call('HDEL', hook(id), event, 'tried', 'tries')
end
if waits[2] ~= lease and outcome ~= 'gone' then return end  -- it took too long: another process tries by now
redis.call('HDEL', hook(id), 'leased')
local left = redis.call('HMGET', hook(id), 'start', 'progress', 'end')
if not (left[1] or left[2] or left[3]) then
  redis.call('DEL', hook(id))
  hook_no_more(member)
  return
end
local pause = 0
-- the end, which came meanwhile in the place of a progress, is tried at once
if outcome == 'again' and (same or not left[3]) then pause = tonumber(ARGV[7]) end
if outcome == 'again' and same then
  local tried = redis.call('HGET', hook(id), 'tried')
  if tried ~= event_id then redis.call('HSET', hook(id), 'tried', event_id, 'tries', 0) end
  redis.call('HINCRBY', hook(id), 'tries', 1)
end
hook_due(member, pause)
if ttl > 0 then redis.call('EXPIRE', hook(id), ttl) end
