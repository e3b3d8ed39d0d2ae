-- Take from what a caller may spend in this minute, by the clock of Redis.
-- ARGV: prefix of the caller's counters, cost, limit
-- Returns {1 if it was taken, else 0; spent in this minute; seconds until the next}
local cost, limit = tonumber(ARGV[2]), tonumber(ARGV[3])
local seconds = tonumber(redis.call('TIME')[1])
local counter = ARGV[1] .. string.format('%d', seconds / 60)
local spent = tonumber(redis.call('GET', counter) or 0)
local fits = spent + cost <= limit
if fits then
  spent = redis.call('INCRBY', counter, cost)
  redis.call('EXPIRE', counter, 120)
end
return {fits and 1 or 0, spent, 60 - seconds % 60}
