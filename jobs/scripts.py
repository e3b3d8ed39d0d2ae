"""Every change of a job's state: one Lua script each, so that state, event and notification move together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Keys:
    """The names of what is kept in Redis, all below one namespace."""

    namespace: str

    @property
    def prefix(self) -> str:
        return f"{self.namespace}:"

    @property
    def queued(self) -> str:
        """Sorted set of jobs that wait, in the order in which they will run."""
        return f"{self.namespace}:queued"

    @property
    def open(self) -> str:
        """Set of jobs that have not ended."""
        return f"{self.namespace}:open"

    @property
    def held(self) -> str:
        """Hash of the open jobs that a worker has in hand -> that worker."""
        return f"{self.namespace}:held"

    @property
    def workers(self) -> str:
        """Sorted set of workers by the time of their last heartbeat."""
        return f"{self.namespace}:workers"

    def channel(self, node: str) -> str:
        """Channel of one API process."""
        return f"{self.namespace}:news:{node}"

    def watchers(self, key: str) -> str:
        """Set of the API processes that want to hear of each change of a job or map."""
        return f"{self.namespace}:watchers:{key}"

    @property
    def sweeper(self) -> str:
        """Lock of the one worker that sweeps."""
        return f"{self.namespace}:sweeper"

    def job(self, job_id: str) -> str:
        return f"{self.namespace}:job:{job_id}"

    def images(self, job_id: str) -> str:
        """Hash: index of the image -> PNG."""
        return f"{self.namespace}:images:{job_id}"

    def events(self, job_id: str) -> str:
        return f"{self.namespace}:events:{job_id}"

    def worker(self, worker_id: str) -> str:
        """Heartbeat; it is there as long as the worker is alive."""
        return f"{self.namespace}:worker:{worker_id}"

    def recent(self, owner: str) -> str:
        return f"{self.namespace}:recent:{owner}"

    def idempotency(self, owner: str, key: str) -> str:
        return f"{self.namespace}:idempotency:{owner}:{key}"

    @property
    def ended(self) -> str:
        """Hash: state -> how many jobs have ever ended in it."""
        return f"{self.namespace}:ended"

    def rate(self, caller: str, minute: int) -> str:
        return f"{self.namespace}:rate:{caller}:{minute}"

    def attention(self, job_id: str, image: int, layer: str) -> str:
        return f"{self.namespace}:attention:{job_id}:{image}:{layer}"

    def attention_claim(self, job_id: str, image: int, layer: str) -> str:
        return f"{self.namespace}:attention-claim:{job_id}:{image}:{layer}"


# Keys of a job are built inside the scripts: this needs one Redis, not a cluster. The clock is Redis' own,
# so that the times of a job agree whatever machines the API and the workers run on.
_PRELUDE: Final = """
local prefix = ARGV[1]
local queued, open, held = prefix .. 'queued', prefix .. 'open', prefix .. 'held'

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
local function events(id) return prefix .. 'events:' .. id end
local function watchers(id) return prefix .. 'watchers:' .. id end
local function is_open(state) return state == 'queued' or state == 'running' end

local function note(id, state, done) redis.call('XADD', events(id), '*', 'state', state, 'done', done) end

local function tell(id, state, done)
  note(id, state, done)
  local nodes = redis.call('SMEMBERS', watchers(id))
  for _, node in ipairs(nodes) do redis.call('PUBLISH', prefix .. 'news:' .. node, id) end
  return #nodes
end

local function hold(id, worker)
  redis.call('HSET', job(id), 'worker', worker)
  redis.call('HSET', held, id, worker)
end

local function run(id)
  local time = string.format('%.6f', now())
  redis.call('HSETNX', job(id), 'started_at', time)
  redis.call('HSET', job(id), 'state', 'running')
  redis.call('ZREM', queued, id)
end

local answers = {}  -- node -> what those hear who wait there, for one message to all of them
local ends = {}  -- state -> how many jobs end in it now

