"""The worker's side of the jobs: blocking calls for its threads, which wait as long as Redis is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from math import inf
from typing import Any, Final

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError

from jobs.connections import PatientRetry
from jobs.fleet import format_for
from jobs.job import PLAIN, AttentionMap, Job, JobSpec, Taken, WorkerInfo
from jobs.keys import Keys
from jobs.records import WORKER, as_time, read_job, read_workers
from jobs.results import REDIS, Stores, image_name, map_name
from jobs.scripts import Saved, Scripts
from jobs.settings import QueueSettings
from jobs.stopping import Stopping as Stopping
from jobs.wire import (
    OLD_GENERATE_QUEUE,
    attention_message,
    attention_queue,
    generate_lists,
    map_queues_of,
    message_list,
    queues_of,
)
from jobs.worker_results import Due, Keeper

PAGE: Final = 200  # messages read at once: between two reads Redis serves others
EXPIRED_AT_ONCE: Final = 200  # jobs whose files are deleted in one call of the store
POSTPONED: Final = 60  # seconds until files that could not be deleted are tried again
MAP_FAILURE_TTL: Final = 30  # seconds; then the map may be tried again
PREVIEWS_CLAIMED: Final = 120  # seconds; then another worker may make them
PREVIEWS_KEPT: Final = (
    30 * 24 * 3600
)  # seconds; those of a version that nobody serves any more go by themselves


class _UntilStopped(ExponentialWithJitterBackoff):
    """A pause that grows with each failure, up to a second; raises Stopping once the worker stops."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__(cap=1.0, base=0.05)
        self._stopping = stopping

    def __deepcopy__(self, memo: object) -> _UntilStopped:
        return self  # each connection copies its retry; this has no state, and stopping() a lock

    def compute(self, failures: int) -> float:
        if self._stopping():
            raise Stopping("Redis does not answer and the worker is being stopped")
        return super().compute(min(failures, 10))  # 2^failures would overflow after an hour


