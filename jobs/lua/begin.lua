-- Count an attempt for each job that enters a forward, and clear it for those that came out of their last one.
-- ARGV: prefix, worker, number that enter, number of these (the first) that are in no other forward of this
--   worker, result_ttl, record_ttl, ids that enter..., ids that came out...
-- Returns the ids that may run.
local worker, entering, fresh = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
for i = 7 + entering, #ARGV do
  local survivor = job(ARGV[i])
  if is_open(redis.call('HGET', survivor, 'state')) then redis.call('HSET', survivor, 'attempts', 0) end
end
local allowed = {}
for i = 7, 6 + entering do
  local id = ARGV[i]
  local record = redis.call('HMGET', job(id), 'state', 'worker', 'done', 'deadline', 'created_at',
                            'webhook')
  if is_open(record[1]) and (record[2] == worker or record[2] == '')
      and not is_late(id, record[5], record[4], tonumber(ARGV[5]), tonumber(ARGV[6])) then
    if record[2] == '' then hold(id, worker) end
    if i < 7 + fresh then redis.call('HINCRBY', job(id), 'attempts', 1) end
    if record[1] == 'queued' then
      run(id, record[6])
      tell(id, 'running', record[3])
    end
    table.insert(allowed, id)
  end
end
finish_all()
return allowed