-- image: of a job of one image, or ''
local function finish(id, state, reason, image, result_ttl, record_ttl)
  local time = now()
  local finished, expires = string.format('%.6f', time), string.format('%.6f', time + result_ttl)
  redis.call('HSET', job(id), 'state', state, 'error', reason, 'worker', '',
             'finished_at', finished, 'expires_at', expires)
  redis.call('ZREM', queued, id)
  redis.call('SREM', open, id)
  redis.call('HDEL', held, id)
  ends[state] = (ends[state] or 0) + 1
  local record = redis.call('HMGET', job(id), 'waiter', 'done', 'attempts', 'started_at')
  local node, done = record[1] or '', record[2]
  if tell(id, state, done) > 0 then redis.call('DEL', watchers(id)) end
  if node ~= '' then
    -- whoever waits is answered by this alone: what of the record has changed, and the image
    local changes = cjson.encode({state, reason, done, record[3], record[4] or '', finished, expires})
    -- in pieces: Lua hashes each string it makes, byte by byte, and images are long
    local pieces = answers[node] or {}
    for _, piece in ipairs({id, ' ', #changes + 1 + #image, '\\n', changes, '\\n', image}) do
      table.insert(pieces, piece)
    end
    answers[node] = pieces
  end
  redis.call('EXPIRE', images(id), result_ttl)
  redis.call('EXPIRE', events(id), result_ttl)
  redis.call('EXPIRE', job(id), result_ttl + record_ttl)
end

-- what is done once for all that were finished
local function finish_all()
  for state, count in pairs(ends) do redis.call('HINCRBY', prefix .. 'ended', state, count) end
  for node, pieces in pairs(answers) do
    redis.call('PUBLISH', prefix .. 'news:' .. node, table.concat(pieces))
  end
end
"""

# max_queued, ttl, then of each job: id, owner, spec, priority, count, idempotency key and request or two "",
# waiter or '', list, message
# -> of each job {outcome, created_at or depth or id, field, value, ... of a record that was there before}
# What has not ended has no TTL, or a long queue would lose it; max_queued bounds it. Celery's message goes
# onto its list in the same step: a job is never recorded and not queued.
CREATE: Final = (
    _PRELUDE
    + """
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
  note(id, 'queued', 0)  -- nobody watches what was not there
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
"""
)

# id, state, reason, result_ttl, record_ttl -> 1 if it ended now, 0 if it had ended before or is not known
END: Final = (
    _PRELUDE
    + """
local id = ARGV[2]
if not is_open(redis.call('HGET', job(id), 'state')) then return 0 end
finish(id, ARGV[3], ARGV[4], '', tonumber(ARGV[5]), tonumber(ARGV[6]))
finish_all()
return 1
"""
)

# id, worker -> {spec, attempts, indices of images already there...}, or nothing if there is nothing to do
TAKE: Final = (
    _PRELUDE
    + """
local id, worker = ARGV[2], ARGV[3]
local record = redis.call('HMGET', job(id), 'state', 'worker', 'spec', 'attempts')
if not is_open(record[1]) then return false end
local holder = record[2]
if holder ~= '' and holder ~= worker and redis.call('EXISTS', prefix .. 'worker:' .. holder) == 1 then
  return false  -- a living worker has it: this message is a second one
end
hold(id, worker)
local answer = {record[3], record[4]}
for _, index in ipairs(redis.call('HKEYS', images(id))) do table.insert(answer, index) end
return answer
"""
)

# worker, how many enter, how many of these (the first ones) are in no forward of this worker yet,
# ids that enter a forward..., ids that came out of their last one... -> ids that may run
BEGIN: Final = (
    _PRELUDE
    + """
local worker, entering, fresh = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
for i = 5 + entering, #ARGV do
  local survivor = job(ARGV[i])
  if is_open(redis.call('HGET', survivor, 'state')) then redis.call('HSET', survivor, 'attempts', 0) end
end
local allowed = {}
for i = 5, 4 + entering do
  local id = ARGV[i]
  local record = redis.call('HMGET', job(id), 'state', 'worker', 'done')
  if is_open(record[1]) and (record[2] == worker or record[2] == '') then
    if record[2] == '' then hold(id, worker) end
    if i < 5 + fresh then redis.call('HINCRBY', job(id), 'attempts', 1) end
    if record[1] == 'queued' then
      run(id)
      tell(id, 'running', record[3])
    end
    table.insert(allowed, id)
  end
end
return allowed
"""
)

# result_ttl, record_ttl, then id, index, png of each image; those of one job side by side
# -> for each image 1 if its job goes on, 0 if it has ended (by this image, or before) or is not known
SAVE: Final = (
    _PRELUDE
    + """
local result_ttl, record_ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
local goes_on = {}
for i = 4, #ARGV, 3 do
  local id = ARGV[i]
  local record = redis.call('HMGET', job(id), 'state', 'count')
  local open_still = is_open(record[1])
  if open_still then
    if record[1] == 'queued' then run(id) end  -- Redis came back with an older state
    if redis.call('HSETNX', images(id), ARGV[i + 1], ARGV[i + 2]) == 1 then
      local done = redis.call('HLEN', images(id))
      redis.call('HSET', job(id), 'done', done, 'attempts', 0)
      if done == tonumber(record[2]) then
        finish(id, 'succeeded', '', done == 1 and ARGV[i + 2] or '', result_ttl, record_ttl)
        open_still = false
      elseif ARGV[i + 3] ~= id then
        tell(id, 'running', done)  -- once for all its images of this call
      end
    end
  end
  table.insert(goes_on, open_still and 1 or 0)
end
finish_all()
return goes_on
"""
)

# (claim, list), message -> 1 if the message was put on the list, 0 if somebody has asked a moment ago
CLAIM: Final = """
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 30) then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""

# id, worker that held it, list, message or '' -> 1 if it waits again, 0 if it ended or is another worker's
RELEASE: Final = (
    _PRELUDE
    + """
local id = ARGV[2]
local record = redis.call('HMGET', job(id), 'state', 'worker', 'score', 'done')
if not is_open(record[1]) or record[2] ~= ARGV[3] then return 0 end
redis.call('HSET', job(id), 'worker', '', 'state', 'queued')
redis.call('HDEL', held, id)
if record[1] == 'running' then
  redis.call('ZADD', queued, record[3], id)
  tell(id, 'queued', record[4])
end
if ARGV[5] ~= '' then redis.call('RPUSH', ARGV[4], ARGV[5]) end  -- the front, where the job is in `queued`
return 1
"""
)
