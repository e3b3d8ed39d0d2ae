-- Queue an attention map, unless it is there or waited for already, or too many are. A claim lives as long as
-- somebody may wait for its map, and ends with the map; `asked` remembers whose the claims are.
-- KEYS: claim, list, asked (a hash: claim -> caller), map
-- ARGV: message, seconds that a claim lives, maps at most, of one caller at most, caller
-- Returns {'queued' or 'known', 0}, or 'full' or 'share' and the number of maps that wait
-- it may have come since the caller looked: nobody would end a claim of it
if redis.call('EXISTS', KEYS[4]) == 1 then return {'known', 0} end
if redis.call('EXPIRE', KEYS[1], ARGV[2]) == 1 then return {'known', 0} end  -- this one waits longer
local most, share = tonumber(ARGV[3]), tonumber(ARGV[4])
local all, own = 0, 0
local asked = redis.call('HGETALL', KEYS[3])
for i = 1, #asked, 2 do
  if redis.call('EXISTS', asked[i]) == 0 then
    redis.call('HDEL', KEYS[3], asked[i])
  else
    all = all + 1
    if asked[i + 1] == ARGV[5] then own = own + 1 end
  end
end
-- the list as well: a message outlives its claim until a worker drops it
all = math.max(all, redis.call('LLEN', KEYS[2]))
if all >= most then return {'full', all} end
if own >= share then return {'share', own} end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[2])
redis.call('HSET', KEYS[3], KEYS[1], ARGV[5])
redis.call('LPUSH', KEYS[2], ARGV[1])
return {'queued', 0}
