-- Store images. The last image of a job ends it.
-- ARGV: prefix, result_ttl, record_ttl, the object store that has the images (or ''), then for each image three:
--   id of its job, index, PNG; images of one job stand side by side. Of what lies in an object store only `in:`
--   and its URL is kept here; the PNG is for whoever waits for a job of one image, and may be '' else.
-- Returns for each image 1 if its job goes on; 0 if it ended before or is unknown; where it ended with this image,
--   the seconds that it waited and took; nothing if it ended before and this image is none of its: its file in an
--   object store is nobody's.
local result_ttl, record_ttl, store = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local goes_on = {}
for i = 5, #ARGV, 3 do
  local id, index, png = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('HMGET', job(id), 'state', 'count', 'store', 'webhook')
  local open_still, ended = is_open(record[1]), 0
  if open_still then
    if record[1] == 'queued' then run(id, record[4]) end  -- Redis came back with an older state
    if redis.call('HSETNX', images(id), index, store == '' and png or 'in:' .. store) == 1 then
      local done = redis.call('HLEN', images(id))
      redis.call('HSET', job(id), 'done', done, 'attempts', 0)
      if store ~= '' and not (' ' .. (record[3] or '') .. ' '):find(' ' .. store .. ' ', 1, true) then
        -- the API that took the job has another setting
        redis.call('HSET', job(id), 'store', (record[3] and record[3] .. ' ' or '') .. store)
      end
      if done == tonumber(record[2]) then
        ended = finish(id, 'succeeded', '', done == 1 and png or '', result_ttl, record_ttl)
        open_still = false
      elseif ARGV[i + 3] ~= id then
        tell(id, 'running', done)  -- once for all its images of this call
        if record[4] then
          local started = redis.call('HGET', job(id), 'started_at') or ''
          local changes = cjson.encode({'running', '', tostring(done), '0', started, '', ''})
          tell_hook(id, record[4], 'progress', 'progress-' .. done, changes)
        end
      end
    end
  end
  if not open_still and store ~= '' and redis.call('HEXISTS', images(id), index) == 0 then ended = false end
  table.insert(goes_on, open_still and 1 or ended)
end
finish_all()
return goes_on