class WorkerStore:
    """Jobs, maps and heartbeats. Each call retries until Redis answers, or raises Stopping."""

    def __init__(self, settings: QueueSettings, worker_id: str, stopping: Callable[[], bool]) -> None:
        """Raises StoreUnavailable for an object store that cannot be opened."""
        self._settings = settings
        self._worker = worker_id
        self._keys = Keys(settings.namespace)
        self._scripts = Scripts(settings)
        self.stores = Stores.open(settings.result_store)
        self.keeper: Keeper | None = None  # None: images go into Redis
        if self.stores.first is not None:
            self.keeper = Keeper(self.stores.first, stopping, settings.result_patience)
        # Any: redis-py's types allow for text and bytes everywhere; this client answers bytes.
        self._redis: Any = Redis.from_url(
            settings.redis_url,
            max_connections=1000,  # it takes one a thread
            socket_timeout=10,
            socket_connect_timeout=3,
            health_check_interval=15,
            retry=PatientRetry(_UntilStopped(stopping)),  # results are written when Redis is back
        )

    def close(self) -> None:
        self._redis.close()

    def take(self, job_id: str) -> Taken | None:
        """Take a job in hand. None: it has ended, is unknown, or a living worker has it."""
        return self._scripts.take(job_id, self._worker).run(self._redis)

    def begin(self, entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        """Send the script `begin` (see Scripts.begin); the function returned waits for its answer.

        The command is on its way when this returns, so a forward that kills the process is counted.
        """
        if not entering and not survived:
            return set
        call = self._scripts.begin(self._worker, entering, fresh, survived)
        sent = self._send(
            call.in_full
        )  # not by digest: a new Redis does not know it, and would count nothing

        def answer() -> set[str]:
            allowed = self._receive(sent)
            return call.run(self._redis) if allowed is None else call.read(allowed)

        return answer

    def _send(self, command: tuple[Any, ...]) -> Any:
        """Send a command; the connection that its answer comes over, or None: it could not be sent."""
        pool = self._redis.connection_pool
        try:
            connection = pool.get_connection()
        except (RedisError, OSError):
            return None
        try:
            connection.send_command(*command)
        except (RedisError, OSError):
            pool.release(connection)
            return None
        return connection

    def _receive(self, connection: Any) -> Any:
        """The answer over a connection from _send; None: there is none, or it is an error."""
        if connection is None:
            return None
        try:
            return connection.read_response()
        except (RedisError, OSError):
            return None
        finally:
            self._redis.connection_pool.release(connection)

    def save(self, images: Sequence[tuple[str, int, bytes]]) -> list[Saved]:
        """Store images (job, index, PNG), those of one job side by side, in one round trip to Redis.

        The last image of a job ends it. Raises StoreFailed where an object store refuses them.
        """
        keeper = self.keeper
        if keeper is None:
            return self._scripts.save(images).run(self._redis)
        names = [image_name(job_id, index) for job_id, index, _ in images]
        keeper.put([(name, png) for name, (_, _, png) in zip(names, images, strict=True)])
        # whoever waits for a job of one image hears it from Redis, which keeps none
        told = [(job_id, index, b"" if index else png) for job_id, index, png in images]
        outcomes = self._scripts.save(told, keeper.url).run(self._redis)
        keeper.drop([name for name, saved in zip(names, outcomes, strict=True) if saved.refused])
        return outcomes

    def fail(self, job_id: str, reason: str) -> bool:
        """End a job without success. False: it had ended before, and stays as it is."""
        return self._scripts.end(job_id, "failed", reason).run(self._redis)

    def release(self, job_id: str) -> bool:
        """Let a job of this worker wait again. False: it ended or moved on."""
        return self._scripts.release(job_id, self._worker).run(self._redis)

    def bring_back(self, job_id: str, spec: JobSpec, holder: str, format: int = PLAIN) -> bool:
        """Queue a job again (see Scripts.bring_back). False: it ended or moved on."""
        return self._scripts.bring_back(job_id, spec, holder, format).run(self._redis)

    def pass_on(self, job_id: str, spec: JobSpec, workers: Iterable[WorkerInfo]) -> bool:
        """Queue a job for the workers that can make it. False: it ended or moved on."""
        format_ = format_for(spec, workers)
        return any(self.bring_back(job_id, spec, holder, format_) for holder in (self._worker, ""))

    def pass_on_map(self, job: Job, image: int, layer: str, workers: Iterable[WorkerInfo]) -> None:
        """Queue a map for the workers that can make it."""
        queue = attention_queue(job.spec.version, format_for(job.spec, workers))
        name = message_list(self._settings.namespace, queue, 0)
        self._redis.lpush(name, attention_message(job.id, image, layer, queue))

    def expire(self) -> list[str]:
        """Cancel jobs whose deadline has come; their ids."""
        return self._scripts.expire().run(self._redis)

    def recount(self) -> None:
        """Count anew what waits of each caller."""
        self._scripts.recount().run(self._redis)

    def time(self) -> datetime:
        """The time by Redis' clock."""
        return as_time(self._redis.time())

    def job(self, job_id: str) -> Job | None:
        """The record; None if there is none."""
        record = self._redis.hgetall(self._keys.job(job_id))
        return read_job(job_id, record) if record else None

    def wants_attention(self, job_id: str, image: int, layer: str) -> bool:
        """Whether somebody may still wait for a map, and it is not there."""
        place = (job_id, image, layer)
        claimed = self._redis.exists(self._keys.attention_claim(*place))
        return bool(claimed) and not self._redis.exists(self._keys.attention(*place))

    def save_attention(self, job_id: str, image: int, layer: str, found: AttentionMap | str) -> None:
        """Store a map as long as the job's images live, or why there is none, and tell its watchers.

        Raises StoreFailed.
        """
        place = (job_id, image, layer)
        if isinstance(found, str):
            self._scripts.keep_reason(place, found, MAP_FAILURE_TTL).run(self._redis)
            return
        content, keeper, name = found.to_bytes(), self.keeper, map_name(*place)
        if keeper is None:
            self._scripts.keep_map(place, content, "", "").run(self._redis)
            return
        keeper.put([(name, content)])
        if not self._scripts.keep_map(place, b"", keeper.url, name).run(self._redis):
            keeper.drop([name])

    def delete_expired(self) -> int:
        """Delete files of jobs that have expired from their object stores, some at a time; how many jobs."""
        now = self.time().timestamp()
        found = self._redis.zrangebyscore(self._keys.expiring, "-inf", now, start=0, num=EXPIRED_AT_ONCE)
        if not found:
            return 0
        gone, left = Due(member.decode() for member in found).delete(self.stores)
        with self._redis.pipeline(transaction=True) as pipe:
            if gone:
                pipe.zrem(self._keys.expiring, *gone)
            if left:
                pipe.zadd(self._keys.expiring, dict.fromkeys(left, now + POSTPONED))
            pipe.execute()
        return len(gone)

    @property
    def results(self) -> str:
        """Where images are stored, as a heartbeat tells it."""
        return self.keeper.url if self.keeper else REDIS

    def claim_previews(self, version: str) -> bool:
        """Whether this worker is to make the previews of a version: none are there, and nobody makes them."""
        return bool(self._redis.set(self._keys.previews(version), b"", nx=True, ex=PREVIEWS_CLAIMED))

    def save_previews(self, version: str, sheet: bytes) -> None:
        """Keep the previews of a version."""
        self._redis.set(self._keys.previews(version), sheet, ex=PREVIEWS_KEPT)

    def beat(self, info: WorkerInfo) -> None:
        """Store a heartbeat, good for worker_ttl seconds."""
        now = self.time().timestamp()  # a worker whose clock is ahead would else forget the others
        with self._redis.pipeline(transaction=True) as pipe:
            lifetime = int(self._settings.worker_ttl * 1000)
            pipe.set(self._keys.worker(info.id), WORKER.dump_json(info), px=lifetime)
            pipe.zadd(self._keys.workers, {info.id: now})
            pipe.zremrangebyscore(self._keys.workers, "-inf", now - 10 * self._settings.worker_ttl)
            pipe.execute()

    def leave(self) -> None:
        """Take this worker off the list of the living."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.worker(self._worker))
            pipe.zrem(self._keys.workers, self._worker)
            pipe.execute()

    def may_sweep(self, seconds: float, old: Collection[str] = ()) -> bool:
        """True for one worker at a time: the first to ask, while it asks again within so many seconds.

        old: workers of an older format, whose place this one takes: they do not know all queues.
        """
        lifetime = int(seconds * 1000)
        if self._redis.set(self._keys.sweeper, self._worker, nx=True, px=lifetime):
            return True
        holder = (self._redis.get(self._keys.sweeper) or b"").decode()
        if holder in old:
            return bool(self._redis.set(self._keys.sweeper, self._worker, px=lifetime))
        return holder == self._worker and bool(self._redis.pexpire(self._keys.sweeper, lifetime))

    def sweeps(self) -> bool:
        """Whether this worker is the one that sweeps."""
        return bool(self._redis.get(self._keys.sweeper) == self._worker.encode())

    def holders(self) -> dict[str, str]:
        """Open job -> the worker that has taken it, dead or alive."""
        return {
            job_id.decode(): worker.decode()
            for job_id, worker in self._redis.hgetall(self._keys.held).items()
        }

    def workers(self) -> list[WorkerInfo]:
        """The living workers, by their last heartbeats, the oldest first."""
        ids = [worker.decode() for worker in self._redis.zrange(self._keys.workers, 0, -1)]
        beats = self._redis.mget(list(map(self._keys.worker, ids))) if ids else []
        return read_workers(dict(zip(ids, beats, strict=True)))

    def first(self, most: int, known: Collection[str]) -> list[str]:
        """The first `most` jobs of the queue that are not in `known`."""
        front = self._redis.zrange(self._keys.queued, 0, most + len(known) - 1)
        return [job_id for job_id in (job.decode() for job in front) if job_id not in known][:most]

    def without_message(self, jobs: Collection[str], most: float = inf) -> set[str]:
        """The jobs that have no message among the next `most` of each list.

        It stops reading once every job has its message. With a job that has none it reads the lists to their
        end, which takes seconds for a long queue.
        """
        left = set(jobs)
        if not left:
            return left
        for name in self._filled([OLD_GENERATE_QUEUE, *self.queues()]):
            last = -1
            while left and -last <= most and (messages := self._redis.lrange(name, last - PAGE + 1, last)):
                left -= set(map(_task_id, messages))
                last -= len(messages)
        return left

    def queues(self) -> set[str]:
        """The queues in which jobs may wait, but for that of format 1."""
        names = {name.decode() for name in self._redis.smembers(self._keys.queues)}
        return names - {OLD_GENERATE_QUEUE}

    def waits(self, version: str) -> bool:
        """Whether a job or a map waits for workers with a version of a model."""
        maps = [message_list(self._settings.namespace, queue, 0) for queue in map_queues_of(version)]
        return bool(self._filled(queues_of(version)) or self._redis.exists(*maps))

    def pop(self, version: str, most: int) -> list[str]:
        """Take the messages of up to so many waiting jobs without Celery; their ids."""
        found: list[str] = []
        for name in self._filled(queues_of(version)):
            found += map(_task_id, self._redis.rpop(name, most - len(found)) or [])
            if len(found) >= most:
                break
        return found

    def unserved(self, served: Collection[str]) -> dict[str, float]:
        """Queue with jobs that is not in `served` -> for how many seconds nobody has taken from it."""
        lacking = {queue for queue in self.queues() - set(served) if self._filled([queue])}
        known = {queue.decode(): float(at) for queue, at in self._redis.hgetall(self._keys.unserved).items()}
        if known.keys() - lacking:
            self._redis.hdel(self._keys.unserved, *(known.keys() - lacking))
        now = self.time().timestamp() if lacking else 0.0
        for queue in lacking - known.keys():
            self._redis.hsetnx(self._keys.unserved, queue, now)
        return {queue: now - known.get(queue, now) for queue in lacking}

    def give_up(self, queue: str, reason: str) -> list[str]:
        """Fail every job whose message is in a queue; the ids of those that had not ended."""
        failed: list[str] = []
        for name in self._filled([queue]):
            while messages := self._redis.lrange(name, -PAGE, -1):
                for message in messages:
                    if self.fail(_task_id(message), reason):
                        failed.append(_task_id(message))
                    self._redis.lrem(name, -1, message)
        self._redis.srem(self._keys.queues, queue)
        return failed

    def _filled(self, queues: Iterable[str]) -> list[str]:
        """The lists of queues of jobs that are not empty."""
        names = [name for queue in queues for name in generate_lists(self._settings.namespace, queue)]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(name)
            return [name for name, there in zip(names, pipe.execute(), strict=True) if there]


def _task_id(message: bytes) -> str:
    return str(json.loads(message)["headers"]["id"])
