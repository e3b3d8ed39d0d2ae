-- Give a job to a worker.
-- ARGV: prefix, id, worker
-- Returns {spec, attempts, context or '', index of each stored image...}; nothing if it has ended, is unknown, or a living
--   worker has it.
local id, worker = ARGV[2], ARGV[3]
local record = redis.call('HMGET', job(id), 'state', 'worker', 'spec', 'attempts', 'context')
if not is_open(record[1]) then return false end
local holder = record[2]
if holder ~= '' and holder ~= worker and redis.call('EXISTS', prefix .. 'worker:' .. holder) == 1 then
  return false  -- a living worker has it: this message is a second one
end
hold(id, worker)
local answer = {record[3], record[4], record[5] or ''}
for _, index in ipairs(redis.call('HKEYS', images(id))) do table.insert(answer, index) end
return answer
