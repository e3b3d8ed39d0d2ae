-- Record jobs and queue them: Celery's message goes onto its list in the same step, so no job is recorded
-- without being queued. A job that has not ended has no TTL, or a long queue would lose it; max_queued bounds
-- their number.
-- ARGV: prefix, max_queued, ttl, then for each job ten: id, owner, spec, priority, count, idempotency key and
--   request (or two ''), waiter (or ''), list, message
-- Returns for each job {outcome, detail, field, value, ...}. outcome and detail: 'new', created_at; 'full',
--   depth; 'conflict', id; 'again' (this very call, sent again) or 'known' (by its idempotency key), id. The
--   fields are those of the record, for the last two.
local max_queued, ttl, depth = tonumber(ARGV[2]), ARGV[3], redis.call('ZCARD', queued)
local recents = {}
local function answer(outcome, found)
  return {outcome, found, unpack(redis.call('HGETALL', job(found)))}
end
local function create(id, owner, spec, priority, count, key, request, waiter, list, message)
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
  if depth >= max_queued then return {'full', tostring(depth)} end
  depth = depth + 1
  local time = string.format('%.6f', now())
  local sequence = redis.call('INCR', prefix .. 'sequence')
  local score = string.format('%.0f', (9 - tonumber(priority)) * 1e13 + sequence)  -- exact: below 2^53
  redis.call('HSET', job(id), 'owner', owner, 'spec', spec, 'state', 'queued', 'count', count, 'done', '0',
             'attempts', '0', 'worker', '', 'error', '', 'score', score, 'waiter', waiter, 'created_at', time)
  redis.call('ZADD', queued, score, id)
  redis.call('SADD', open, id)
  local recent = prefix .. 'recent:' .. owner
  redis.call('ZADD', recent, sequence, id)
  recents[recent] = true
  if key ~= '' then
    redis.call('HSET', key, 'job', id, 'request', request)
    redis.call('EXPIRE', key, ttl)
  end
  note(id, 'queued', 0)  -- no tell(): nobody can watch a new job
  redis.call('LPUSH', list, message)
  return {'new', time}
end
local outcomes = {}
for i = 4, #ARGV, 10 do table.insert(outcomes, create(unpack(ARGV, i, i + 9))) end
for recent in pairs(recents) do
  redis.call('ZREMRANGEBYRANK', recent, 0, -1001)  -- the newest thousand
  redis.call('EXPIRE', recent, ttl)
end
return outcomes
