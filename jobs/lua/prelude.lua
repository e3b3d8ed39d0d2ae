-- What every script on jobs shares; it stands before each of them. ARGV[1] is the prefix of all keys.
-- Scripts build the keys of a job themselves: they need one Redis, not a cluster. The clock is that of Redis,
-- so the times of a job agree whatever machines the API and the workers run on.

local prefix = ARGV[1]
local queued, open, held = prefix .. 'queued', prefix .. 'open', prefix .. 'held'
local shares, deadlines = prefix .. 'shares', prefix .. 'deadlines'
local expiring = prefix .. 'expiring'  -- files in object stores, by when they are to be deleted
local TURNS = 8  -- as in jobs/wire.py

local clock
local function now()
  if not clock then
    local t = redis.call('TIME')
    clock = tonumber(t[1]) + tonumber(t[2]) / 1e6
  end
  return clock
end

local function job(id) return prefix .. 'job:' .. id end
local function images(id) return prefix .. 'images:' .. id end
local function maps(id) return prefix .. 'maps:' .. id end
local function events(id) return prefix .. 'events:' .. id end
local function watchers(id) return prefix .. 'watchers:' .. id end
local function is_open(state) return state == 'queued' or state == 'running' end

-- The webhooks of a job: its record's field 'webhook' is 'CALLER:RECEIVER EVENTS URL'. An event waits in the hash
-- `hook` of the job as 'ID TIME CHANGES', one of each kind, until it is delivered; `hooks` says when to try.
local hooks, hooks_callers, hooks_bell = prefix .. 'hooks', prefix .. 'hooks:callers', prefix .. 'hooks:bell'

local function hook(id) return prefix .. 'hook:' .. id end

-- pause: seconds until it is due
local function hook_due(member, pause)
  if redis.call('ZADD', hooks, string.format('%.6f', now() + pause), member) == 1 then
    redis.call('HINCRBY', hooks_callers, member:match('^[^:]+'), 1)
  end
  if pause <= 0 and redis.call('LLEN', hooks_bell) == 0 then redis.call('LPUSH', hooks_bell, '') end
end

local function hook_no_more(member)
  if redis.call('ZREM', hooks, member) == 0 then return end
  local caller = member:match('^[^:]+')
  if redis.call('HINCRBY', hooks_callers, caller, -1) <= 0 then redis.call('HDEL', hooks_callers, caller) end
end

-- event: 'start', 'progress' or 'end'. changes: as finish() tells them.
local function tell_hook(id, webhook, event, name, changes)
  local lane, events = webhook:match('^(%S+) (%S+)')
  if not (',' .. events .. ','):find(',' .. event .. ',', 1, true) then return end
  local time, member = string.format('%.6f', now()), lane .. ':' .. id
  redis.call('HSET', hook(id), event, table.concat({id, '-', name, ' ', time, ' ', changes}))
  if event == 'end' then redis.call('HDEL', hook(id), 'progress') end  -- nobody has to hear of it any more
  local waits = redis.call('ZSCORE', hooks, member)
  local leased = tonumber(redis.call('HGET', hook(id), 'leased') or 0)
  -- one that is being tried, or is tried again later, is in order before this one; the end brings that forward
  if not waits or (event == 'end' and leased < now()) then hook_due(member, 0) end
end

-- Record a change of state: a stream that clients replay.
local function note(id, state, done) redis.call('XADD', events(id), '*', 'state', state, 'done', done) end

-- Record a change and publish it to every API process that watches the job; returns their number.
local function tell(id, state, done)
  note(id, state, done)
  local nodes = redis.call('SMEMBERS', watchers(id))
  for _, node in ipairs(nodes) do redis.call('PUBLISH', prefix .. 'news:' .. node, id) end
  return #nodes
end

-- What waits of each caller, in the hash `shares`: 'jobs:CALLER', 'images:CALLER', and 'images' of all. A caller
-- with something waiting has a turn, 'turn:CALLER': one of the lists from which workers take one after the
-- other. 'callers:TURN' is the number of callers that share it.
local function begin_turns(caller)
  local fields = {}
  for turn = 1, TURNS do fields[turn] = 'callers:' .. turn end
  local callers, least = redis.call('HMGET', shares, unpack(fields)), 1
  for turn = 2, TURNS do
    if tonumber(callers[turn] or 0) < tonumber(callers[least] or 0) then least = turn end
  end
  redis.call('HSET', shares, 'turn:' .. caller, least)
  redis.call('HINCRBY', shares, 'callers:' .. least, 1)
end

local function count_waiting(caller, jobs, images)
  redis.call('HINCRBY', shares, 'images', images)
  redis.call('HINCRBY', shares, 'images:' .. caller, images)
  local left = redis.call('HINCRBY', shares, 'jobs:' .. caller, jobs)
  if jobs > 0 and left == jobs then begin_turns(caller) end
  if left <= 0 then
    local turn = redis.call('HGET', shares, 'turn:' .. caller)
    if turn then redis.call('HINCRBY', shares, 'callers:' .. turn, -1) end
    redis.call('HDEL', shares, 'jobs:' .. caller, 'images:' .. caller, 'turn:' .. caller)
  end
