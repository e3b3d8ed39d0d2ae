-- Store images. The last image of a job ends it.
-- ARGV: prefix, result_ttl, record_ttl, then for each image three: id of its job, index, PNG; images of one
--   job stand side by side
-- Returns for each image 1 if its job goes on; 0 if it ended before or is unknown; where it ended with this image,
--   the seconds that it waited and took.
local result_ttl, record_ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
local goes_on = {}
for i = 4, #ARGV, 3 do
  local id = ARGV[i]
  local record = redis.call('HMGET', job(id), 'state', 'count')
  local open_still, ended = is_open(record[1]), 0
  if open_still then
    if record[1] == 'queued' then run(id) end  -- Redis came back with an older state
    if redis.call('HSETNX', images(id), ARGV[i + 1], ARGV[i + 2]) == 1 then
      local done = redis.call('HLEN', images(id))
      redis.call('HSET', job(id), 'done', done, 'attempts', 0)
      if done == tonumber(record[2]) then
        ended = finish(id, 'succeeded', '', done == 1 and ARGV[i + 2] or '', result_ttl, record_ttl)
        open_still = false
      elseif ARGV[i + 3] ~= id then
        tell(id, 'running', done)  -- once for all its images of this call
      end
    end
  end
  table.insert(goes_on, open_still and 1 or ended)
end
finish_all()
return goes_on
