-- Record jobs and queue them: Celery's message goes onto its list in the same step, so no job is recorded
-- without being queued. A job that has not ended has no TTL, or a long queue would lose it; max_queued bounds
-- their number.
-- ARGV: prefix, ttl, jobs and images that may wait, jobs and images of one caller that may wait, then
--   for each job sixteen: id, owner, caller, spec, priority, count, idempotency key and request (or two ''),
--   waiter (or ''), queue, list (one that ends in '~' gets the caller's turn), message, format, '1' where it
--   is to be listed (or ''), seconds after which it is cancelled (or ''), further fields of its record as JSON
--   of field, value, field, ... (or '')
-- Returns for each job {outcome, detail, field, value, ...}. outcome and detail: 'new', created_at; 'full',
--   jobs that wait; 'share', jobs of the caller that wait; 'quota', images of the key's day so far, followed by
--   the seconds until the next; 'conflict', id; 'again' (this very call, sent again)
--   or 'known' (by its idempotency key), id. The fields are those of the record, for the last two; for 'new' with
--   a quota the images of the key's day, these included, and the seconds until the next.
local ttl, depth = ARGV[2], redis.call('ZCARD', queued)
local most_jobs, most_images = tonumber(ARGV[3]), tonumber(ARGV[4])
local share_jobs, share_images = tonumber(ARGV[5]), tonumber(ARGV[6])
local recents = {}
local function answer(outcome, found)
  return {outcome, found, unpack(redis.call('HGETALL', job(found)))}
end
-- Why a job may not wait; nil: it may. A job alone may have more images than a share has.
local function refusal(caller, count)
  local waiting = redis.call('HMGET', shares, 'images', 'jobs:' .. caller, 'images:' .. caller)
  local images, own_jobs = tonumber(waiting[1] or 0), tonumber(waiting[2] or 0)
  local own_images = tonumber(waiting[3] or 0)
  if own_jobs >= share_jobs or (own_images > 0 and own_images + count > share_images) then
    return {'share', tostring(own_jobs)}
  end
  if depth >= most_jobs or (images > 0 and images + count > most_images) then
    return {'full', tostring(depth)}
  end
end
-- Take images from the day of a key (by the clock of Redis, UTC). quota: KEY:IMAGES:ASKED.
-- Returns whether they fitted; images of the day so far; seconds until the next.
local function spend(quota)
  local key, most, count = quota:match('^(.*):(%d+):(%d+)$')
  local seconds = math.floor(now())
  local counter = prefix .. 'quota:' .. key .. ':' .. string.format('%d', seconds / 86400)
  local spent, left = tonumber(redis.call('GET', counter) or 0), 86400 - seconds % 86400
  local fits = spent + tonumber(count) <= tonumber(most)
  if fits then
    spent = redis.call('INCRBY', counter, count)
    redis.call('EXPIRE', counter, 2 * 86400)
  end
  return fits, tostring(spent), tostring(left)
end
local function create(id, owner, caller, spec, priority, count, key, request, waiter, queue, list, message, format,
                      listed, expires_in, extras)
  if redis.call('EXISTS', job(id)) == 1 then return answer('again', id) end  -- our own call, sent again
  if key ~= '' then
    local known = redis.call('HMGET', key, 'job', 'request')
    if known[1] and redis.call('EXISTS', job(known[1])) == 1 then
      if known[2] ~= request then return {'conflict', known[1]} end
      if waiter ~= '' then
        redis.call('SADD', watchers(known[1]), waiter)
        redis.call('EXPIRE', watchers(known[1]), 3600)
      end
      return answer('known', known[1])
    end
  end
  local refused = refusal(caller, tonumber(count))
  if refused then return refused end
  local fields = extras ~= '' and cjson.decode(extras) or {}
  local made, fits = {'new'}, true
  for i = 1, #fields, 2 do
    if fields[i] == 'quota' then fits, made[3], made[4] = spend(fields[i + 1]) end
  end
  if not fits then return {'quota', made[3], made[4]} end
  depth = depth + 1
  local time = string.format('%.6f', now())
  local sequence = redis.call('INCR', prefix .. 'sequence')
  local score = string.format('%.0f', (9 - tonumber(priority)) * 1e13 + sequence)  -- exact: below 2^53
  redis.call('HSET', job(id), 'owner', owner, 'spec', spec, 'state', 'queued', 'count', count, 'done', '0',
             'attempts', '0', 'worker', '', 'error', '', 'score', score, 'waiter', waiter, 'created_at', time,
             'caller', caller, 'format', format)
  if extras ~= '' then redis.call('HSET', job(id), unpack(fields)) end
  if expires_in ~= '' then
    local deadline = string.format('%.6f', now() + tonumber(expires_in))
    redis.call('HSET', job(id), 'deadline', deadline)
    redis.call('ZADD', deadlines, deadline, id)
  end
  redis.call('ZADD', queued, score, id)
  count_waiting(caller, 1, tonumber(count))
  redis.call('SADD', open, id)
  if listed ~= '' then
    local recent = prefix .. 'recent:' .. owner
    redis.call('ZADD', recent, sequence, id)
    recents[recent] = true
  end
  if key ~= '' then
    redis.call('HSET', key, 'job', id, 'request', request)
    redis.call('EXPIRE', key, ttl)
  end
  note(id, 'queued', 0)  -- no tell(): nobody can watch a new job
  redis.call('SADD', prefix .. 'queues', queue)
  if list:sub(-1) == '~' then list = list .. redis.call('HGET', shares, 'turn:' .. caller) end
  redis.call('LPUSH', list, message)
  made[2] = time
  return made
end
local outcomes = {}
for i = 7, #ARGV, 16 do table.insert(outcomes, create(unpack(ARGV, i, i + 15))) end
for recent in pairs(recents) do
  redis.call('ZREMRANGEBYRANK', recent, 0, -1001)  -- the newest thousand
  redis.call('EXPIRE', recent, ttl)
end
return outcomes
