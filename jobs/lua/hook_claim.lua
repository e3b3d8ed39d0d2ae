-- Lease deliveries of webhooks that are due: until a lease ends, nobody else tries.
-- ARGV: prefix, number wanted, seconds of a lease, most of one caller and of one receiver that this process tries
--   at once, the CALLER:RECEIVER of each that it tries already...
-- Returns {time, when the next is due or '', {member, lease, event, tries before, 'ID TIME CHANGES', field, value,
--   ... of the job's record}, ...}.
local wanted, lease = tonumber(ARGV[2]), string.format('%.6f', now() + tonumber(ARGV[3]))
local most_of_caller, most_of_lane = tonumber(ARGV[4]), tonumber(ARGV[5])
local trying = {}
local function count(lane)
  local caller = lane:match('^[^:]+')
  trying[caller], trying[lane] = (trying[caller] or 0) + 1, (trying[lane] or 0) + 1
end
for i = 6, #ARGV do count(ARGV[i]) end

local function take(member, lane, id)
  local record = redis.call('HGETALL', job(id))
  local waits = redis.call('HMGET', hook(id), 'start', 'progress', 'end', 'tried', 'tries')
  local event = waits[1] and 1 or waits[2] and 2 or waits[3] and 3
  if #record == 0 or not event then  -- the job has expired
    hook_no_more(member)
    redis.call('DEL', hook(id))
    return
  end
  redis.call('ZADD', hooks, lease, member)
  redis.call('HSET', hook(id), 'leased', lease)
  count(lane)
  local tries = waits[event]:match('^%S+') == waits[4] and waits[5] or '0'
  return {member, lease, ({'start', 'progress', 'end'})[event], tries, waits[event], unpack(record)}
end

local found, passed = {string.format('%.6f', now()), ''}, 0
while #found - 2 < wanted do
  -- those that are passed over stay in front: their caller or receiver has all that it may have
  local due = redis.call('ZRANGEBYSCORE', hooks, '-inf', found[1], 'LIMIT', passed, 200)
  if #due == 0 then break end
  for _, member in ipairs(due) do
    local lane, id = member:match('^([^:]+:[^:]+):(.+)$')
    if #found - 2 < wanted and (trying[lane:match('^[^:]+')] or 0) < most_of_caller
        and (trying[lane] or 0) < most_of_lane then
      local taken = take(member, lane, id)
      if taken then table.insert(found, taken) end
    else
      passed = passed + 1
    end
  end
end
local next_due = redis.call('ZRANGEBYSCORE', hooks, '(' .. found[1], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
found[2] = next_due[2] or ''
return found