end

local function wait_again(id, score)
  if redis.call('ZADD', queued, score, id) == 0 then return end
  local record = redis.call('HMGET', job(id), 'caller', 'count')
  if record[1] then count_waiting(record[1], 1, tonumber(record[2])) end  -- a job of format 1 has no caller
end

local function wait_no_more(id)
  if redis.call('ZREM', queued, id) == 0 then return end
  local record = redis.call('HMGET', job(id), 'caller', 'count')
  if record[1] then count_waiting(record[1], -1, -tonumber(record[2])) end
end

local function hold(id, worker)
  redis.call('HSET', job(id), 'worker', worker)
  redis.call('HSET', held, id, worker)
end

local function run(id, webhook)
  local time = string.format('%.6f', now())
  local first = redis.call('HSETNX', job(id), 'started_at', time) == 1
  redis.call('HSET', job(id), 'state', 'running')
  if webhook and first then
    tell_hook(id, webhook, 'start', 'start', cjson.encode({'running', '', '0', '0', time, '', ''}))
  end
  wait_no_more(id)
end

-- Have a worker delete a job's images. stores: the object stores that may have some, with spaces between.
local function delete_images(id, count, stores, at)
  for store in stores:gmatch('%S+') do
    redis.call('ZADD', expiring, string.format('%.6f', at), id .. ' ' .. count .. ' ' .. store)
  end
end

local answers = {}  -- node -> pieces of one message, to all who wait there
local ends = {}  -- state -> how many jobs end in it now

-- End a job. image: the PNG of a job of one image; '' for any other. Returns the seconds that it waited and took.
local function finish(id, state, reason, image, result_ttl, record_ttl)
  local record = redis.call('HMGET', job(id), 'waiter', 'done', 'attempts', 'started_at', 'deadline',
                            'created_at', 'retention', 'store', 'count', 'webhook')
  local time = now()
  result_ttl = tonumber(record[7] or result_ttl)
  local finished, expires = string.format('%.6f', time), string.format('%.6f', time + result_ttl)
  redis.call('HSET', job(id), 'state', state, 'error', reason, 'worker', '',
             'finished_at', finished, 'expires_at', expires)
  wait_no_more(id)
  redis.call('SREM', open, id)
  redis.call('HDEL', held, id)
  ends[state] = (ends[state] or 0) + 1
  if record[8] then delete_images(id, record[9], record[8], time + result_ttl) end
  if record[5] then redis.call('ZREM', deadlines, id) end
  local node, done, webhook = record[1] or '', record[2], record[10]
  if tell(id, state, done) > 0 then redis.call('DEL', watchers(id)) end
  local changes  -- the fields that changed
  if node ~= '' or webhook then
    changes = cjson.encode({state, reason, done, record[3], record[4] or '', finished, expires})
  end
  if webhook then
    tell_hook(id, webhook, 'end', 'end', changes)
    redis.call('EXPIRE', hook(id), result_ttl + record_ttl)
    redis.call('EXPIRE', prefix .. 'hook-log:' .. id, result_ttl + record_ttl)
  end
  if node ~= '' then
    -- this alone answers whoever waits: the changes, and the image
    -- in pieces: Lua hashes each string it makes, byte by byte, and images are long
    local pieces = answers[node] or {}
    for _, piece in ipairs({id, ' ', #changes + 1 + #image, '\n', changes, '\n', image}) do
      table.insert(pieces, piece)
    end
    answers[node] = pieces
  end
  redis.call('EXPIRE', images(id), result_ttl)
  redis.call('EXPIRE', events(id), result_ttl)
  redis.call('EXPIRE', job(id), result_ttl + record_ttl)
  local created, started = tonumber(record[6]) or time, tonumber(record[4]) or time
  return {string.format('%.6f', started - created), string.format('%.6f', time - created)}
end

-- Cancel a job whose deadline has come; false: it has none, or time left.
local function is_late(id, created_at, deadline, result_ttl, record_ttl)
  if not deadline or tonumber(deadline) > now() then return false end
  local given = string.format('%.3f', tonumber(deadline) - tonumber(created_at)):gsub('%.?0+$', '')
  finish(id, 'cancelled', 'It was not made in the ' .. given .. ' s that were given to it.', '',
         result_ttl, record_ttl)
  return true
end

-- Run once, after the last finish().
local function finish_all()
  for state, count in pairs(ends) do redis.call('HINCRBY', prefix .. 'ended', state, count) end
  for node, pieces in pairs(answers) do
    redis.call('PUBLISH', prefix .. 'news:' .. node, table.concat(pieces))
  end
end
