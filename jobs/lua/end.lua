-- End a job that has not ended.
-- ARGV: prefix, id, state, reason, result_ttl, record_ttl
-- Returns 1; 0 if it had ended before or is unknown.
local id = ARGV[2]
if not is_open(redis.call('HGET', job(id), 'state')) then return 0 end
finish(id, ARGV[3], ARGV[4], '', tonumber(ARGV[5]), tonumber(ARGV[6]))
finish_all()
return 1
