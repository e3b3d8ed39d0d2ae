-- Let a job wait again.
-- ARGV: prefix, id, worker that held it, list, message (or '')
-- Returns 1; 0 if it has ended or another worker holds it.
local id = ARGV[2]
local record = redis.call('HMGET', job(id), 'state', 'worker', 'score', 'done')
if not is_open(record[1]) or record[2] ~= ARGV[3] then return 0 end
redis.call('HSET', job(id), 'worker', '', 'state', 'queued')
redis.call('HDEL', held, id)
if record[1] == 'running' then
  wait_again(id, record[3])
  tell(id, 'queued', record[4])
end
if ARGV[5] ~= '' then redis.call('RPUSH', ARGV[4], ARGV[5]) end  -- the front, where the job is in `queued`
return 1
